"""The data file before it is used: made whole, or looked at and refused as it is.

diskcache executes the settings that it finds in a file. So a file is examined through a read-only
connection first, and diskcache sees only one that nkv made.
"""

import os
import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Final
from urllib.parse import quote

import diskcache
from diskcache.core import DBNAME

from nkv_core.errors import DataDamaged, DataDirBusy, DataDirError, NewerFormat

from .disk import BytesDisk
from .settings import FORCED
from .sql import APPLICATION_ID, FOREIGN_KEY, FORMAT, SCHEMA

_MAGIC: Final = b"SQLite format 3\x00"
_HEADER_BYTES: Final = 100
_MAKING: Final = ".new"
_BUSY_SECONDS: Final = 2.0

_OBJECTS: Final = frozenset(
    {
        ("table", "Settings"),
        ("table", "Cache"),
        ("table", "nkv_counts"),
        ("index", "sqlite_autoindex_Settings_1"),
        ("index", "Cache_key_raw"),
        ("index", "Cache_expire_time"),
        ("trigger", "Settings_count_insert"),
        ("trigger", "Settings_count_delete"),
        ("trigger", "Settings_size_insert"),
        ("trigger", "Settings_size_update"),
        ("trigger", "Settings_size_delete"),
        ("trigger", "nkv_counts_insert"),
        ("trigger", "nkv_counts_delete"),
    }
)
_NUMBERS: Final = frozenset(
    {
        *("count", "size", "hits", "misses"),
        *("cull_limit", "size_limit", "statistics", "tag_index"),
        *("disk_min_file_size", "disk_pickle_protocol"),
        *("sqlite_auto_vacuum", "sqlite_cache_size", "sqlite_mmap_size", "sqlite_synchronous"),
        "sqlite_wal_autocheckpoint",
    }
)
_WORDS: Final = {"eviction_policy": "none", "sqlite_journal_mode": "wal"}


def data_file(directory: Path) -> Path:
    """Where the file is."""
    return directory / str(DBNAME)


def write_ahead_log(directory: Path) -> Path:
    """Where SQLite keeps what is committed and not yet in the file."""
    return directory / f"{DBNAME}-wal"


def connect(file: Path, mode: str, cached_statements: int = 16) -> sqlite3.Connection:
    """A connection that any thread may close. `mode` is SQLite's: `ro` or `rw`, never creating."""
    return sqlite3.connect(
        f"file:{quote(str(file.absolute()))}?mode={mode}",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,  # transactions begin where we say so
        check_same_thread=False,
        cached_statements=cached_statements,
    )


def prepare(directory: Path) -> None:
    """Have a good file there: the one that is, or a new one where there is none.

    Raises `DataDamaged`, `NewerFormat`, `DataDirBusy` or `DataDirError`, with the file as it was;
    errors of SQLite and of the system pass.
    """
    if os.path.expandvars(directory) != str(directory):
        # diskcache would go to another folder than the one that is meant.
        raise DataDirError(f"{directory} has the name of an environment variable in it.")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.rmtree(directory / _MAKING, ignore_errors=True)  # of a start that was cut short
    if _exists(directory):
        _examine(directory)
        _Cache(directory).close()
    else:
        _make(directory)


def _exists(directory: Path) -> bool:
    file, log = data_file(directory), write_ahead_log(directory)
    if not os.path.lexists(file):
        if log.exists() and log.stat().st_size:
            raise DataDamaged(f"{file} is missing, but its write-ahead log is there.")
        return False
    for path in (file, log):
        if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
            raise DataDirError(f"{path} is not a regular file.")
    return True


def _make(directory: Path) -> None:
    """Make a new file beside its place, and put it there whole.

    So a file that is empty or cut short is always damage, and never a start that was cut short.
    """
    making = directory / _MAKING
    making.mkdir(mode=0o700)
    try:
        _Cache(making).close()
        file = data_file(making)
        file.chmod(0o600)
        with closing(connect(file, "rw")) as connection:
            connection.execute("BEGIN IMMEDIATE")
            for statement in SCHEMA:
                connection.execute(statement)
            connection.execute("COMMIT")
        if write_ahead_log(making).exists():
            raise DataDirError(f"{making} is held open by another program.")
        _sync(file)
        file.rename(data_file(directory))
        _sync(directory)
        _sync(directory.parent)
    finally:
        shutil.rmtree(making, ignore_errors=True)


class _Cache(diskcache.Cache):  # type: ignore[misc]  # diskcache has no types
    """Makes diskcache's tables where they are missing, and notes our settings in the file."""

    def __init__(self, directory: Path) -> None:
        try:
            super().__init__(str(directory), timeout=_BUSY_SECONDS, disk=BytesDisk, **FORCED)
        except BaseException:
            self.close()  # it would leave its connection open
            raise


def _sync(path: Path) -> None:
    """Have a file, or the names in a folder, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _examine(directory: Path) -> None:
    """Refuse a file that is not one of ours, or not whole, before anything in it is obeyed."""
    file = data_file(directory)
    _examine_header(directory)
    with closing(connect(file, "ro")) as connection:
        if connection.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
            raise DataDamaged(f"{file} was not written by nkv.")
        (found,) = connection.execute("PRAGMA user_version").fetchone()
        if found > FORMAT:
            raise NewerFormat(f"{file} has format {found}; this nkv knows up to {FORMAT}.")
        objects = set(connection.execute("SELECT type, name FROM sqlite_master"))
        if objects != _OBJECTS:
            names = ", ".join(sorted(str(name) for _, name in objects ^ _OBJECTS))
            raise DataDamaged(f"{file} was changed by another program: {names}.")
        for name, value in connection.execute("SELECT key, value FROM Settings"):
            if not _is_plain(name, value):
                raise DataDamaged(f"{file} was changed by another program: setting {name!r}.")
        if connection.execute(FOREIGN_KEY).fetchone():
            raise DataDamaged(f"{file} has keys that nkv did not write.")
    # diskcache would wait a minute for a program that holds the file.
    with closing(connect(file, "rw")) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            raise DataDirBusy(f"Another program is writing to {file}.") from None
        connection.execute("ROLLBACK")


def _examine_header(directory: Path) -> None:
    file = data_file(directory)
    with file.open("rb") as opened:
        header = opened.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise DataDamaged(f"{file} is not a data file, or is cut short.")
    log = write_ahead_log(directory)
    if log.exists() and log.stat().st_size:
        return  # the file may be shorter than it says: the rest of it is in the log
    page = int.from_bytes(header[16:18], "big")
    expected = (65536 if page == 1 else page) * int.from_bytes(header[28:32], "big")
    if file.stat().st_size < expected:
        raise DataDamaged(
            f"{file} is cut short: {file.stat().st_size} bytes instead of {expected}."
        )


def _is_plain(name: object, value: object) -> bool:
    """Whether a row of diskcache's settings is one that it may execute."""
    if name in _WORDS:
        return value == _WORDS[name]
    return name in _NUMBERS and type(value) is int
