"""The storage: one connection that writes, and one more for each thread that reads.

SQLite is asked directly, in diskcache's layout. diskcache's own calls would need several statements
for a batch and one for each row of a range, and their connections can be closed only by the threads
that opened them.
"""

import sqlite3
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from threading import Lock, local
from typing import Any, Final, Literal
from weakref import WeakSet

from nkv_core.contracts.storage import Batch, Table
from nkv_core.errors import DataDamaged, DataDirError, NkvError, StorageFailed

from .checkpoints import PASSIVE, Checkpoints
from .disk import foreign_row
from .faults import meaning
from .file import connect, data_file, prepare, write_ahead_log
from .settings import LONGEST_PAGES, PAGE_BYTES, WAL_KEPT_BYTES, DiskcacheSettings
from .sql import (
    BEHIND,
    COUNT,
    DELETE_RANGE,
    GET,
    PREFIXES,
    ROWS_AT_ONCE,
    SCAN,
    SCAN_REVERSE,
    WRITER_SCHEMA,
    get_rows,
    put_rows,
    write_rows,
)

_WAL: Final = "wal"
_FULL: Final = 2


class _Connection:
    """A connection and the lock under which it is used, so that any thread may close it."""

    __slots__ = ("__weakref__", "lock", "sqlite")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.lock: Final = Lock()
        self.sqlite: sqlite3.Connection | None = connection

    def close(self) -> None:
        """Close it once whoever uses it is done."""
        with self.lock:
            if self.sqlite is not None:
                self.sqlite.close()
                self.sqlite = None

    def __del__(self) -> None:
        # A reader goes with its thread; nobody can be using it then.
        if self.sqlite is not None:
            self.sqlite.close()


class DiskcacheStorage:
    """A durable `Storage`. A batch is one transaction, on disk when `apply` returns.

    Reads take some microseconds, so they belong on the event loop; writes wait for the disk.
    """

    reads: Literal["inline"] = "inline"
    writes: Literal["thread"] = "thread"
    durable = True

    def __init__(self, settings: DiskcacheSettings) -> None:
        self._settings: Final = settings
        self._directory = Path(settings.directory or "")
        self._writer: _Connection | None = None
        self._checkpoints: Checkpoints | None = None
        self._readers: WeakSet[_Connection] = WeakSet()
        self._own = local()  # each thread's reader
        self._lifecycle: Final = Lock()

    def open(self) -> None:
        """Open the file, made where there is none. Opening what is open does nothing.

        Raises `DataDamaged` where it was not written by nkv or is not whole, `NewerFormat`,
        `DataDirBusy` where another program writes to it, `StorageFull` where the disk is full even
        though nothing is being added, and `DataDirError`. The data is not changed then.
        """
        with self._lifecycle:
            if self._writer is not None:
                return
            if not self._settings.directory:
                raise DataDirError("The setting storage.diskcache.directory is missing.")
            self._directory = Path(self._settings.directory).absolute()
            try:
                prepare(self._directory)
                self._writer = self._open_writer()
                self._checkpoints = Checkpoints(self._directory)
            except NkvError:
                raise
            except (sqlite3.Error, OSError) as error:
                found = meaning(error, self._directory)
                if type(found) is StorageFailed:
                    found = DataDirError(found.detail)
                raise found from error
            self._own = local()

    def close(self) -> None:
        """Close every connection, once its call is done. Any thread may."""
        with self._lifecycle:
            for reader in list(self._readers):
                reader.close()
            self._readers.clear()
            writer, self._writer = self._writer, None
            if self._checkpoints is not None:
                self._checkpoints.close()
            if writer is not None:
                writer.close()  # last, since it moves the write-ahead log into the file

    def get(self, table: Table, key: bytes) -> bytes | None:
        """The value of a key, or None. Raises `DataDamaged` where nkv did not write the row."""
        rows = self._read(GET, (PREFIXES[table] + key,))
        if not rows:
            return None
        raw, mode, filename, value = rows[0]
        if raw != 1 or mode != 1 or filename is not None or type(value) is not bytes:
            raise foreign_row(PREFIXES[table] + key)
        return value

    def get_many(self, table: Table, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The values of those of the keys that exist. Raises as `get`."""
        prefix = PREFIXES[table]
        found: dict[bytes, bytes] = {}
        for begin in range(0, len(keys), ROWS_AT_ONCE):
            some = [prefix + key for key in keys[begin : begin + ROWS_AT_ONCE]]
            for key, raw, mode, filename, value in self._read(get_rows(len(some)), some):
                if raw != 1 or mode != 1 or filename is not None or type(value) is not bytes:
                    raise foreign_row(key)
                found[key[1:]] = value
        return found

    def apply(self, batch: Batch) -> None:
        """Make all writes of the batch in one transaction, on disk when this returns."""
        cells: list[bytes | None] = []
        deletes, size = False, 0
        for table, writes in batch.writes.items():
            prefix = PREFIXES[table]
            for key, value in writes.items():
                cells += (prefix + key, value)
                if value is None:
                    deletes = True
                else:
                    size += len(value)
        statement = write_rows if deletes else put_rows
        parts = [
            cells[begin : begin + 2 * ROWS_AT_ONCE]
            for begin in range(0, len(cells), 2 * ROWS_AT_ONCE)
        ]
        if parts:
            self._write([(statement(len(part) // 2), part) for part in parts])
            # A row has its leaf and that of the index, and long values have pages of their own.
            self._note(len(cells) + size // PAGE_BYTES)

    def scan(
        self,
        table: Table,
        start: bytes = b"",
        stop: bytes | None = None,
        *,
        limit: int,
        reverse: bool = False,
    ) -> list[tuple[bytes, bytes]]:
        """At most `limit` pairs with `start <= key < stop`, in key order or the reverse of it."""
        bounds = (*_bounds(table, start, stop), max(limit, 0))
        rows = self._read(SCAN_REVERSE if reverse else SCAN, bounds)
        pairs = []
        for key, raw, mode, filename, value in rows:
            if raw != 1 or mode != 1 or filename is not None or type(value) is not bytes:
                raise foreign_row(key)
            pairs.append((key[1:], value))
        return pairs

    def count(self, table: Table) -> int:
        """How many keys the table has, as the file keeps it."""
        rows = self._read(COUNT, (PREFIXES[table],))
        if not rows:
            raise DataDamaged("The data file has lost its count of keys.")
        return int(rows[0][0])

    def delete_range(self, table: Table, start: bytes, stop: bytes | None) -> int:
        """Delete all keys with `start <= key < stop` in one transaction; returns how many.

        It takes some 5 to 20 microseconds a key, and room in the write-ahead log for every page
        that it touches. Reading goes on meanwhile, other writes wait: delete millions in parts.
        """
        deleted = self._write([(DELETE_RANGE, _bounds(table, start, stop))])
        self._note(2 * deleted)
        return deleted

    def _open_writer(self) -> _Connection:
        connection = connect(data_file(self._directory), "rw", cached_statements=2 * ROWS_AT_ONCE)
        try:
            connection.execute(f"PRAGMA cache_size = -{self._settings.page_cache_bytes // 1024}")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {LONGEST_PAGES}")
            connection.execute(f"PRAGMA journal_size_limit = {WAL_KEPT_BYTES}")
            for statement in WRITER_SCHEMA:
                connection.execute(statement)
            # Without these two an answered write is not a durable one, so look rather than trust.
            (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
            (synchronous,) = connection.execute("PRAGMA synchronous").fetchone()
            if (mode, synchronous) != (_WAL, _FULL):
                raise DataDirError(
                    f"{self._directory} is on a file system without shared memory: SQLite runs in "
                    f"mode {mode!r}, synchronous {synchronous}. Use a local one."
                )
        except BaseException:
            connection.close()
            raise
        return _Connection(connection)

    def _reader(self) -> _Connection:
        """This thread's reader."""
        try:
            reader: _Connection = self._own.reader
        except AttributeError:
            with self._lifecycle:
                if self._writer is None:
                    raise StorageFailed("The storage is not open.") from None
                try:
                    connection = connect(data_file(self._directory), "ro")
                except sqlite3.Error as error:
                    raise meaning(error, self._directory) from error
                reader = self._own.reader = _Connection(connection)
                self._readers.add(reader)
            # Every commit empties a reader's own cache, so it reads through a map of the file.
            self._read(f"PRAGMA mmap_size = {self._settings.mapped_bytes}", ())
        return reader

    def _read(self, statement: str, parameters: Sequence[bytes | int]) -> list[Any]:
        reader = self._reader()
        with reader.lock:
            if reader.sqlite is None:
                raise StorageFailed("The storage is closed.")
            try:
                return reader.sqlite.execute(statement, parameters).fetchall()
            except (sqlite3.Error, OverflowError) as error:
                raise meaning(error, self._directory) from error

    def _write(self, statements: Sequence[tuple[str, Sequence[bytes | None]]]) -> int:
        """Run the statements in one transaction; returns how many rows the last one changed."""
        writer = self._writer
        if writer is None:
            raise StorageFailed("The storage is not open.")
        with writer.lock:
            connection = writer.sqlite
            if connection is None:
                raise StorageFailed("The storage is closed.")
            try:
                self._bound_log(connection)
                if len(statements) == 1:
                    return connection.execute(*statements[0]).rowcount  # a transaction by itself
                connection.execute("BEGIN IMMEDIATE")
                for statement in statements:
                    changed = connection.execute(*statement).rowcount
                connection.execute("COMMIT")
                return changed
            except (sqlite3.Error, OSError, OverflowError) as error:
                raise meaning(error, self._directory) from error
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def _note(self, pages: int) -> None:
        checkpoints = self._checkpoints
        if checkpoints is not None:
            checkpoints.note(pages)

    def _bound_log(self, connection: sqlite3.Connection) -> None:
        """Let the log begin anew where it can. Refuse to write while another program's open read
        lets it grow past its bound.

        Our own reads are over when they return and do not pin it.
        """
        checkpoints = self._checkpoints
        if checkpoints is not None and checkpoints.last:
            checkpoints.last = False
            connection.execute(PASSIVE).fetchone()
        if write_ahead_log(self._directory).stat().st_size <= self._settings.max_wal_bytes:
            return
        with nullcontext() if checkpoints is None else checkpoints.making:
            (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise StorageFailed(
                f"Another program keeps reading the data file in {self._directory}, so that its "
                "write-ahead log only grows. End that program."
            )


def _bounds(table: Table, start: bytes, stop: bytes | None) -> tuple[bytes, bytes]:
    prefix = PREFIXES[table]
    return prefix + start, BEHIND[table] if stop is None else prefix + stop
