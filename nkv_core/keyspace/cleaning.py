"""What the node does to its own data in the background, some at a time, as writes among others."""

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from nkv_core.keys import prefix_range
from nkv_core.keyspace.draft import Draft
from nkv_core.keyspace.layout import (
    META_RECLAIM,
    Pairs,
    chunks,
    expiry_key,
    unpack_number,
)
from nkv_core.keyspace.plans import expire
from nkv_core.records import (
    RangeTombstone,
    milliseconds_of,
    unpack_range_tombstone,
    unpack_record,
    unpack_tombstone,
)

_SWEPT_AT_ONCE: Final = 500
_NUMBER_BYTES: Final = 8


class Swept(NamedTuple):
    """How many records were found expired, and whether more may be."""

    expired: int
    more: bool


def sweep(draft: Draft) -> Swept:
    """Make the expiry of some records a change each, where they are still past it."""
    stop = expiry_key(draft.now + 1, b"")
    rows = draft.book.storage.scan("expiry", b"", None, limit=_SWEPT_AT_ONCE + 1)
    due = [row for row, _ in rows if row < stop][:_SWEPT_AT_ONCE]
    count = 0
    for row in due:
        expires, encoded = unpack_number(row), row[_NUMBER_BYTES:]
        key = encoded.decode()
        base = draft.base(encoded, key)
        if base is None or base.expires != expires:
            draft.set_row("expiry", row, None)  # belongs to nothing
            continue
        if draft.stored(encoded, key) is not base:
            continue  # changed within this group, which takes care of the row
        if draft.find(encoded, key) is None:
            draft.set_row("expiry", row, None)  # cleared before it expired, and not yet reclaimed
        else:
            expire(encoded, base, draft)
            count += 1
    left = rows[len(due) :]
    draft.next_expiry = unpack_number(left[0][0]) if left else None
    return Swept(count, bool(left) and left[0][0] < stop)


def records_below(clear: RangeTombstone, draft: Draft) -> Iterator[Pairs]:
    """What `reclaim` goes through, step by step; made in its first step."""
    return chunks(draft.book.storage, "records", *prefix_range(clear.prefix.encode()))


def reclaim(clear: RangeTombstone, pairs: Pairs | None, draft: Draft) -> None:
    """Delete those of the records that a clear hides; where there are no more, end the clear."""
    if pairs is not None:
        for encoded, packed in pairs:
            record = unpack_record(encoded.decode(), packed)
            # What this group has already changed is in order.
            if encoded not in draft.records and draft.clears.hides(record):
                draft.drop_seen(encoded, record)
        return
    left = draft.clears.without(clear)
    if left is not draft.clears:  # else a later clear has taken its place
        draft.clears = left
        draft.set_row("meta", META_RECLAIM + clear.prefix.encode(), None)


def all_tombstones(draft: Draft) -> Iterator[Pairs]:
    """What `forget_tombstones` goes through, step by step; made in its first step."""
    return chunks(draft.book.storage, "tombstones", b"", None)


def forget_tombstones(before: int, pairs: Pairs | None, draft: Draft) -> None:
    """Delete those tombstones that were made before `before` (milliseconds since 1970)."""
    for row, packed in pairs or ():
        text = row[1:].decode()
        if row[:1] == b"k":
            if milliseconds_of(unpack_tombstone(text, packed).modified) < before:
                draft.set_row("tombstones", row, None)
            continue
        clear = unpack_range_tombstone(text, packed)
        # One whose records are not reclaimed yet is still needed to hide them.
        active = any(clear == other for other in draft.clears)
        if milliseconds_of(clear.modified) < before and not active:
            draft.set_row("tombstones", row, None)
            draft.kept = draft.kept.without(clear)


class Walk:
    """Goes through many rows, some in each step. After a step that failed, begin a new one."""

    __slots__ = ("_pairs", "_rows", "_work")

    def __init__(
        self,
        rows: Callable[[Draft], Iterator[Pairs]],
        work: Callable[[Pairs | None, Draft], None],
    ) -> None:
        """`work` is given some rows in each step, and at last None."""
        self._rows: Final = rows
        self._work: Final = work
        self._pairs: Iterator[Pairs] | None = None

    def step(self, draft: Draft) -> bool:
        """Take one step; whether there are more."""
        if self._pairs is None:
            self._pairs = self._rows(draft)
        pairs = next(self._pairs, None)
        self._work(pairs, draft)
        return pairs is not None
