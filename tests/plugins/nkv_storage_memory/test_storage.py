"""What the suite of all storages cannot know about the one in memory."""

import random

import pytest

from nkv_core.contracts.storage import Batch
from nkv_core.errors import StorageFailed, StorageFull
from nkv_storage_memory import nkv_settings, nkv_storage
from nkv_storage_memory.storage import _NOTED_KEYS, MemorySettings, MemoryStorage


@pytest.fixture
def make():
    def make_storage(**settings):
        storage = MemoryStorage(MemorySettings(**settings))
        storage.open()
        return storage

    return make_storage


def puts(pairs):
    batch = Batch()
    for key, value in pairs.items():
        batch.put("records", key, value)
    return batch


def test_is_offered_by_its_name_only():
    assert nkv_settings() is MemorySettings
    assert isinstance(nkv_storage(name="memory", settings=MemorySettings()), MemoryStorage)
    assert nkv_storage(name="diskcache", settings=MemorySettings()) is None


def test_says_that_it_is_not_durable_and_works_on_the_event_loop(make):
    storage = make()
    assert (storage.reads, storage.writes, storage.durable) == ("inline", "inline", False)


def test_notes_few_keys_however_many_are_written(make):
    storage = make()
    keys = [b"%05d" % number for number in range(10_000)]
    random.Random(1).shuffle(keys)
    for key in keys:
        storage.apply(puts({key: b"v"}))
        assert len(storage._tables["records"]._noted) <= _NOTED_KEYS
    assert [key for key, _ in storage.scan("records", limit=10_000)] == sorted(keys)


def test_a_key_that_goes_and_comes_back_between_scans_is_there_once(make):
    storage = make()
    storage.apply(puts({b"a": b"1", b"b": b"1"}))
    assert len(storage.scan("records", limit=9)) == 2
    gone = Batch()
    gone.delete("records", b"a")
    storage.apply(gone)
    storage.apply(puts({b"a": b"2"}))
    assert storage.scan("records", limit=9) == [(b"a", b"2"), (b"b", b"1")]
    storage.apply(gone)
    assert storage.scan("records", limit=9) == [(b"b", b"1")]


def test_refuses_what_is_past_its_bound_and_changes_nothing(make):
    storage = make(max_bytes=20_000)
    storage.apply(puts({b"a": b"x" * 10_000}))
    too_much = puts({b"a": b"new", b"b": b"x" * 30_000})
    too_much.put("meta", b"m", b"1")
    with pytest.raises(StorageFull):
        storage.apply(too_much)
    assert storage.get("records", b"a") == b"x" * 10_000
    assert storage.get("meta", b"m") is None
    assert storage.count("records") == 1
    with pytest.raises(StorageFull):
        storage.apply(puts({b"a": b"x" * 20_001}))


def test_takes_what_makes_room_even_when_it_is_full(make):
    storage = make(max_bytes=5_000)
    storage.apply(puts({b"a": b"x" * 4_500}))
    with pytest.raises(StorageFull):
        storage.apply(puts({b"b": b"x" * 1_000}))
    storage.apply(puts({b"a": b"short"}))
    storage.apply(puts({b"b": b"x" * 1_000}))
    assert storage.delete_range("records", b"", None) == 2
    assert storage._bytes == 0
    storage.apply(puts({b"c": b"x" * 4_500}))


def test_forgets_when_closed(make):
    storage = make(max_bytes=5_000)
    storage.apply(puts({b"a": b"x" * 4_500}))
    storage.close()
    with pytest.raises(StorageFailed):
        storage.count("records")
    storage.open()
    assert storage.count("records") == 0
    storage.apply(puts({b"a": b"x" * 4_500}))
