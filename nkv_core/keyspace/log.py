"""The change log: every committed change, stored with the data, bounded by bytes and age.

A row holds the changes of one group of writes, so that a durable put costs two rows and many puts
together little more than one each. Its key is its first revision. Its value begins with a header:
how many bytes the log has ever had up to the row's end, and when the row was written. With these
the size of the log, its age and the place to cut it are found by looking at a few rows, however
many there are.

What is forgotten is noted before it is deleted (`forgotten`): a reader whose place lies before it
is told of a gap, and never misses anything in silence.
"""

import struct
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from nkv_core.contracts.storage import Batch, Storage
from nkv_core.errors import StorageFailed
from nkv_core.keyspace.layout import META_LOG, chunks, pack_number, unpack_number
from nkv_core.records import Change, pack_changes, unpack_changes

_HEADER: Final = struct.Struct(">QQQ")  # bytes so far, milliseconds since 1970, timestamp
_MARK: Final = struct.Struct(">QQ")  # last revision forgotten, timestamp then
_ROW_BYTES: Final = 1024 * 1024
_CHANGE_BYTES: Final = 64  # what a change takes besides its key and value, roughly
_CUT_BYTES: Final = 1024 * 1024  # deleted at a time: it must not hold up the writers for long
_KEY_BYTES: Final = 8
#: What a row takes besides its key and value, roughly: it is most where the storage is in memory,
#: where two objects and a place in a table are made for it.
AROUND_BYTES: Final = 150
_ROW_OVERHEAD: Final = AROUND_BYTES + _KEY_BYTES + _HEADER.size


class Row(msgspec.Struct, frozen=True, gc=False):
    """A row about to be written, and what the log is once it is there."""

    key: bytes
    value: bytes
    total: int


class ChangeLog:
    """The log of one keyspace. The thread that commits changes it; any thread reads."""

    __slots__ = ("_first", "_storage", "_total", "forgotten", "oldest")

    def __init__(self, storage: Storage) -> None:
        self._storage: Final = storage
        self._first = 0  # bytes that were in the log before its first row
        self._total = 0  # bytes up to the end of its last row
        #: The last revision of which the log may know nothing any more.
        self.forgotten = 0
        #: When the first row was written, in milliseconds since 1970; None where there is none.
        self.oldest: int | None = None

    def load(self) -> tuple[int, int]:
        """Take up what is stored; returns the last revision and the greatest timestamp known.

        Raises `StorageFailed` where the log is damaged.
        """
        revision = timestamp = 0
        mark = self._storage.get("meta", META_LOG)
        if mark is not None:
            if len(mark) != _MARK.size:
                raise StorageFailed("The stored change log is damaged: its mark is not readable.")
            revision, timestamp = _MARK.unpack(mark)
            self.forgotten = revision
        last = self._storage.scan("changes", limit=1, reverse=True)
        if last:
            header, changes = _unpack(last[0][1])
            self._total = header[0]
            first = _place(self._storage.scan("changes", limit=1)[0])
            self._first, self.oldest = first.begin, first.written
            # A row forgotten but not yet deleted when the node died has nothing new to say.
            revision = max(revision, changes[-1].revision)
            timestamp = max(timestamp, header[2])
        return revision, timestamp

    def begin_at(self, total: int, forgotten: int) -> None:
        """Go on, in an empty log, from where another had come to: `total` bytes, and everything up
        to the revision `forgotten`.
        """
        self._first = self._total = total
        self.forgotten = forgotten

    def total_at(self, revision: int) -> int:
        """Bytes that the log had ever had when it had come to this revision."""
        last = self._storage.scan("changes", b"", pack_number(revision + 1), limit=1, reverse=True)
        return _unpack_header(last[0][1])[0] if last else 0

    @property
    def size(self) -> int:
        """Bytes in the log."""
        return self._total - self._first

    def rows(self, changes: list[Change], now: int, timestamp: int) -> list[Row]:
        """The rows for these changes; `now` in milliseconds, `timestamp` the greatest one given."""
        if len(changes) == 1:
            return [self.row(changes[0], now, timestamp)]
        rows: list[Row] = []
        total = self._total
        for part in _parts(changes):
            rows.append(_row(part, total, now, timestamp))
            total = rows[-1].total
        return rows

    def row(self, change: Change, now: int, timestamp: int) -> Row:
        """The row for one change."""
        return _row([change], self._total, now, timestamp)

    def grown(self, total: int, now: int) -> None:
        """Note that rows were written, how many bytes the last one says, and when it was."""
        self._total = total
        if self.oldest is None:
            self.oldest = now

    def read(self, since: int, until: int) -> Iterator[list[Change]]:
        """The changes behind revision `since` up to `until`, some at a time."""
        # The row that holds the next revision begins with it or before it.
        found = self._storage.scan(
            "changes", b"", pack_number(since + 2), limit=1, reverse=True
        ) or self._storage.scan("changes", limit=1)
        if not found:
            return
        start, stop = found[0][0], pack_number(until + 1)
        for pairs in chunks(self._storage, "changes", start, stop, first=16):
            for _, value in pairs:
                changes = _unpack(value)[1]
                if changes[0].revision <= since or changes[-1].revision > until:
                    changes = [change for change in changes if since < change.revision <= until]
                if changes:
                    yield changes

    def trim(self, most_bytes: int, oldest: int, last: int, timestamp: int) -> bool:
        """Forget rows until the log has `most_bytes` at most, and those written before `oldest`.

        A bounded part of that is done at a time; returns whether there is more to do. `last` is the
        last committed revision, `timestamp` the greatest known: the log is where these are kept, so
        its mark must remember them once no row is left.
        """
        if not (first := self._storage.scan("changes", limit=1)):
            return False
        enough = self._total - most_bytes

        def spent(row: _Place) -> bool:
            return row.begin < enough or row.written < oldest

        most = self._first + _CUT_BYTES
        cut = self._find(_place(first[0]), last, lambda row: row.begin < most and spent(row))
        if cut is None:
            self._forget(last, timestamp, None)
            self._first, self.oldest = self._total, None
            return False
        if cut.key == first[0][0]:
            return False
        self._forget(unpack_number(cut.key) - 1, timestamp, cut.key)
        self._first, self.oldest = cut.begin, cut.written
        return spent(cut)

    def _find(self, row: "_Place", last: int, goes: "Callable[[_Place], bool]") -> "_Place | None":
        """The first row, from `row` on, that does not go; found by halving. None where all go."""
        if not goes(row):
            return row
        low, high = unpack_number(row.key) + 1, last + 1  # what is sought begins in there
        found = None
        while low < high:
            middle = (low + high) // 2
            pairs = self._storage.scan("changes", pack_number(middle), limit=1)
            if not pairs:
                high = middle
                continue
            row = _place(pairs[0])
            if goes(row):
                low = unpack_number(row.key) + 1
            else:
                found, high = row, middle
        return found

    def _forget(self, revision: int, timestamp: int, stop: bytes | None) -> None:
        """Note what is forgotten, then delete it: in this order nothing is lost in silence."""
        batch = Batch()
        batch.put("meta", META_LOG, pack_mark(revision, timestamp))
        self._storage.apply(batch)
        self.forgotten = max(self.forgotten, revision)
        self._storage.delete_range("changes", b"", stop)


class _Place(msgspec.Struct, frozen=True, gc=False):
    """Where a row is, and when it was written."""

    key: bytes
    begin: int  #: bytes that the log ever had before it
    written: int  #: milliseconds since 1970


def pack_mark(forgotten: int, timestamp: int) -> bytes:
    """What the row `META_LOG` has: up to where the log is forgotten, and the greatest timestamp."""
    return _MARK.pack(forgotten, timestamp)


def _place(pair: tuple[bytes, bytes]) -> _Place:
    key, value = pair
    total, written, _ = _unpack_header(value)
    return _Place(key, total - AROUND_BYTES - _KEY_BYTES - len(value), written)


def _row(part: list[Change], total: int, now: int, timestamp: int) -> Row:
    packed = pack_changes(part)
    total += _ROW_OVERHEAD + len(packed)
    return Row(pack_number(part[0].revision), _HEADER.pack(total, now, timestamp) + packed, total)


def _parts(changes: list[Change]) -> Iterator[list[Change]]:
    """Parts of about a mebibyte, never empty."""
    part: list[Change] = []
    size = 0
    for change in changes:
        part.append(change)
        size += _CHANGE_BYTES + len(change.key) + len(change.value or b"")
        if size >= _ROW_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _unpack_header(value: bytes) -> tuple[int, int, int]:
    try:
        return _HEADER.unpack_from(value)
    except struct.error:
        raise StorageFailed("The stored change log is damaged: a row has no header.") from None


def _unpack(value: bytes) -> tuple[tuple[int, int, int], list[Change]]:
    header = _unpack_header(value)
    changes = unpack_changes(value[_HEADER.size :])
    if not changes:
        raise StorageFailed("The stored change log is damaged: a row has no changes.")
    return header, changes
