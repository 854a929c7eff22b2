"""What the suite of storages is built on: how a storage is made, and a model to compare it with."""

# ruff: noqa: S101  # tests: their names say it, and asserting is their work

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import strategies as st

from nkv_core.contracts.storage import TABLES, Batch, Storage, Table
from nkv_core.errors import StorageFailed
from nkv_core.testing.storage_crash import make_storage

StorageFactory = Callable[[Path], Storage]
Model = dict[Table, dict[bytes, bytes]]
Pairs = list[tuple[bytes, bytes]]

ALL = 1_000_000
EDGES = (
    *(b"", b"\x00", b"\x00\x00", b"\x01", b"a", b"a\x00", b"a.b", b"aa", b"b", b"B", "é".encode()),
    *(b"\x7f", b"\x80", b"\xfe\xff", b"\xff", b"\xff\x00", b"\xff\xff", b"'", b'"', b"%", b"*"),
)
# Few letters, so that keys meet each other, and all bytes, so that none is special.
_keys = st.one_of(
    st.text("ab\x00\xff", max_size=4).map(lambda text: text.encode("latin-1")),
    st.binary(max_size=12),
    st.sampled_from(EDGES),
)
_values = st.one_of(st.none(), st.binary(max_size=40))
_tables = st.sampled_from(TABLES)
_writes = st.dictionaries(_tables, st.dictionaries(_keys, _values, max_size=8), max_size=3)
_ranges = st.tuples(_tables, _keys, st.one_of(st.none(), _keys))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("apply"), _writes),
        st.tuples(st.just("delete_range"), _ranges),
        st.tuples(st.just("scan"), st.tuples(_ranges, st.integers(0, 6), st.booleans())),
        st.tuples(st.just("reopen"), st.none()),
    ),
    max_size=25,
)


def batch_of(writes: dict[Table, dict[bytes, bytes | None]]) -> Batch:
    """A batch made through its own methods."""
    batch = Batch()
    for table, pairs in writes.items():
        for key, value in pairs.items():
            if value is None:
                batch.delete(table, key)
            else:
                batch.put(table, key, value)
    return batch


def put_all(storage: Storage, table: Table, pairs: dict[bytes, bytes]) -> None:
    """Put all pairs in one batch."""
    storage.apply(batch_of({table: dict(pairs)}))


class StorageSuite:
    """Makes the storage that a suite is about."""

    plugin: ClassVar[str]  #: the module with the hooks `nkv_settings` and `nkv_storage`
    name: ClassVar[str]  #: what follows `--storage`
    crashes: ClassVar[int] = 3  #: how often a durable storage is killed under writes

    def settings(self, path: Path) -> dict[str, Any]:
        """The storage's section for data in this folder, which does not exist yet."""
        raise NotImplementedError

    @pytest.fixture
    def storage_factory(self) -> StorageFactory:
        """Makes the storage of a folder, not yet open: twice, and it is the same data."""
        return lambda path: make_storage(self.plugin, self.name, self.settings(path))

    @pytest.fixture
    def storage(self, storage_factory: StorageFactory, tmp_path: Path) -> Iterator[Storage]:
        """An open, empty storage."""
        storage = storage_factory(tmp_path / "storage")
        storage.open()
        yield storage
        storage.close()


def compare_with_dicts(factory: StorageFactory, path: Path, steps: list[Any]) -> None:
    """Do the steps with a storage and with plain dicts, and compare all that can be seen."""
    model: Model = {table: {} for table in TABLES}
    storage = factory(path)
    storage.open()
    try:
        for step, about in steps:
            if step == "apply":
                apply_to_model(model, about)
                storage.apply(batch_of(about))
            elif step == "delete_range":
                table, start, stop = about
                gone = [key for key, _ in range_of(model, table, start, stop)]
                for key in gone:
                    del model[table][key]
                assert storage.delete_range(table, start, stop) == len(gone)
            elif step == "scan":
                (table, start, stop), limit, reverse = about
                expected = range_of(model, table, start, stop)
                if reverse:
                    expected.reverse()
                found = storage.scan(table, start, stop, limit=limit, reverse=reverse)
                assert found == expected[:limit]
            elif storage.durable:
                storage.close()
                storage = factory(path)
                storage.open()
        assert contents(storage) == model
    finally:
        storage.close()


def apply_to_model(model: Model, writes: dict[Table, dict[bytes, bytes | None]]) -> None:
    """Do to dicts what a batch does."""
    for table, pairs in writes.items():
        for key, value in pairs.items():
            if value is None:
                model[table].pop(key, None)
            else:
                model[table][key] = value


def range_of(model: Model, table: Table, start: bytes, stop: bytes | None) -> Pairs:
    """What is in a range, in key order."""
    return sorted(
        (key, value)
        for key, value in model[table].items()
        if start <= key and (stop is None or key < stop)
    )


def contents(storage: Storage) -> Model:
    """Everything in it, with what `get`, `count` and both directions of `scan` say compared."""
    found: Model = {}
    for table in TABLES:
        pairs = storage.scan(table, limit=ALL)
        assert pairs == storage.scan(table, limit=ALL, reverse=True)[::-1]
        assert pairs == sorted(pairs)
        assert storage.count(table) == len(pairs)
        assert all(storage.get(table, key) == value for key, value in pairs)
        found[table] = dict(pairs)
    return found


def refuses_everything(storage: Storage) -> None:
    """Check that a storage that is not open does nothing."""
    batch = batch_of({"records": {b"k": b"v"}})
    calls: list[Callable[[], object]] = [
        lambda: storage.get("records", b"k"),
        lambda: storage.apply(batch),
        lambda: storage.scan("records", limit=1),
        lambda: storage.count("records"),
        lambda: storage.delete_range("records", b"", None),
    ]
    for call in calls:
        with pytest.raises(StorageFailed):
            call()
