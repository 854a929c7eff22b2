"""What the suite of all storages cannot know: rows of strangers, full disks, connections."""

import sqlite3
import threading
from contextlib import closing

import pytest

from nkv_core.contracts.storage import TABLES, Batch
from nkv_core.errors import DataDamaged, StorageFailed, StorageFull
from nkv_storage_diskcache import nkv_settings, nkv_storage
from nkv_storage_diskcache.file import write_ahead_log
from nkv_storage_diskcache.settings import DiskcacheSettings
from nkv_storage_diskcache.sql import PREFIXES, ROWS_AT_ONCE
from nkv_storage_diskcache.storage import DiskcacheStorage


def test_is_offered_by_its_name_only():
    assert nkv_settings() is DiskcacheSettings
    assert isinstance(nkv_storage(name="diskcache", settings=DiskcacheSettings()), DiskcacheStorage)
    assert nkv_storage(name="memory", settings=DiskcacheSettings()) is None


def test_every_table_has_a_prefix_and_they_leave_no_gap():
    assert set(PREFIXES) == set(TABLES)
    assert sorted(prefix[0] for prefix in PREFIXES.values()) == [1, 2, 3, 4, 5, 6]


# --- rows that nkv did not write ------------------------------------------------------------------


@pytest.fixture
def planted(make, put, behind, canary, tmp_path):
    """A storage with three records, the middle one changed behind its back."""
    (tmp_path / "outside.val").write_bytes(canary.pickled)
    changes = {
        "pickled value": ("mode = 4, value = ?", canary.pickled),
        "pickled file": ("mode = 4, value = NULL, filename = ?", "../outside.val"),
        "file": ("mode = 2, value = NULL, filename = ?", "../outside.val"),
        "text file": ("mode = 3, value = NULL, filename = ?", "../outside.val"),
        "file beside a value": ("filename = ?", "../outside.val"),
        "text": ("value = ?", "text"),
        "number": ("value = ?", 1),
        "nothing": ("value = ?", None),
        "pickled key": ("raw = ?", 0),
    }

    def plant(what):
        storage = make()
        put(storage, "records", {b"a": b"1", b"b": b"2", b"c": b"3"})
        change, value = changes[what]
        with behind() as connection:
            key = PREFIXES["records"] + b"b"
            connection.execute(f"UPDATE Cache SET {change} WHERE key = ?", (value, key))
        return storage

    return plant


@pytest.mark.parametrize(
    "what",
    [
        "pickled value",
        "pickled file",
        "file",
        "text file",
        "file beside a value",
        "text",
        "number",
        "nothing",
        "pickled key",
    ],
)
def test_refuses_to_read_a_planted_row(planted, put, canary, tmp_path, what):
    storage = planted(what)
    with pytest.raises(DataDamaged, match="did not write"):
        storage.get("records", b"b")
    for reverse in (False, True):
        with pytest.raises(DataDamaged, match="did not write"):
            storage.scan("records", limit=10, reverse=reverse)
    assert storage.get("records", b"a") == b"1"
    assert storage.scan("records", b"c", limit=10) == [(b"c", b"3")]
    assert storage.delete_range("records", b"", None) == 3
    assert not canary.path.exists()
    assert (tmp_path / "outside.val").exists()


def test_refuses_a_planted_twin_of_a_good_row(make, put, behind, canary):
    storage = make()
    put(storage, "records", {b"k": b"good"})
    with behind() as connection:
        connection.execute(
            "INSERT INTO Cache (key, raw, mode, value) VALUES (?, 0, 4, ?)",
            (PREFIXES["records"] + b"k", canary.pickled),
        )
    with pytest.raises(DataDamaged):
        storage.get("records", b"k")
    with pytest.raises(DataDamaged):
        storage.scan("records", limit=10)
    assert not canary.path.exists()


def test_a_write_replaces_a_planted_row_whole(planted, put):
    storage = planted("pickled value")
    put(storage, "records", {b"b": b"ours"})
    assert storage.get("records", b"b") == b"ours"


# --- writes that fail -----------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [10, 3 * ROWS_AT_ONCE])
@pytest.mark.parametrize("deletes", [False, True])
def test_a_write_that_fails_changes_nothing_and_the_next_one_works(make, put, rows, deletes):
    storage = make()
    put(storage, "records", {b"a": b"old", b"z": b"old"})
    put(storage, "meta", {b"m": b"old"})
    limit = sqlite3.SQLITE_LIMIT_LENGTH
    usual = storage._writer.sqlite.setlimit(limit, 100_000)
    batch = Batch()
    batch.put("records", b"a", b"new")
    for number in range(rows):
        batch.put("records", b"n%d" % number, b"new")
    batch.put("meta", b"m", b"new")
    if deletes:
        batch.delete("records", b"z")
    batch.put("records", b"too big", b"x" * 200_000)
    with pytest.raises(StorageFailed):
        storage.apply(batch)
    storage._writer.sqlite.setlimit(limit, usual)
    assert storage.scan("records", limit=9) == [(b"a", b"old"), (b"z", b"old")]
    assert storage.get("meta", b"m") == b"old"
    assert [storage.count("records"), storage.count("meta")] == [2, 1]
    storage.apply(batch)
    assert storage.count("records") == rows + 2 + (not deletes)
    assert storage.get("meta", b"m") == b"new"


def test_a_write_while_another_program_writes_fails_within_its_time(make, put, directory):
    storage = make()
    put(storage, "records", {b"k": b"v"})
    storage._writer.sqlite.execute("PRAGMA busy_timeout = 50")
    with closing(sqlite3.connect(directory / "cache.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageFailed, match="Another program"):
            put(storage, "records", {b"k": b"w"})
        assert storage.get("records", b"k") == b"v"
        other.execute("ROLLBACK")
    put(storage, "records", {b"k": b"w"})
    assert storage.get("records", b"k") == b"w"


def test_a_reader_of_another_program_cannot_let_the_log_grow_without_bound(make, put, directory):
    bound = 1024 * 1024
    storage = make(max_wal_bytes=bound)
    storage._writer.sqlite.execute("PRAGMA busy_timeout = 50")
    storage._writer.sqlite.execute("PRAGMA wal_autocheckpoint = 50")
    put(storage, "records", {b"k": b"v"})
    log = write_ahead_log(directory)
    made = 0
    with closing(sqlite3.connect(directory / "cache.db", isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM Cache").fetchall()
        with pytest.raises(StorageFailed, match="keeps reading"):  # noqa: PT012  # until it is full
            for made in range(1000):
                put(storage, "records", {b"%d" % made: b"x" * 10_000})
        assert bound < log.stat().st_size < bound + 100_000
        assert storage.count("records") == 1 + made
        other.execute("ROLLBACK")
    put(storage, "records", {b"again": b"works"})
    assert log.stat().st_size < bound / 2


def test_our_own_reads_do_not_let_the_log_grow(make, put, directory):
    storage = make()
    storage._writer.sqlite.execute("PRAGMA wal_autocheckpoint = 50")
    put(storage, "records", {b"k": b"v"})
    stop = threading.Event()

    def read():
        while not stop.is_set():
            storage.get("records", b"k")
            storage.scan("records", limit=100)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for number in range(1000):  # 20 MB in all
            put(storage, "records", {b"%d" % (number % 10): b"x" * 20_000})
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert write_ahead_log(directory).stat().st_size < 5_000_000


# --- full disks -----------------------------------------------------------------------------------


def test_a_full_disk_refuses_writes_and_nothing_else(make, put, small_disk, take_room):
    storage = make(directory=str(small_disk / "store"))
    put(storage, "records", {b"first": b"v" * 1000})
    ballast = take_room(small_disk, left=1_000_000)
    made = 0
    with pytest.raises(StorageFull, match="full"):  # noqa: PT012  # until it is full
        for made in range(100):
            batch = Batch()
            for part in range(4):
                batch.put("records", b"%03d-%d" % (made, part), b"x" * 10_000)
            batch.put("meta", b"last", b"%d" % made)
            storage.apply(batch)
    assert made > 1
    for _ in range(3):
        with pytest.raises(StorageFull):
            put(storage, "records", {b"more": b"x" * 100_000})
    assert storage.get("records", b"first") == b"v" * 1000
    assert storage.get("meta", b"last") == b"%d" % (made - 1)
    assert storage.count("records") == 1 + 4 * made
    assert len(storage.scan("records", limit=1000)) == 1 + 4 * made
    assert storage.scan("records", b"%03d" % made, b"%03d" % (made + 1), limit=9) == []

    ballast.unlink()
    put(storage, "records", {b"more": b"x" * 100_000})
    assert storage.count("records") == 2 + 4 * made
    storage.close()
    again = make(directory=str(small_disk / "store"))
    assert again.get("records", b"more") == b"x" * 100_000
    assert again.count("records") == 2 + 4 * made


def test_a_batch_larger_than_the_disk_is_refused_whole(make, put, small_disk):
    storage = make(directory=str(small_disk / "store"))
    put(storage, "records", {b"first": b"v"})
    with pytest.raises(StorageFull):
        put(storage, "records", {b"%04d" % number: b"x" * 10_000 for number in range(2000)})
    assert storage.scan("records", limit=9) == [(b"first", b"v")]
    assert storage.count("records") == 1
    put(storage, "records", {b"second": b"v"})
    assert storage.count("records") == 2


def test_starting_on_a_full_disk_is_refused_and_changes_nothing(make, put, small_disk, take_room):
    store = small_disk / "store"
    storage = make(directory=str(store))
    put(storage, "records", {b"k": b"v"})
    storage.close()
    before = (store / "cache.db").read_bytes()
    ballast = take_room(small_disk)
    for _ in range(2):
        with pytest.raises(StorageFull, match="full"):
            make(directory=str(store))
    assert (store / "cache.db").read_bytes() == before
    ballast.unlink()
    assert make(directory=str(store)).get("records", b"k") == b"v"


def test_beginning_on_a_full_disk_is_refused_and_leaves_nothing_in_the_way(
    make, put, small_disk, take_room
):
    ballast = take_room(small_disk, left=8192)
    with pytest.raises(StorageFull):
        make(directory=str(small_disk / "store"))
    ballast.unlink()
    put(make(directory=str(small_disk / "store")), "records", {b"k": b"v"})


# --- connections ----------------------------------------------------------------------------------


def test_a_thread_takes_its_connection_with_it(make, put):
    storage = make()
    put(storage, "records", {b"k": b"v"})
    for _ in range(5):
        thread = threading.Thread(target=storage.get, args=("records", b"k"))
        thread.start()
        thread.join()
    assert len(storage._readers) <= 1


def test_closing_moves_the_log_into_the_file(make, put, directory):
    storage = make()
    put(storage, "records", {b"k": b"v"})
    storage.get("records", b"k")
    closer = threading.Thread(target=storage.close)
    closer.start()
    closer.join()
    assert [path.name for path in directory.iterdir()] == ["cache.db"]


def test_a_reading_connection_cannot_write(make):
    storage = make()
    storage.count("records")
    with pytest.raises(StorageFailed, match="readonly"):
        storage._read("DELETE FROM Cache", ())
