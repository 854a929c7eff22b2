"""The suite of storages: it passes what keeps the contract, and finds what does not."""

import inspect
import time
from types import ModuleType

import pytest

from nkv_core.contracts.storage import TABLES
from nkv_core.testing import StorageContract
from nkv_core.testing.storage_crash import batch_number, left_by, make_storage
from nkv_core.testing.storage_model import batch_of, contents

# One waits for threads, the other looks for the smallest example.
SLOW_TO_FAIL = ["test_closing_while_others_read_is_safe", "test_does_what_a_dict_does"]


def breaking(base):
    """Ways to break a storage: what is wrong, and the storage where it is."""

    class StopIsIncluded(base):
        def keys(self, table, start, stop):
            return super().keys(table, start, None if stop is None else stop + b"\x00")

    class StartIsLeftOut(base):
        def keys(self, table, start, stop):
            return [key for key in super().keys(table, start, stop) if key != start or not key]

    class OrderIsThatOfText(base):
        def keys(self, table, start, stop):
            return sorted(
                super().keys(table, start, stop), key=lambda key: key.decode("latin-1").lower()
            )

    class OrderIsThatOfWriting(base):
        def keys(self, table, start, stop):
            wanted = set(super().keys(table, start, stop))
            return [key for key in self.table(table) if key in wanted]

    class ReverseTakesTheFirst(base):
        def scan(self, table, start=b"", stop=None, *, limit, reverse=False):
            pairs = super().scan(table, start, stop, limit=limit)
            return pairs[::-1] if reverse else pairs

    class LimitOfZeroIsNone(base):
        def scan(self, table, start=b"", stop=None, *, limit, reverse=False):
            return super().scan(table, start, stop, limit=limit or 10**9, reverse=reverse)

    class EmptyIsNone(base):
        def get(self, table, key):
            return super().get(table, key) or None

    class ManyAreSomeOfThem(base):
        def get_many(self, table, keys):
            return super().get_many(table, keys[:300])

    class ManyHaveWhatIsMissing(base):
        def get_many(self, table, keys):
            return dict.fromkeys(keys, b"") | super().get_many(table, keys)

    class TablesAreOne(base):
        def table(self, name):
            super().table(name)
            return self.tables["records"]

    class CountsWrites(base):
        written = 0

        def apply(self, batch):
            super().apply(batch)
            self.written += sum(map(len, batch.writes.values()))

        def count(self, table):
            return min(self.written, 1) and super().count(table) + self.written - self.written // 2

    class DeletesNothing(base):
        def delete_range(self, table, start, stop):
            return len(self.keys(table, start, stop))

    class DeletesAndDoesNotSay(base):
        def delete_range(self, table, start, stop):
            super().delete_range(table, start, stop)
            return 0

    class KeysEndAtNull(base):
        def apply(self, batch):
            for writes in batch.writes.values():
                for key in list(writes):
                    value = writes.pop(key)
                    writes[key.partition(b"\x00")[0] if key[:1] != b"\x00" else key] = value
            super().apply(batch)

    class TornForReaders(base):
        def apply(self, batch):
            for table, writes in batch.writes.items():
                super().apply(batch_of({table: writes}))
                time.sleep(0.0005)

    class TornWithinATable(base):
        def apply(self, batch):
            for half in (0, 1):
                super().apply(
                    batch_of(
                        {
                            table: dict(list(writes.items())[half::2])
                            for table, writes in batch.writes.items()
                        }
                    )
                )
                time.sleep(0.0005)

    class WorksWhenClosed(base):
        def table(self, name):
            return (self.tables or {table: {} for table in TABLES})[name]

    class ClosesOnceOnly(base):
        def close(self):
            del self.tables[TABLES[0]]
            super().close()

    class SaysNothingAboutThreads(base):
        reads = "somewhere"

    return {
        name: mutant
        for name, mutant in locals().items()
        if inspect.isclass(mutant) and mutant is not base
    }


@pytest.fixture
def suite(monkeypatch):
    """Runs the suite over a storage class, up to the first test that fails; returns its name."""

    def run(storage_class, tmp_path):
        module = ModuleType("nkv_storage_under_test")
        module.nkv_storage = lambda name, settings: storage_class()
        monkeypatch.setitem(__import__("sys").modules, module.__name__, module)

        class Suite(StorageContract):
            plugin = module.__name__
            name = "test"

            def settings(self, path):
                return {}

        tests = inspect.getmembers(Suite, lambda it: getattr(it, "__name__", "")[:5] == "test_")
        tests.sort(key=lambda test: SLOW_TO_FAIL.index(test[0]) if test[0] in SLOW_TO_FAIL else -1)
        for name, test in tests:
            wanted = inspect.signature(test).parameters
            for case in _cases(test):
                storage = storage_class()
                storage.open()
                given = {
                    "storage": storage,
                    "storage_factory": lambda path: storage_class(),
                    "tmp_path": tmp_path,
                    **case,
                }
                try:
                    test(Suite(), **{key: value for key, value in given.items() if key in wanted})
                except pytest.skip.Exception:
                    pass
                except BaseException as error:
                    if isinstance(error, KeyboardInterrupt):
                        raise
                    return name
        return None

    return run


def _cases(test):
    for mark in getattr(test, "pytestmark", []):
        if mark.name == "parametrize":
            return [{mark.args[0]: value} for value in mark.args[1]]
    return [{}]


def test_passes_what_keeps_the_contract(suite, plain_storage, tmp_path):
    assert suite(plain_storage, tmp_path) is None


@pytest.mark.one_python
@pytest.mark.parametrize("mutant", sorted(breaking(object)))
def test_finds_what_does_not(suite, plain_storage, tmp_path, mutant):
    assert suite(breaking(plain_storage)[mutant], tmp_path) is not None


def test_makes_a_storage_through_the_hooks_of_its_plugin():
    storage = make_storage("nkv_storage_memory", "memory", {"max_bytes": 1000})
    assert storage._max_bytes == 1000
    with pytest.raises(LookupError, match="'other'"):
        make_storage("nkv_storage_memory", "other", {})


def test_what_the_crash_program_leaves_is_what_its_batches_say(plain_storage):
    storage = plain_storage()
    storage.open()
    for number in range(60):
        assert batch_number(number) == batch_number(number)
        storage.apply(batch_number(number))
    assert contents(storage) == left_by(60)
    assert left_by(60) != left_by(59)
