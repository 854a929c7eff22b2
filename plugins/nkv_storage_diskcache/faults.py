"""What SQLite's errors mean to a node."""

import errno
import os
import sqlite3
import tempfile
from pathlib import Path
from typing import Final

from nkv_core.errors import DataDamaged, NkvError, StorageFailed, StorageFull

_PROBE_BYTES: Final = 64 * 1024  # more than SQLite's shared memory file, the first thing it needs
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_PERHAPS_FULL: Final = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN})


def meaning(error: Exception, directory: Path) -> NkvError:
    """The error of nkv for one of SQLite, or of the operating system."""
    if isinstance(error, NkvError):
        return error
    if isinstance(error, OSError):
        if error.errno in _NO_ROOM:
            return _full(directory)
        return StorageFailed(f"The data file cannot be used: {error}.")
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest of it says where, not what
    if code in _DAMAGED:
        return DataDamaged(
            f"The data file in {directory} is damaged ({error}). Restore it from a backup."
        )
    if code in _BUSY:
        return StorageFailed(f"Another program holds the data file in {directory} ({error}).")
    if code == sqlite3.SQLITE_FULL or (code in _PERHAPS_FULL and not has_room(directory)):
        return _full(directory)
    return StorageFailed(f"The data file cannot be used: {error}.")


def has_room(directory: Path) -> bool:
    """Whether a small file can be written there: SQLite does not tell a full disk from others."""
    try:
        with tempfile.TemporaryFile(dir=directory) as probe:
            probe.write(bytes(_PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        return error.errno not in _NO_ROOM
    return True


def _full(directory: Path) -> StorageFull:
    return StorageFull(f"The disk of {directory} is full. Make room, then try again.")
