"""What the storage does with a file before it trusts it."""

import sqlite3
import stat
from contextlib import closing

import diskcache
import pytest

from nkv_core.errors import DataDamaged, DataDirBusy, DataDirError, NewerFormat
from nkv_storage_diskcache import file as file_module
from nkv_storage_diskcache.file import data_file, write_ahead_log
from nkv_storage_diskcache.settings import LONGEST_PAGES


@pytest.fixture
def closed(make, put, directory):
    """A file with some records, and no storage that has it open."""
    storage = make()
    put(storage, "records", {b"%05d" % number: b"v" * 100 for number in range(3000)})
    storage.close()
    return data_file(directory)


@pytest.fixture
def refused(make):
    """Checks that opening is refused as it should be, and that the file stays as it is."""

    def check(file, error, match=None):
        before = file.read_bytes()
        with pytest.raises(error, match=match) as raised:
            make()
        assert file.read_bytes() == before
        return raised.value

    return check


def test_a_new_one_is_for_its_user_alone(make, directory):
    make()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for file in directory.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_a_new_one_leaves_nothing_beside_it(make, directory):
    make().close()
    assert [path.name for path in directory.iterdir()] == ["cache.db"]


def test_opening_an_open_one_does_nothing(make, put):
    storage = make()
    put(storage, "records", {b"k": b"v"})
    storage.open()
    assert storage.get("records", b"k") == b"v"


def test_every_commit_waits_for_the_disk(make):
    sqlite = make()._writer.sqlite

    def pragma(name):
        return sqlite.execute(f"PRAGMA {name}").fetchone()[0]

    assert pragma("synchronous") == 2
    assert pragma("journal_mode") == "wal"
    assert pragma("wal_autocheckpoint") == LONGEST_PAGES
    assert pragma("auto_vacuum") == 0


def test_what_a_file_says_about_syncing_and_eviction_is_overruled(make, closed, behind):
    with behind() as connection:
        for name, value in [("sqlite_synchronous", 0), ("cull_limit", 10), ("statistics", 1)]:
            connection.execute("UPDATE Settings SET value = ? WHERE key = ?", (value, name))
    storage = make()
    assert storage._writer.sqlite.execute("PRAGMA synchronous").fetchone() == (2,)
    with behind() as connection:
        found = dict(connection.execute("SELECT key, value FROM Settings"))
    assert (found["sqlite_synchronous"], found["cull_limit"], found["statistics"]) == (2, 0, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sqlite_temp_store_directory", "'/'"),
        ("sqlite_writable_schema", 1),
        ("sqlite_locking_mode", "EXCLUSIVE"),
        ("sqlite_synchronous", "0; DROP TABLE Cache"),
        ("sqlite_synchronous", 2.0),
        ("sqlite_journal_mode", "off"),
        ("eviction_policy", "least-recently-used"),
        ("disk_min_file_size", b"1"),
        ("close", 1),
    ],
)
def test_refuses_planted_settings(closed, behind, refused, name, value):
    with behind() as connection:
        connection.execute("INSERT OR REPLACE INTO Settings VALUES (?, ?)", (name, value))
    assert name in refused(closed, DataDamaged).detail


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE more (a)",
        "CREATE VIEW more AS SELECT * FROM Cache",
        "CREATE TRIGGER more AFTER INSERT ON Cache BEGIN DELETE FROM Cache; END",
        "DROP TRIGGER nkv_counts_insert",
        "DROP TABLE Settings",
    ],
)
def test_refuses_a_changed_schema(closed, behind, refused, statement):
    with behind() as connection:
        connection.execute(statement)
    refused(closed, DataDamaged, "another program")


@pytest.mark.parametrize("key", ["text", 1, None, b"", b"\x00", b"\x07k", b"\xff"])
def test_refuses_keys_of_strangers(closed, behind, refused, key):
    with behind() as connection:
        connection.execute(
            "INSERT INTO Cache (key, raw, mode, value) VALUES (?, 1, 1, x'')", (key,)
        )
    refused(closed, DataDamaged, "did not write")


def test_refuses_a_cache_of_somebody_else(directory, refused):
    with closing(diskcache.Cache(str(directory))) as cache:
        cache["theirs"] = "data"
    refused(data_file(directory), DataDamaged, "not written by nkv")


def test_refuses_a_newer_format(closed, behind, refused):
    with behind() as connection:
        connection.execute("PRAGMA user_version = 2")
    refused(closed, NewerFormat, "format 2")


@pytest.mark.parametrize("size", [0, 1, 99, 100, 4096, 50_000])
def test_refuses_a_file_that_is_cut_short(closed, refused, size):
    with closed.open("r+b") as file:
        file.truncate(size)
    refused(closed, DataDamaged)


@pytest.mark.parametrize("content", [b"x", b"\x00" * 5000, b"not SQLite\n" * 1000])
def test_refuses_what_is_no_data_file(directory, refused, content):
    directory.mkdir()
    data_file(directory).write_bytes(content)
    refused(data_file(directory), DataDamaged)


def test_refuses_a_damaged_first_page(closed, refused):
    with closed.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 500)
    refused(closed, DataDamaged)


def test_finds_damage_when_reading_it(make, put, closed):
    storage = make()
    put(storage, "records", {b"01500": b"here it is"})
    storage.close()
    page = closed.read_bytes().index(b"here it is") // 4096
    with closed.open("r+b") as file:
        file.seek(page * 4096)
        file.write(b"\xff" * 100)
    storage = make()
    with pytest.raises(DataDamaged, match="backup"):
        storage.get("records", b"01500")
    with pytest.raises(DataDamaged, match="backup"):
        storage.scan("records", limit=10_000)
    assert storage.get("records", b"00000") == b"v" * 100


def test_refuses_a_log_without_its_file(make, closed, directory):
    closed.rename(directory / "elsewhere")
    write_ahead_log(directory).write_bytes(b"committed")
    with pytest.raises(DataDamaged, match="missing"):
        make()
    assert write_ahead_log(directory).read_bytes() == b"committed"
    assert not closed.exists()


def test_refuses_a_link(make, closed, tmp_path):
    closed.rename(tmp_path / "elsewhere")
    closed.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataDirError, match="regular file"):
        make()


def test_begins_again_where_a_start_was_cut_short(make, put, directory):
    left = directory / ".new"
    left.mkdir(parents=True)
    (left / "cache.db").write_bytes(b"")
    (left / "cache.db-wal").write_bytes(b"half")
    storage = make()
    put(storage, "records", {b"k": b"v"})
    assert not left.exists()


def test_refuses_a_place_that_is_no_folder(tmp_path, make):
    (tmp_path / "file").touch()
    with pytest.raises(DataDirError):
        make(directory=str(tmp_path / "file"))
    with pytest.raises(DataDirError):
        make(directory=str(tmp_path / "file" / "below"))


def test_refuses_to_open_without_a_directory(make):
    with pytest.raises(DataDirError, match=r"storage\.diskcache\.directory"):
        make(directory=None)


def test_a_percent_or_question_mark_in_the_path_is_no_trick(make, put, tmp_path, directory):
    odd = tmp_path / "100% ?mode=memory #x"
    storage = make(directory=str(odd))
    put(storage, "records", {b"k": b"v"})
    storage.close()
    assert data_file(odd).exists()
    assert make(directory=str(odd)).get("records", b"k") == b"v"


def test_refuses_a_path_that_diskcache_would_read_as_another(make, tmp_path, monkeypatch):
    monkeypatch.setenv("NKV_TEST_ELSEWHERE", "elsewhere")
    with pytest.raises(DataDirError, match="environment variable"):
        make(directory=str(tmp_path / "$NKV_TEST_ELSEWHERE"))
    assert list(tmp_path.iterdir()) == []


def test_names_another_program_that_writes(make, closed, directory, monkeypatch):
    monkeypatch.setattr(file_module, "_BUSY_SECONDS", 0.05)
    with closing(sqlite3.connect(closed, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DataDirBusy, match="Another program"):
            make()
        other.execute("ROLLBACK")
    make()
