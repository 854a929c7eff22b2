"""The write-ahead log is moved into the file beside the writer, which waits for none of it."""

import sqlite3
import threading
import time
from contextlib import closing

import pytest

from nkv_storage_diskcache.checkpoints import Checkpoints
from nkv_storage_diskcache.file import connect, data_file, write_ahead_log

VALUE = b"x" * 20_000


@pytest.fixture
def small(make, directory):
    """A storage whose checkpoints are due after 100 pages, and are never the writer's own idea."""
    storage = make()
    storage._checkpoints.close()
    storage._checkpoints = Checkpoints(directory, pages=100, long=500)
    storage._writer.sqlite.execute("PRAGMA wal_autocheckpoint = 0")
    return storage


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def rows_in_file(directory):
    """How many rows the file has by itself, the log aside."""
    with closing(sqlite3.connect(f"file:{data_file(directory)}?immutable=1", uri=True)) as alone:
        try:
            return alone.execute("SELECT count(*) FROM Cache").fetchone()[0]
        except sqlite3.DatabaseError:  # half of a checkpoint
            return 0


def test_the_log_begins_anew_while_there_is_no_pause_in_writing(small, put, directory):
    for number in range(2000):  # 40 MB in all
        put(small, "records", {b"%d" % (number % 10): VALUE})
    assert write_ahead_log(directory).stat().st_size < 20_000_000
    assert small.count("records") == 10


def test_what_was_moved_is_in_the_file_though_nobody_closes_it(small, put, directory):
    for number in range(100):
        put(small, "records", {b"%03d" % number: VALUE})
    until(lambda: rows_in_file(directory) >= 20)


def test_a_write_is_made_while_a_checkpoint_is_held_up(small, put):
    """Writers wait for none: the log only grows meanwhile."""
    put(small, "records", {b"first": VALUE})
    with small._checkpoints.making:
        for number in range(100):
            put(small, "records", {b"%03d" % number: VALUE})
        assert not small._checkpoints.last
    until(lambda: small._checkpoints.last)
    put(small, "records", {b"later": VALUE})
    assert small.count("records") == 102


def test_a_checkpoint_that_fails_is_made_up_for_by_a_later_one(small, put, directory, monkeypatch):
    failed = threading.Event()

    def failing(file, mode, **options):
        if not failed.is_set():
            failed.set()
            raise sqlite3.OperationalError("database or disk is full")
        return connect(file, mode, **options)

    monkeypatch.setattr("nkv_storage_diskcache.checkpoints.connect", failing)
    for number in range(50):
        put(small, "records", {b"%03d" % number: VALUE})
    assert failed.wait(30)
    for number in range(50):
        put(small, "records", {b"%03d" % number: VALUE})
    until(lambda: rows_in_file(directory) == 50)


def test_closing_ends_the_thread_and_one_that_has_closed_begins_none(small, put, directory):
    for number in range(100):
        put(small, "records", {b"%03d" % number: VALUE})
    checkpoints = small._checkpoints
    small.close()
    checkpoints.note(1000)
    assert not [t for t in threading.enumerate() if t.name == "nkv-checkpoints"]
    assert [path.name for path in directory.iterdir()] == ["cache.db"]
    assert rows_in_file(directory) == 100
