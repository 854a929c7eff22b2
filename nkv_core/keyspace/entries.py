"""Entries: all that a keyspace knows of its keys, deletions too, as other nodes are to have it."""

from collections.abc import Iterator
from functools import partial
from typing import Final

from nkv_core.contracts.keyspace import Entry, EntryPage
from nkv_core.keyspace.book import Book
from nkv_core.keyspace.clears import ClearSet
from nkv_core.keyspace.layout import Pairs, behind, tombstone_key
from nkv_core.keyspace.reading import Steps
from nkv_core.records import unpack_record, unpack_tombstone

_AT_ONCE: Final = 500
_PAGE_BYTES: Final = 4 * 1024 * 1024
_BEHIND_TOMBSTONES: Final = b"l"  # of single keys, which begin with `k`


def read_entries(book: Book, after: str | None, limit: int) -> Steps[EntryPage]:
    """See `contracts.keyspace.Replicable.entries`."""
    start = b"" if after is None else behind(after.encode())
    found: list[Entry] = []
    room = _PAGE_BYTES
    while True:
        # Records first: what is deleted between the two is then seen twice, and not missed.
        (records, tombstones), clears = book.clears.read(book.storage, partial(_rows, book, start))
        full = [rows[-1][0] for rows in (records, tombstones) if len(rows) == _AT_ONCE]
        last = min(full, default=None)
        for key, entry in _merged(records, tombstones, clears, book.kept):
            if last is not None and key > last:
                break
            if len(found) == limit or (room <= 0 and found):
                return EntryPage(found, found[-1].key)
            found.append(entry)
            room -= len(key) + len(getattr(entry, "value", b""))
        if last is None:
            return EntryPage(found, None)
        start = behind(last)
        yield


def _rows(book: Book, start: bytes) -> tuple[Pairs, Pairs]:
    records = book.storage.scan("records", start, limit=_AT_ONCE)
    rows = book.storage.scan("tombstones", tombstone_key(start), _BEHIND_TOMBSTONES, limit=_AT_ONCE)
    return records, [(row[1:], packed) for row, packed in rows]


def _merged(
    records: Pairs, tombstones: Pairs, clears: ClearSet, kept: ClearSet
) -> Iterator[tuple[bytes, Entry]]:
    """What holds for each key, in key order: the record or the tombstone, whichever is newer."""
    entries: dict[bytes, Entry] = {}
    for encoded, packed in records:
        record = unpack_record(encoded.decode(), packed)
        if not (clears and clears.hides(record)):
            entries[encoded] = record
    for encoded, packed in tombstones:
        tombstone = unpack_tombstone(encoded.decode(), packed)
        known = entries.get(encoded)
        if not kept.hides(tombstone) and (known is None or tombstone.newer_than(known)):
            entries[encoded] = tombstone
    return iter(sorted(entries.items()))
