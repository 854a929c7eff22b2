"""The suite that every storage passes. Needs pytest and hypothesis.

class TestMyStorage(StorageContract):
    plugin = "my_plugin"
    name = "mine"

    def settings(self, path):
        return {"directory": str(path)}
"""

# ruff: noqa: D102, S101, S311  # tests: their names say it, and asserting is their work

import random
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, get_args

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings

from nkv_core.contracts.storage import TABLES, Batch, Storage, Where
from nkv_core.testing.storage_lives import StorageLives
from nkv_core.testing.storage_model import (
    ALL,
    EDGES,
    STEPS,
    Pairs,
    StorageFactory,
    batch_of,
    compare_with_dicts,
    put_all,
)


class StorageContract(StorageLives):
    """Subclass it as `Test...`, and set `plugin`, `name` and `settings`."""

    # --- what it says of itself -------------------------------------------------------------------

    def test_says_where_it_runs_and_whether_it_is_durable(self, storage: Storage) -> None:
        assert storage.reads in get_args(Where)
        assert storage.writes in get_args(Where)
        assert isinstance(storage.durable, bool)

    def test_begins_empty(self, storage: Storage) -> None:
        for table in TABLES:
            assert storage.get(table, b"k") is None
            assert storage.scan(table, limit=10) == []
            assert storage.scan(table, limit=10, reverse=True) == []
            assert storage.count(table) == 0
            assert storage.delete_range(table, b"", None) == 0

    # --- keys and values --------------------------------------------------------------------------

    def test_puts_overwrites_and_deletes(self, storage: Storage) -> None:
        put_all(storage, "records", {b"k": b"1", b"l": b"2"})
        assert storage.get("records", b"k") == b"1"
        put_all(storage, "records", {b"k": b"a longer value"})
        assert storage.get("records", b"k") == b"a longer value"
        storage.apply(batch_of({"records": {b"k": None, b"never there": None}}))
        assert storage.get("records", b"k") is None
        assert storage.get("records", b"l") == b"2"
        put_all(storage, "records", {b"k": b"again"})
        assert storage.get("records", b"k") == b"again"

    def test_gives_back_bytes_and_nothing_else(self, storage: Storage) -> None:
        put_all(storage, "records", {b"1": b"1", b"2.5": b"2.5", b"NULL": b"NULL"})
        assert type(storage.get("records", b"1")) is bytes
        for key, value in storage.scan("records", limit=10):
            assert type(key) is bytes
            assert type(value) is bytes

    @pytest.mark.parametrize("key", EDGES, ids=repr)
    def test_takes_every_byte_in_a_key(self, storage: Storage, key: bytes) -> None:
        put_all(storage, "records", {key: b"value"})
        assert storage.get("records", key) == b"value"
        assert storage.scan("records", key, key + b"\x00", limit=2) == [(key, b"value")]
        assert storage.scan("records", limit=2) == [(key, b"value")]
        assert storage.delete_range("records", key, key + b"\x00") == 1
        assert storage.get("records", key) is None

    @pytest.mark.parametrize("length", [1000, 4000])
    def test_takes_long_keys(self, storage: Storage, length: int) -> None:
        keys = [bytes((letter,)) * length for letter in b"abc"]
        put_all(storage, "records", dict.fromkeys(keys, b"v"))
        assert [key for key, _ in storage.scan("records", limit=10)] == keys

    def test_takes_an_empty_value_and_tells_it_from_none(self, storage: Storage) -> None:
        put_all(storage, "records", {b"empty": b""})
        assert storage.get("records", b"empty") == b""
        assert storage.count("records") == 1

    @pytest.mark.parametrize("count", [0, 1, 2, 700])
    def test_gets_many_at_once_as_one_by_one(self, storage: Storage, count: int) -> None:
        there = {b"%d" % number: b"value %d" % number for number in range(0, count, 2)}
        put_all(storage, "records", there)
        put_all(storage, "state", {b"1": b"of another table", b"": b"the same"})
        keys = [b"%d" % number for number in range(count)]
        assert storage.get_many("records", keys) == there
        assert storage.get_many("records", keys + keys) == there

    @pytest.mark.parametrize("size", [65_535, 1024 * 1024, 9 * 1024 * 1024])
    def test_takes_big_values(self, storage: Storage, size: int) -> None:
        value = random.Random(size).randbytes(size)
        put_all(storage, "records", {b"big": value, b"small": b"s"})
        assert storage.get("records", b"big") == value
        assert storage.scan("records", limit=10) == [(b"big", value), (b"small", b"s")]
        put_all(storage, "records", {b"big": b"not any more"})
        assert storage.get("records", b"big") == b"not any more"

    # --- batches ----------------------------------------------------------------------------------

    def test_tables_are_apart(self, storage: Storage) -> None:
        batch = Batch()
        for table in TABLES:
            batch.put(table, b"k", table.encode())
        storage.apply(batch)
        for table in TABLES:
            assert storage.scan(table, limit=10) == [(b"k", table.encode())]
            assert storage.count(table) == 1
        assert storage.delete_range("records", b"", None) == 1
        for table in TABLES:
            assert storage.get(table, b"k") == (None if table == "records" else table.encode())

    def test_an_empty_batch_does_nothing(self, storage: Storage) -> None:
        storage.apply(Batch())
        storage.apply(Batch({"records": {}}))
        assert storage.count("records") == 0

    def test_a_batch_can_be_applied_twice(self, storage: Storage) -> None:
        batch = batch_of({"records": {b"k": b"v", b"gone": None}, "meta": {b"m": b"1"}})
        storage.apply(batch)
        storage.apply(batch)
        assert storage.scan("records", limit=10) == [(b"k", b"v")]
        assert (storage.count("records"), storage.count("meta")) == (1, 1)

    @pytest.mark.parametrize("size", [255, 256, 257, 600, 10_000])
    def test_takes_batches_of_any_size(self, storage: Storage, size: int) -> None:
        pairs = {b"%06d" % number: b"%d" % number for number in range(size)}
        put_all(storage, "records", pairs)
        assert storage.scan("records", limit=ALL) == sorted(pairs.items())
        assert storage.count("records") == size
        odd: dict[bytes, bytes | None] = dict.fromkeys(list(pairs)[1::2])
        storage.apply(batch_of({"records": odd, "changes": {b"c": b"1"}}))
        assert storage.scan("records", limit=ALL) == sorted(pairs.items())[::2]
        assert storage.count("records") == size - len(odd)

    # --- order ------------------------------------------------------------------------------------

    def test_scans_in_key_order_and_the_reverse_of_it(self, storage: Storage) -> None:
        keys = list(EDGES)
        random.Random(1).shuffle(keys)
        put_all(storage, "records", dict.fromkeys(keys, b"v"))
        ordered = [(key, b"v") for key in sorted(EDGES)]
        assert storage.scan("records", limit=100) == ordered
        assert storage.scan("records", limit=100, reverse=True) == ordered[::-1]

    def test_scans_from_start_up_to_but_not_with_stop(self, storage: Storage) -> None:
        pairs = [(key, b"v") for key in (b"a", b"b", b"b\x00", b"c", b"d")]
        put_all(storage, "records", dict(pairs))
        assert storage.scan("records", b"b", b"d", limit=9) == pairs[1:4]
        assert storage.scan("records", b"b", b"d", limit=9, reverse=True) == pairs[3:0:-1]
        assert storage.scan("records", b"b\x00", limit=9) == pairs[2:]
        assert storage.scan("records", b"", b"b", limit=9) == pairs[:1]
        assert storage.scan("records", b"b", b"b", limit=9) == []
        assert storage.scan("records", b"c", b"b", limit=9) == []
        assert storage.scan("records", b"d\x00", limit=9) == []

    def test_scans_no_more_than_the_limit(self, storage: Storage) -> None:
        pairs = [(b"%d" % number, b"v") for number in range(10)]
        put_all(storage, "records", dict(pairs))
        assert storage.scan("records", limit=0) == []
        assert storage.scan("records", limit=3) == pairs[:3]
        assert storage.scan("records", limit=3, reverse=True) == pairs[:6:-1]
        assert storage.scan("records", b"2", b"8", limit=2, reverse=True) == pairs[7:5:-1]
        assert storage.scan("records", limit=10) == pairs
        assert storage.scan("records", limit=11) == pairs

    def test_a_scan_can_be_continued_behind_its_last_key(self, storage: Storage) -> None:
        pairs = {b"%05d" % number: b"%d" % number for number in range(2500)}
        put_all(storage, "records", pairs)
        found: Pairs = []
        start = b""
        while len(found) <= len(pairs) and (page := storage.scan("records", start, limit=999)):
            found += page
            start = page[-1][0] + b"\x00"
        assert found == list(pairs.items())

    # --- counts and ranges ------------------------------------------------------------------------

    def test_counts_keys_and_not_writes(self, storage: Storage) -> None:
        put_all(storage, "records", {b"a": b"1", b"b": b"1"})
        put_all(storage, "records", {b"b": b"2", b"c": b"2"})
        assert storage.count("records") == 3
        storage.apply(batch_of({"records": {b"a": None, b"x": None, b"d": b"3"}}))
        assert storage.count("records") == 3
        assert storage.count("tombstones") == 0

    def test_deletes_a_range_from_start_up_to_but_not_with_stop(self, storage: Storage) -> None:
        put_all(storage, "records", dict.fromkeys((b"a", b"b", b"c", b"d", b"e"), b"v"))
        put_all(storage, "changes", {b"c": b"v"})
        assert storage.delete_range("records", b"b", b"d") == 2
        assert storage.delete_range("records", b"b", b"d") == 0
        assert storage.delete_range("records", b"z", b"a") == 0
        assert [key for key, _ in storage.scan("records", limit=9)] == [b"a", b"d", b"e"]
        assert (storage.count("records"), storage.count("changes")) == (3, 1)
        assert storage.delete_range("records", b"d", None) == 2
        assert storage.get("records", b"a") == b"v"
        assert storage.get("changes", b"c") == b"v"

    def test_deletes_a_range_out_of_many(self, storage: Storage) -> None:
        pairs = {b"%06d" % number: b"v" for number in range(20_000)}
        put_all(storage, "records", pairs)
        assert storage.delete_range("records", b"000100", b"019900") == 19_800
        assert storage.count("records") == 200
        left = list(pairs.items())[:100] + list(pairs.items())[19_900:]
        assert storage.scan("records", limit=ALL) == left
        put_all(storage, "records", {b"010000": b"back"})
        assert storage.scan("records", b"0001", b"0199", limit=9) == [(b"010000", b"back")]

    # --- all of it against a dict -----------------------------------------------------------------

    def test_does_what_a_dict_does(self, storage_factory: StorageFactory, tmp_path: Path) -> None:
        # A function of its own for each storage: hypothesis keeps what failed by function.
        @hypothesis_settings(max_examples=60, deadline=None)
        @given(steps=STEPS)
        @example(steps=[("apply", {"records": {b"k": None}}), ("apply", {"records": {b"k": b""}})])
        def check(steps: list[Any]) -> None:
            folder = Path(mkdtemp(dir=tmp_path)) / "storage"
            compare_with_dicts(storage_factory, folder, steps)

        check()
