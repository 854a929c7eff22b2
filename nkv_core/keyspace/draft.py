"""A draft: what one group of writes is going to change, on top of what is committed.

Each write of the group is planned on it in order of arrival and sees what those before it leave.
One that fails is undone without a trace. What remains becomes one batch for the storage.
"""

from typing import Any, Final, cast

from nkv_core.contracts.storage import Batch, Table
from nkv_core.keys import prefix_range
from nkv_core.keyspace.book import Book
from nkv_core.keyspace.layout import (
    META_RECLAIM,
    chunks,
    expiry_key,
    range_tombstone_key,
    state_key,
    tombstone_key,
)
from nkv_core.keyspace.log import Row
from nkv_core.records import (
    Change,
    RangeTombstone,
    Record,
    Tombstone,
    pack_record,
    pack_tombstone,
    unpack_record,
    unpack_tombstone,
)

_ABSENT: Final = object()


class Draft:
    """Keys are given as text and as the bytes that the storage knows them by."""

    __slots__ = (
        "_base",
        "_buried",
        "_fetched",
        "_looked",
        "_mark",
        "_packed",
        "_undo",
        "book",
        "changes",
        "clears",
        "kept",
        "last_clear",
        "next_expiry",
        "now",
        "records",
        "revision",
        "rows",
        "state_sizes",
        "tombstones",
    )

    def __init__(self, book: Book) -> None:
        self.book: Final = book
        #: Milliseconds since 1970. What has expired by now has expired for the whole group.
        self.now: Final = book.wall()
        self.revision = book.revision
        self.clears = book.clears.active
        self.kept = book.kept
        self.last_clear: RangeTombstone | None = None
        self.next_expiry = book.next_expiry
        self.changes: Final[list[Change]] = []
        #: Records as the group leaves them: those that it puts, and None for those that it removes.
        self.records: Final[dict[bytes, Record | None]] = {}
        self.tombstones: Final[dict[bytes, Tombstone]] = {}
        #: Rows of other kinds: what they are set to, or None where they are deleted.
        self.rows: Final[dict[tuple[Table, bytes], bytes | None]] = {}
        self.state_sizes: Final[dict[str, int]] = {}
        self._base: Final[dict[bytes, Record | None]] = {}  # as the storage has them
        self._fetched: Final[set[bytes]] = set()
        self._packed: Final[dict[bytes, bytes]] = {}  # of those fetched that are there
        self._looked: Final[set[bytes]] = set()  # rows of tombstones, likewise
        self._buried: Final[dict[bytes, bytes]] = {}
        self._undo: Final[list[tuple[dict[Any, Any], Any, Any]]] = []
        self._mark: tuple[Any, ...] = ()

    # --- one write of the group ---------------------------------------------------------------

    def begin(self) -> None:
        """Begin a write: `undo` goes back to here."""
        self._undo.clear()
        self._mark = (
            self.revision,
            len(self.changes),
            self.clears,
            self.kept,
            self.last_clear,
            self.next_expiry,
        )

    def undo(self) -> None:
        """Take back all that was drafted since `begin`."""
        while self._undo:
            table, key, value = self._undo.pop()
            if value is _ABSENT:
                del table[key]
            else:
                table[key] = value
        revision, count, self.clears, self.kept, self.last_clear, self.next_expiry = self._mark
        self.revision = revision
        del self.changes[count:]

    def _set(self, table: dict[Any, Any], key: Any, value: Any) -> None:
        self._undo.append((table, key, table.get(key, _ABSENT)))
        table[key] = value

    # --- looking ------------------------------------------------------------------------------

    def stored(self, encoded: bytes, key: str) -> Record | None:
        """The record that the storage has or will have: expired and hidden ones too."""
        drafted = self.records.get(encoded, _ABSENT)
        return self.base(encoded, key) if drafted is _ABSENT else cast("Record | None", drafted)

    def base(self, encoded: bytes, key: str) -> Record | None:
        """The record that the storage has now."""
        known = self._base.get(encoded, _ABSENT)
        if known is not _ABSENT:
            return cast("Record | None", known)
        if encoded in self._fetched:
            packed = self._packed.get(encoded)
        else:
            packed = self.book.storage.get("records", encoded)
        record = None if packed is None else unpack_record(key, packed)
        self._base[encoded] = record
        return record

    def fetch(self, keys: list[bytes]) -> None:
        """Look up at once the records that the group is going to look at."""
        self._packed.update(self.book.storage.get_many("records", keys))
        self._fetched.update(keys)

    def fetch_tombstones(self, keys: list[bytes]) -> None:
        """Look up at once the tombstones that the group is going to look at."""
        rows = [tombstone_key(key) for key in keys]
        for row, packed in self.book.storage.get_many("tombstones", rows).items():
            self._buried[row] = packed
        self._looked.update(rows)

    def find(self, encoded: bytes, key: str) -> Record | None:
        """The record of a key unless a clear hides it; it may be past its expiry."""
        record = self.stored(encoded, key)
        if record is not None and self.clears and self.clears.hides(record):
            return None
        return record

    def tombstone(self, encoded: bytes, key: str) -> Tombstone | None:
        """The tombstone of a key."""
        drafted = self.tombstones.get(encoded)
        if drafted is not None:
            return drafted
        row = tombstone_key(encoded)
        if row in self._looked:
            packed = self._buried.get(row)
        else:
            packed = self.book.storage.get("tombstones", row)
        return None if packed is None else unpack_tombstone(key, packed)

    def row(self, table: Table, key: bytes) -> bytes | None:
        """A row of another kind."""
        drafted = self.rows.get((table, key), _ABSENT)
        return self.book.storage.get(table, key) if drafted is _ABSENT else cast("bytes", drafted)

    def state_size(self, plugin: str) -> int:
        """Bytes of the keys and values in a plugin's state."""
        size = self.state_sizes.get(plugin, self.book.state_sizes.get(plugin))
        if size is None:
            start = state_key(plugin)
            pairs = chunks(self.book.storage, "state", *prefix_range(start))
            size = sum(len(key) - len(start) + len(value) for some in pairs for key, value in some)
            self.book.state_sizes[plugin] = size
        return size

    # --- changing -----------------------------------------------------------------------------

    def next_revision(self) -> int:
        """A revision of its own for each change."""
        self.revision += 1
        return self.revision

    def keep(self, encoded: bytes, record: Record) -> None:
        """Set the record of a key."""
        self._set(self.records, encoded, record)

    def drop(self, encoded: bytes) -> None:
        """Remove the record of a key, which a clear hides or a tombstone replaces."""
        self._set(self.records, encoded, None)

    def drop_seen(self, encoded: bytes, record: Record) -> None:
        """The same for a record that was just read from the storage."""
        self._base[encoded] = record
        self.drop(encoded)

    def bury(self, encoded: bytes, tombstone: Tombstone) -> None:
        """Remove the record of a key and leave a tombstone."""
        if self.stored(encoded, tombstone.key) is not None:
            self.drop(encoded)
        self._set(self.tombstones, encoded, tombstone)

    def clear(self, clear: RangeTombstone) -> None:
        """Hide all records that the range tombstone covers."""
        for other in self.kept.covered(clear):
            self.set_row("tombstones", range_tombstone_key(other.prefix.encode()), None)
        for other in self.clears.covered(clear):
            self.set_row("meta", META_RECLAIM + other.prefix.encode(), None)
        encoded = clear.prefix.encode()
        self.set_row("tombstones", range_tombstone_key(encoded), pack_tombstone(clear))
        self.set_row("meta", META_RECLAIM + encoded, b"")
        self.clears = self.clears.with_(clear)
        self.kept = self.kept.with_(clear)
        self.last_clear = clear

    def set_row(self, table: Table, key: bytes, value: bytes | None) -> None:
        """Set or delete a row of another kind."""
        self._set(self.rows, (table, key), value)

    def set_state_size(self, plugin: str, size: int) -> None:
        """Note the size of a plugin's state."""
        self._set(self.state_sizes, plugin, size)

    # --- the outcome --------------------------------------------------------------------------

    def batch(self, log: list[Row]) -> tuple[Batch, int | None]:
        """Everything as one batch, with these rows of the log; and the earliest expiry in it."""
        batch = Batch()
        # First, so that a row which is cleaned away here and written below ends up written.
        for (table, key), value in self.rows.items():
            batch.writes.setdefault(table, {})[key] = value
        earliest = self._write_records(batch)
        for encoded, tombstone in self.tombstones.items():
            # One that was overtaken within the group by a new record has nothing left to say.
            if self.records.get(encoded) is None:
                batch.put("tombstones", tombstone_key(encoded), pack_tombstone(tombstone))
        if log:
            batch.writes.setdefault("changes", {}).update({row.key: row.value for row in log})
        return batch, earliest

    def _write_records(self, batch: Batch) -> int | None:
        records: dict[bytes, bytes | None] = {}
        expiry: dict[bytes, bytes | None] = {}
        earliest: int | None = None
        # The sweeper takes the row of a record that a clear hides, and leaves the record.
        swept = bool(self.book.clears.active)
        for encoded, record in self.records.items():
            base = self._base.get(encoded)
            if record is not None:
                records[encoded] = pack_record(record)
            elif base is not None:
                records[encoded] = None
            old = None if base is None else base.expires
            new = None if record is None else record.expires
            if old is not None and old != new:
                expiry[expiry_key(old, encoded)] = None
            if new is not None and (old != new or swept):
                expiry[expiry_key(new, encoded)] = b""
            if new is not None and (earliest is None or new < earliest):
                earliest = new
        if records:
            batch.writes["records"] = records
        if expiry:
            batch.writes.setdefault("expiry", {}).update(expiry)
        return earliest
