"""A storage in one SQLite file: what `nkv_core.contracts.storage` asks for, and nothing else."""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from nkv_core.contracts.storage import TABLES, Batch, Table, Where
from nkv_core.errors import DataDamaged, StorageFailed, StorageFull

_CREATE: Final = "CREATE TABLE IF NOT EXISTS {} (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID"


class SqliteStorage:
    """One file, one SQL table for each of nkv's; a connection for each thread that calls."""

    reads: Where = "inline"
    writes: Where = "thread"
    durable = True

    def __init__(self, directory: Path) -> None:
        self._path = directory / "records.sqlite"
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._open = False

    def open(self) -> None:
        """Create the file and its tables where they are missing."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._open = True
        try:
            with _errors(), self._connection() as connection:
                for table in TABLES:
                    connection.execute(_CREATE.format(table))
        except StorageFailed:
            self.close()
            raise

    def close(self) -> None:
        """Close the connections of all threads."""
        with self._lock:
            self._open = False
            for connection in self._connections:
                connection.close()
            self._connections.clear()
            self._local = threading.local()

    def get(self, table: Table, key: bytes) -> bytes | None:
        """The value of a key, or None."""
        with _errors():
            query = f"SELECT value FROM {table} WHERE key = ?"  # one of six names
            row = self._connection().execute(query, (key,)).fetchone()
        return None if row is None else row[0]

    def get_many(self, table: Table, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The values of those of the keys that exist."""
        found = ((key, self.get(table, key)) for key in keys)
        return {key: value for key, value in found if value is not None}

    def apply(self, batch: Batch) -> None:
        """Make all writes in one transaction."""
        with _errors(), self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            for table, writes in batch.writes.items():
                puts = [(key, value) for key, value in writes.items() if value is not None]
                deletes = [(key,) for key, value in writes.items() if value is None]
                connection.executemany(f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", puts)
                connection.executemany(f"DELETE FROM {table} WHERE key = ?", deletes)

    def scan(
        self,
        table: Table,
        start: bytes = b"",
        stop: bytes | None = None,
        *,
        limit: int,
        reverse: bool = False,
    ) -> list[tuple[bytes, bytes]]:
        """Pairs of a range, in key order or the reverse of it."""
        where, bounds = _range(start, stop)
        order = "DESC" if reverse else "ASC"
        query = f"SELECT key, value FROM {table} {where} ORDER BY key {order} LIMIT ?"
        with _errors():
            return self._connection().execute(query, (*bounds, limit)).fetchall()

    def count(self, table: Table) -> int:
        """How many keys the table has."""
        with _errors():
            query = f"SELECT COUNT(*) FROM {table}"
            (count,) = self._connection().execute(query).fetchone()
        return int(count)

    def delete_range(self, table: Table, start: bytes, stop: bytes | None) -> int:
        """Delete a range in one transaction."""
        where, bounds = _range(start, stop)
        with _errors(), self._connection() as connection:
            return connection.execute(f"DELETE FROM {table} {where}", bounds).rowcount

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            with self._lock:
                if not self._open:
                    raise StorageFailed("The storage is closed.")
                # Another thread only ever closes it, and only once nobody uses it any more.
                connection = sqlite3.connect(self._path, check_same_thread=False, timeout=5)
                self._connections.append(connection)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            self._local.connection = connection
        return connection


def _range(start: bytes, stop: bytes | None) -> tuple[str, tuple[bytes, ...]]:
    if stop is None:
        return "WHERE key >= ?", (start,)
    return "WHERE key >= ? AND key < ?", (start, stop)


@contextmanager
def _errors() -> Iterator[None]:
    """Name SQLite's errors as nkv does."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise StorageFull from error
        raise StorageFailed(f"SQLite says: {error}.") from error
    except sqlite3.DatabaseError as error:
        raise DataDamaged(f"SQLite says: {error}.") from error
    except sqlite3.Error as error:
        raise StorageFailed(f"SQLite says: {error}.") from error
