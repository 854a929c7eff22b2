"""What is written to the storage that follows: groups of the one in charge, and pages of its rows.

Both storages are of one history, so the revision says which of two states of a key is the later
one. Everything here takes what is later than what is there, and nothing else: it may come in any
order and more than once, and ends the same. Between nodes, whose revisions mean nothing to each
other, `plans.apply_foreign` does the same by timestamp.
"""

from collections.abc import Container, Sequence

from nkv_core.keyspace.draft import Draft
from nkv_core.keyspace.layout import Pairs, range_tombstone_key
from nkv_core.records import (
    RangeTombstone,
    Record,
    Tombstone,
    pack_tombstone,
    unpack_range_tombstone,
    unpack_record,
    unpack_tombstone,
)


def replay(groups: Sequence[Draft], timestamp: int, draft: Draft) -> None:
    """Do what these groups have done, in their order. `timestamp` is the greatest given so far."""
    draft.book.clock.observe(timestamp)
    keys = {key for group in groups for key in (*group.records, *group.tombstones)}
    _fetch(list(keys), draft)
    for group in groups:
        draft.revision = max(draft.revision, group.revision)
        for change in group.changes:
            if change.kind == "clear":
                take_clear(
                    RangeTombstone(change.key, change.revision, change.modified, change.origin),
                    draft,
                )
        for encoded, tombstone in group.tombstones.items():
            take_tombstone(encoded, tombstone, draft)
        for encoded, record in group.records.items():
            if record is not None:  # else a tombstone or a clear has ended it
                take_record(encoded, record, draft)
        for (table, key), value in group.rows.items():
            if table == "state":
                draft.set_row(table, key, value)
        draft.changes.extend(group.changes)


def take_record(encoded: bytes, record: Record, draft: Draft) -> None:
    """Take a record, with its revision, where it is later than what is there."""
    if draft.kept.hides(record):
        return
    stored = draft.stored(encoded, record.key)
    if stored is not None and stored.revision >= record.revision:
        return
    buried = draft.tombstone(encoded, record.key)
    if buried is not None and buried.revision >= record.revision:
        return
    draft.keep(encoded, record)


def take_tombstone(encoded: bytes, tombstone: Tombstone, draft: Draft) -> None:
    """Take a tombstone where it is later than what is there."""
    stored = draft.stored(encoded, tombstone.key)
    if stored is not None and stored.revision >= tombstone.revision:
        return
    buried = draft.tombstone(encoded, tombstone.key)
    if buried is not None and buried.revision >= tombstone.revision:
        return
    draft.bury(encoded, tombstone)


def take_clear(clear: RangeTombstone, draft: Draft) -> None:
    """Take a clear; what it hides is reclaimed once this storage is in charge."""
    if not draft.kept.hides(clear):
        draft.clear(clear)


# --- pages of rows --------------------------------------------------------------------------------


def take_records(pairs: Pairs, draft: Draft) -> None:
    """Take rows of the table `records`."""
    _fetch([key for key, _ in pairs], draft)
    for encoded, packed in pairs:
        take_record(encoded, unpack_record(encoded.decode(), packed), draft)


def take_tombstones(pairs: Pairs, draft: Draft) -> None:
    """Take rows of the table `tombstones`. Those of the clears are to come before any record."""
    keys = [row[1:] for row, _ in pairs if row[:1] == b"k"]
    _fetch(keys, draft)
    for row, packed in pairs:
        text = row[1:].decode()
        if row[:1] == b"k":
            take_tombstone(row[1:], unpack_tombstone(text, packed), draft)
        else:
            _remember(unpack_range_tombstone(text, packed), draft)


def take_state(pairs: Pairs, but: Container[bytes], draft: Draft) -> None:
    """Take rows of the table `state`, `but` those that are known to have changed since."""
    for row, value in pairs:
        if row not in but:
            draft.set_row("state", row, value)


def take_log(pairs: Pairs, draft: Draft) -> None:
    """Take rows of the table `changes` as they are."""
    for row, value in pairs:
        draft.set_row("changes", row, value)


def put_right(keys: Sequence[bytes], found: dict[bytes, bytes], draft: Draft) -> None:
    """Make these keys what the storage in charge, which is held, has `found` for them."""
    _fetch(list(keys), draft)
    for encoded in keys:
        packed = found.get(encoded)
        if packed is not None:
            draft.keep(encoded, unpack_record(encoded.decode(), packed))
        elif draft.stored(encoded, encoded.decode()) is not None:
            draft.drop(encoded)


def _fetch(keys: list[bytes], draft: Draft) -> None:
    if len(keys) > 1:
        draft.fetch(keys)
        draft.fetch_tombstones(keys)


def _remember(clear: RangeTombstone, draft: Draft) -> None:
    """Take a clear of which nothing is here that it could hide."""
    if draft.kept.hides(clear):
        return
    if draft.clears:
        draft.clear(clear)  # one that is not reclaimed may be in its range
        return
    for other in draft.kept.covered(clear):
        draft.set_row("tombstones", range_tombstone_key(other.prefix.encode()), None)
    row = range_tombstone_key(clear.prefix.encode())
    draft.set_row("tombstones", row, pack_tombstone(clear))
    draft.kept = draft.kept.with_(clear)
