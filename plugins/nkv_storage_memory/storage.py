"""Six tables in memory: a dict for each, and the order of its keys beside it.

The order is kept lazily. A write only notes which keys came or went; the index is brought up to
date by the next reader that needs the order, or once enough keys are noted. The bound on those is
what keeps a scan behind a million writes from stalling the event loop.
"""

from collections.abc import Sequence
from itertools import islice
from threading import Lock
from typing import Final, Literal

import msgspec

from nkv_core.contracts.storage import TABLES, Batch, Table
from nkv_core.errors import StorageFailed, StorageFull

from .key_index import KeyIndex

_NOTED_KEYS: Final = 1024  # bounds what a scan has to put in order first: about a millisecond
_PAIR_BYTES: Final = 150  # of Python's objects and tables around a pair, measured


class MemorySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Section `storage.memory`."""

    max_bytes: int = 0  #: of memory for the data, roughly; 0 is no limit


class _Table:
    """One table. The storage's lock is held around every call."""

    __slots__ = ("_noted", "_order", "pairs")

    def __init__(self) -> None:
        self.pairs: dict[bytes, bytes] = {}
        self._order = KeyIndex()
        self._noted: set[bytes] = set()  # may have come or gone since `_order` was brought up

    def write(self, writes: dict[bytes, bytes | None]) -> None:
        """Set keys, and delete those with a value of None."""
        pairs, noted = self.pairs, self._noted
        for key, value in writes.items():
            if value is None:
                if key in pairs:
                    noted.add(key)
                    del pairs[key]
            else:
                if key not in pairs:
                    noted.add(key)
                pairs[key] = value
        if len(noted) > _NOTED_KEYS:
            self.ordered()

    def ordered(self) -> KeyIndex:
        """The order, up to date."""
        if len(self._noted) > max(len(self.pairs) // 4, _NOTED_KEYS):
            self._order = KeyIndex(self.pairs)
        else:
            for key in self._noted:
                if key in self.pairs:
                    self._order.add(key)
                else:
                    self._order.discard(key)
        self._noted = set()
        return self._order


class MemoryStorage:
    """A `Storage` in memory. Everything is quick enough to be called on the event loop; other
    threads may call it too.
    """

    reads: Literal["inline"] = "inline"
    writes: Literal["inline"] = "inline"
    durable = False

    def __init__(self, settings: MemorySettings | None = None) -> None:
        self._max_bytes: Final = (settings or MemorySettings()).max_bytes
        self._bytes = 0  # of the data; counted where there is a limit
        self._lock: Final = Lock()
        self._tables: dict[Table, _Table] = {}  # none while it is not open

    def open(self) -> None:
        """Make six empty tables. Opening what is open does nothing."""
        with self._lock:
            if not self._tables:
                self._tables = {table: _Table() for table in TABLES}
                self._bytes = 0

    def close(self) -> None:
        """Forget everything."""
        with self._lock:
            self._tables = {}

    def get(self, table: Table, key: bytes) -> bytes | None:
        """The value of a key, or None."""
        with self._lock:
            try:
                return self._tables[table].pairs.get(key)
            except KeyError:
                raise _not_open() from None

    def get_many(self, table: Table, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The values of those of the keys that exist."""
        with self._lock:
            pairs = self._table(table).pairs
            return {key: pairs[key] for key in keys if key in pairs}

    def apply(self, batch: Batch) -> None:
        """Make all writes of the batch. Raises `StorageFull` past `max_bytes`."""
        with self._lock:
            tables = self._tables
            try:
                work = [(tables[table], writes) for table, writes in batch.writes.items()]
            except KeyError:
                raise _not_open() from None
            if self._max_bytes:
                self._make_room(work)
            for table, writes in work:
                table.write(writes)

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
        with self._lock:
            here = self._table(table)
            order = here.ordered()
            keys = order.descending(start, stop) if reverse else order.ascending(start, stop)
            return [(key, here.pairs[key]) for key in islice(keys, max(limit, 0))]

    def count(self, table: Table) -> int:
        """How many keys the table has."""
        with self._lock:
            return len(self._table(table).pairs)

    def delete_range(self, table: Table, start: bytes, stop: bytes | None) -> int:
        """Delete all keys with `start <= key < stop`; returns how many there were.

        It takes about a microsecond a key, during which nobody else gets a turn: delete millions
        in several ranges.
        """
        with self._lock:
            here = self._table(table)
            order = here.ordered()
            gone = list(order.ascending(start, stop))
            for key in gone:
                self._bytes -= _PAIR_BYTES + len(key) + len(here.pairs.pop(key))
            order.remove_range(start, stop)
            return len(gone)

    def _make_room(self, work: "list[tuple[_Table, dict[bytes, bytes | None]]]") -> None:
        grown = sum(
            _growth(table.pairs, key, value)
            for table, writes in work
            for key, value in writes.items()
        )
        if self._bytes + grown > self._max_bytes and grown > 0:
            raise StorageFull(f"Memory for data is full: {self._max_bytes} bytes.")
        self._bytes += grown

    def _table(self, table: Table) -> _Table:
        try:
            return self._tables[table]
        except KeyError:
            raise _not_open() from None


def _not_open() -> StorageFailed:
    return StorageFailed("The storage is not open.")


def _growth(pairs: dict[bytes, bytes], key: bytes, value: bytes | None) -> int:
    """By how many bytes a write makes the table grow, or shrink where it is negative."""
    before = pairs.get(key)
    was = 0 if before is None else _PAIR_BYTES + len(key) + len(before)
    return (0 if value is None else _PAIR_BYTES + len(key) + len(value)) - was
