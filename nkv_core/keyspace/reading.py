"""Reading: one record, pages of records, how many there are, pages of changes.

Longer reads are generators that yield between their steps, so that whoever drives them can let
others have a turn: the event loop where the storage reads inline, its worker thread otherwise.
"""

from collections.abc import Generator
from typing import Final, TypeVar

from nkv_core.contracts.keyspace import ChangePage, Page
from nkv_core.contracts.storage import Storage
from nkv_core.errors import InvalidToken
from nkv_core.keys import Pattern, prefix_range
from nkv_core.keyspace.book import Book
from nkv_core.keyspace.clears import NO_CLEARS, ClearSet
from nkv_core.keyspace.layout import Pairs, behind, expiry_key
from nkv_core.records import Change, Record, Token, unpack_record

T = TypeVar("T")
#: Yields between its steps, and returns a result.
Steps = Generator[None, None, T]

_PAGE_BYTES: Final = 8 * 1024 * 1024
_CHUNK_BYTES: Final = 1024 * 1024
_FIRST_PAIRS: Final = 64
_MOST_PAIRS: Final = 1000
_CHANGES_A_STEP: Final = 256
_COUNTS: Final = 10  # so often is counted where writes come in between


class Reader:
    """Reads what is committed. Its methods may be called on any thread."""

    __slots__ = ("_book", "_clears", "_get_row", "_storage", "_wall")

    def __init__(self, book: Book) -> None:
        self._book: Final = book
        self._clears: Final = book.clears
        self._storage: Final[Storage] = book.storage
        self._wall: Final = book.wall
        self._get_row: Final = book.storage.get

    def get(self, key: str, encoded: bytes) -> Record | None:
        """The record of a key, or None."""
        if self._clears.quiet:
            # Should a clear be committed from here on, this read simply came before it.
            packed, clears = self._get_row("records", encoded), NO_CLEARS
        else:
            packed, clears = self._clears.read(
                self._storage, lambda: self._get_row("records", encoded)
            )
        if packed is None:
            return None
        record = unpack_record(key, packed)
        if clears and clears.hides(record):
            return None
        if record.expires is not None and record.expires <= self._wall():
            return None
        return record

    def scan(self, pattern: Pattern, after: bytes | None, limit: int) -> Steps[Page]:
        """Records that match, in key order. A page of large records may have fewer than `limit`."""
        if pattern.exact:
            encoded = pattern.text.encode()
            record = self.get(pattern.text, encoded)
            if record is None or (after is not None and encoded <= after):
                return Page([], None)
            return Page([record], None)
        start, stop = prefix_range(pattern.prefix.encode())
        if after is not None:
            start = max(start, behind(after))
        records: list[Record] = []
        room = _PAGE_BYTES
        asked = min(limit + 1, _FIRST_PAIRS)
        while True:
            pairs, clears = self._chunk(start, stop, asked)
            now = self._wall()
            for encoded, packed in pairs:
                if len(records) == limit or (room <= 0 and records):
                    return Page(records, records[-1].key)
                key = encoded.decode()
                if not pattern.matches(key):
                    continue
                record = unpack_record(key, packed)
                if record.expired(now) or (clears and clears.hides(record)):
                    continue
                records.append(record)
                room -= len(packed)
            if len(pairs) < asked:
                return Page(records, None)
            start = behind(pairs[-1][0])
            asked = _next_chunk(pairs)
            yield

    def _chunk(self, start: bytes, stop: bytes | None, limit: int) -> tuple[Pairs, ClearSet]:
        return self._clears.read(
            self._storage, lambda: self._storage.scan("records", start, stop, limit=limit)
        )

    def count(self) -> Steps[int]:
        """How many records there are, without those that have expired or are hidden by a clear.

        Where nothing is being cleared or expiring, no record is read for it. Nothing may be
        reclaimed meanwhile.
        """
        _, clears = self._clears.read(self._storage, lambda: None)
        hidden = 0
        for prefix in _disjoint([clear.prefix for clear in clears]):
            start, stop = prefix_range(prefix.encode())
            asked = _FIRST_PAIRS
            while pairs := self._storage.scan("records", start, stop, limit=asked):
                hidden += sum(clears.hides(unpack_record(k.decode(), v)) for k, v in pairs)
                start = behind(pairs[-1][0])
                asked = _next_chunk(pairs)
                yield
        total = expired = 0
        for _ in range(_COUNTS):  # what is swept in between would be counted as if it were there
            commits = self._book.commits
            total = self._storage.count("records")
            expired = yield from self._expired(clears)
            if self._book.commits == commits:
                break
        return total - hidden - expired

    def _expired(self, clears: ClearSet) -> Steps[int]:
        """How many records are past their expiry, and not hidden besides."""
        earliest = self._book.next_expiry
        now = self._wall()
        if earliest is None or earliest > now:
            return 0
        count = 0
        start, stop = b"", expiry_key(now + 1, b"")
        while rows := self._storage.scan("expiry", start, stop, limit=_MOST_PAIRS):
            for row, _ in rows:
                packed = self._storage.get("records", row[8:]) if clears else None
                if packed is None or not clears.hides(unpack_record(row[8:].decode(), packed)):
                    count += 1
            start = behind(rows[-1][0])
            yield
        return count

    def changes(self, since: Token, until: int, pattern: Pattern, limit: int) -> Steps[ChangePage]:
        """Changes behind `since` and up to the revision `until`.

        Raises `InvalidToken` where `since` is a later revision of this history.
        """
        log, history = self._book.log, self._book.history
        place, gap = since.revision, since.history != history
        if gap:
            place = 0
        elif place > until:
            raise InvalidToken(f"The token is ahead of this history: {since}.")
        found: list[Change] = []
        room = _PAGE_BYTES
        seen = 0
        while not found:
            if place < log.forgotten:
                place, gap = log.forgotten, True
            for some in log.read(place, until):
                if log.forgotten > place:
                    break  # what is read from here on may be incomplete
                for change in some:
                    if found and (len(found) >= limit or room <= 0):
                        return ChangePage(found, Token(history, place), gap)
                    place = change.revision
                    if _concerns(change, pattern):
                        found.append(change)
                        room -= len(change.key) + len(change.value or b"")
                seen += len(some)
                if seen >= _CHANGES_A_STEP:
                    # Not for each row: it may hold one change, and whoever reads one while others
                    # write several would never catch up.
                    seen = 0
                    yield
            if log.forgotten <= place:
                return ChangePage(found, Token(history, until), gap)
            # Else a part was forgotten meanwhile. If something was found before that, it makes a
            # page, and the next one tells of the gap.
        return ChangePage(found, Token(history, place), gap)


def _concerns(change: Change, pattern: Pattern) -> bool:
    if change.kind == "clear":
        return pattern.overlaps(change.key)
    return pattern.matches(change.key)


def _next_chunk(pairs: Pairs) -> int:
    mean = sum(len(key) + len(value) for key, value in pairs) // len(pairs)
    return min(max(_CHUNK_BYTES // (mean + 1), 4), _MOST_PAIRS)


def _disjoint(prefixes: list[str]) -> list[str]:
    """Those of the prefixes that no other covers."""
    covering: list[str] = []
    for prefix in sorted(prefixes):
        if not covering or not prefix.startswith(covering[-1]):
            covering.append(prefix)
    return covering
