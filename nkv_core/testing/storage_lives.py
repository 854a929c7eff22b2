"""The part of the suite of storages about threads, opening, closing and being killed."""

# ruff: noqa: D102, S101, S311, S603  # tests: their names say it, and asserting is their work

import contextlib
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from nkv_core.contracts.storage import TABLES, Batch, Storage, Table
from nkv_core.errors import StorageFailed
from nkv_core.testing.storage_crash import left_by
from nkv_core.testing.storage_model import (
    ALL,
    StorageFactory,
    StorageSuite,
    batch_of,
    contents,
    put_all,
    refuses_everything,
)


class StorageLives(StorageSuite):
    """Threads, opening and closing, and the death of the process."""

    # --- other threads ----------------------------------------------------------------------------

    def test_other_threads_see_what_was_applied(self, storage: Storage) -> None:
        seen: list[object] = []
        for number in range(3):
            put_all(storage, "records", {b"k": b"%d" % number})
            reader = threading.Thread(
                target=lambda: seen.append(
                    (storage.get("records", b"k"), storage.scan("records", limit=1))
                )
            )
            reader.start()
            reader.join()
        assert seen == [(b"%d" % number, [(b"k", b"%d" % number)]) for number in range(3)]

    def test_may_be_written_by_another_thread_than_opened_it(self, storage: Storage) -> None:
        writer = threading.Thread(target=put_all, args=(storage, "records", {b"k": b"v"}))
        writer.start()
        writer.join()
        assert storage.get("records", b"k") == b"v"

    def test_readers_see_a_batch_whole_or_not_at_all(self, storage: Storage) -> None:
        keys = [b"%03d" % number for number in range(50)]
        stop = threading.Event()
        torn: list[str] = []

        def write(number: int) -> None:
            batch = Batch()
            for table in TABLES:
                for key in keys:
                    batch.put(table, key, b"%08d" % number)
            storage.apply(batch)

        def read(first: Table, second: Table) -> None:
            try:
                while not stop.is_set():
                    # Read later, the second table must not be older than the first.
                    before = storage.get(first, keys[-1]) or b""
                    values = [value for _, value in storage.scan(second, limit=ALL)]
                    behind = storage.get(first, keys[0]) or b""
                    if len(set(values)) != 1 or len(values) != len(keys):
                        torn.append(f"{second} was seen with {set(values)}")
                    elif not before <= values[0] <= behind:
                        torn.append(f"{first} {before!r}, {second} {values[0]!r}, {behind!r}")
                    elif storage.count(second) != len(keys):
                        torn.append(f"{second} was counted wrongly")
            except Exception as error:  # noqa: BLE001  # a thread's error is the test's
                torn.append(repr(error))

        write(0)
        pairs: list[tuple[Table, Table]] = [("records", "meta"), ("meta", "records")]
        readers = [threading.Thread(target=read, args=pair) for pair in pairs]
        for reader in readers:
            reader.start()
        try:
            for number in range(1, 100):
                write(number)
        finally:
            stop.set()
            for reader in readers:
                reader.join()
        assert torn == []

    # --- opening and closing ----------------------------------------------------------------------

    def test_closing_twice_does_nothing(self, storage: Storage) -> None:
        storage.close()
        storage.close()

    def test_may_be_closed_by_any_thread(self, storage: Storage) -> None:
        put_all(storage, "records", {b"k": b"v"})
        storage.get("records", b"k")
        closer = threading.Thread(target=storage.close)
        closer.start()
        closer.join()
        with pytest.raises(StorageFailed):
            storage.get("records", b"k")

    def test_refuses_everything_once_closed(self, storage: Storage) -> None:
        put_all(storage, "records", {b"k": b"v"})
        storage.close()
        refuses_everything(storage)

    def test_refuses_everything_until_opened(
        self, storage_factory: StorageFactory, tmp_path: Path
    ) -> None:
        storage = storage_factory(tmp_path / "storage")
        refuses_everything(storage)
        storage.close()

    def test_can_be_opened_again(self, storage: Storage) -> None:
        put_all(storage, "records", {b"k": b"v"})
        storage.close()
        storage.open()
        assert storage.get("records", b"k") == (b"v" if storage.durable else None)
        put_all(storage, "records", {b"k": b"w"})
        assert storage.scan("records", limit=9) == [(b"k", b"w")]

    def test_closing_while_others_read_is_safe(self, storage: Storage) -> None:
        put_all(storage, "records", {b"%d" % number: b"v" * 100 for number in range(1000)})
        reading = threading.Barrier(3)
        deadline = threading.Event()
        wrong: list[str] = []

        def read() -> None:
            reading.wait()
            try:
                while not deadline.is_set():
                    storage.scan("records", limit=100)
                    storage.get("records", b"1")
                wrong.append("it can be read although it is closed")
            except StorageFailed:
                pass
            except Exception as error:  # noqa: BLE001  # a thread's error is the test's
                wrong.append(repr(error))

        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        reading.wait()
        storage.close()
        for reader in readers:
            reader.join(5)
        deadline.set()
        for reader in readers:
            reader.join()
        assert wrong == []

    def test_what_is_durable_is_there_after_reopening(
        self, storage: Storage, storage_factory: StorageFactory, tmp_path: Path
    ) -> None:
        if not storage.durable:
            pytest.skip("not durable, and says so")
        storage.apply(batch_of({"records": {b"k": b"v", b"l": b"w"}, "meta": {b"m": b""}}))
        storage.apply(batch_of({"records": {b"l": None}}))
        storage.close()
        again = storage_factory(tmp_path / "storage")
        again.open()
        with contextlib.closing(again):
            assert again.scan("records", limit=9) == [(b"k", b"v")]
            assert again.get("meta", b"m") == b""
            assert [again.count(table) for table in TABLES] == [1, 0, 0, 0, 0, 1]

    def test_killed_under_writes_keeps_what_it_acknowledged(
        self, storage_factory: StorageFactory, tmp_path: Path
    ) -> None:
        path = tmp_path / "storage"
        if not storage_factory(path).durable:
            pytest.skip("not durable, and says so")
        chance = random.Random(9)
        for _ in range(self.crashes):
            acknowledged = self._write_until_killed(path, chance.randrange(5, 120))
            storage = storage_factory(path)
            storage.open()
            with contextlib.closing(storage):
                last = int(storage.get("meta", b"last") or b"-1")
                # The one that was under way may be there too, but then whole.
                assert last in (acknowledged, acknowledged + 1)
                assert contents(storage) == left_by(last + 1)

    def _write_until_killed(self, path: Path, batches: int) -> int:
        """Kill a writer behind so many batches; returns the number of the last acknowledged."""
        section = msgspec.json.encode(self.settings(path)).decode()
        program = [sys.executable, "-m", "nkv_core.testing.storage_crash"]
        with subprocess.Popen(
            [*program, self.plugin, self.name, section],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        ) as writer:
            assert writer.stdout is not None
            lines = [writer.stdout.readline() for _ in range(batches)]
            writer.kill()
            lines += writer.stdout.readlines()
        whole = [line for line in lines if line.endswith(b"\n")]
        assert len(whole) >= batches, "the writer ended by itself"
        return int(whole[-1])
