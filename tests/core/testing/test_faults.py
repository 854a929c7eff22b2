"""The storage that fails on demand."""

import threading

import pytest

from nkv_core.contracts.storage import Batch
from nkv_core.errors import OutcomeUnknown, StorageFailed, StorageFull
from nkv_core.testing import FaultyStorage, StorageContract


class TestFaultyStorageWithoutFaults(StorageContract):
    plugin = "nkv_storage_memory"
    name = "memory"

    def settings(self, path):
        return {}

    @pytest.fixture
    def storage_factory(self):
        from nkv_storage_memory.storage import MemoryStorage

        return lambda path: FaultyStorage(MemoryStorage())


@pytest.fixture
def faulty(plain_storage):
    storage = FaultyStorage(plain_storage())
    storage.open()
    yield storage
    storage.close()


@pytest.fixture
def write(faulty):
    """Puts one key; returns the error that met it, or None."""

    def put(key=b"k", value=b"v"):
        batch = Batch()
        batch.put("records", key, value)
        try:
            faulty.apply(batch)
        except StorageFailed as error:
            return error
        return None

    return put


def test_is_the_storage_inside_where_nothing_is_to_go_wrong(faulty, plain_storage):
    assert (faulty.reads, faulty.writes, faulty.durable) == ("inline", "inline", False)
    other = FaultyStorage(plain_storage(), reads="thread", writes="thread")
    assert (other.reads, other.writes) == ("thread", "thread")


def test_fails_the_next_write_and_changes_nothing(faulty, write):
    faulty.fail_next()
    assert isinstance(write(), StorageFailed)
    assert faulty.count("records") == 0
    assert write() is None
    assert (faulty.written, faulty.failed) == (1, 1)


def test_fails_the_writes_that_were_planned(faulty, write):
    faulty.fail_nth(2)
    faulty.fail_nth(4, StorageFull("four"))
    outcomes = [write() for _ in range(5)]
    assert [type(error) for error in outcomes] == [
        type(None),
        StorageFailed,
        type(None),
        StorageFull,
        type(None),
    ]


def test_fails_with_the_error_that_it_was_given(faulty):
    faulty.fail_next(OutcomeUnknown("who knows"))
    with pytest.raises(OutcomeUnknown):
        faulty.delete_range("records", b"", None)


def test_is_full_until_healed_and_can_be_read(faulty, write):
    write(b"before")
    faulty.fill()
    assert all(isinstance(write(), StorageFull) for _ in range(3))
    with pytest.raises(StorageFull):
        faulty.delete_range("records", b"", None)
    assert faulty.get("records", b"before") == b"v"
    assert faulty.scan("records", limit=9) == [(b"before", b"v")]
    faulty.heal()
    assert write() is None


def test_fails_at_random_and_the_same_way_for_the_same_seed(faulty, write):
    def outcomes(seed):
        faulty.fail_randomly(0.3, seed)
        return [write() is None for _ in range(100)]

    first = outcomes(1)
    assert 10 < first.count(False) < 60
    assert outcomes(1) == first
    assert outcomes(2) != first
    faulty.fail_randomly(0)
    assert all(write() is None for _ in range(100))


def test_holds_a_write_until_it_is_let_go(faulty, write):
    with faulty.hold() as held:
        writer = threading.Thread(target=write)
        writer.start()
        assert held.entered.wait(10)
        assert faulty.get("records", b"k") is None
        held.let_go.set()
        writer.join(10)
    assert faulty.get("records", b"k") == b"v"


def test_lets_a_held_write_go_when_the_block_is_left(faulty, write):
    with faulty.hold() as held:
        writer = threading.Thread(target=write)
        writer.start()
        assert held.entered.wait(10)
    writer.join(10)
    assert faulty.get("records", b"k") == b"v"
    assert write(b"next") is None


def test_a_held_write_can_still_fail(faulty, write):
    with faulty.hold() as held:
        outcome = []
        writer = threading.Thread(target=lambda: outcome.append(write()))
        writer.start()
        assert held.entered.wait(10)
        faulty.fail_next()
    writer.join(10)
    assert isinstance(outcome[0], StorageFailed)
