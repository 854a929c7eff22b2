"""What each kind of write does to a draft. Here are the rules; nothing here waits or stores.

A write that finds a record past its expiry first makes the expiry a change of its own, as the
sweeper would have done a moment later. So whatever the timing, watchers see every record end
before another takes its place, and `previous` never points at what was no longer there.
"""

from collections.abc import Callable, Sequence
from typing import Final

from nkv_core.contracts.keyspace import (
    Check,
    Clear,
    Delete,
    Expect,
    Foreign,
    Merge,
    Operation,
    Presence,
    Put,
    Touch,
    Written,
)
from nkv_core.errors import ConditionFailed, OtherHistory, ValueTooLarge
from nkv_core.keyspace.draft import Draft
from nkv_core.keyspace.layout import state_key
from nkv_core.records import (
    Change,
    Kind,
    RangeTombstone,
    Record,
    Tombstone,
    timestamp_at,
)

NOTHING: Final = Written(None, None, None)
REPLICATED: Final = "replicated"
MERGED: Final = "merged"

#: An operation with its key or prefix in bytes.
Encoded = tuple[bytes, Operation]


def carry_out(encoded: bytes, operation: Operation, draft: Draft) -> Written:
    """Carry out one operation. Raises `ConditionFailed` or `OtherHistory`."""
    if isinstance(operation, Clear):
        return _clear(operation, draft)
    record = draft.find(encoded, operation.key)
    before = record
    if record is not None and record.expires is not None and record.expires <= draft.now:
        before = None
    if operation.expect is not None:
        require(operation.key, before, operation.expect, draft)
    if isinstance(operation, Put):
        if record is not None and before is None:
            expire(encoded, record, draft)
        return _set(encoded, operation, before, draft)
    if before is None:
        return NOTHING
    if isinstance(operation, Touch):
        return _set(encoded, operation, before, draft)
    return _delete(encoded, operation, before, draft)


def carry_out_all(
    operations: Sequence[Encoded], checks: Sequence[tuple[bytes, Check]], draft: Draft
) -> list[Written]:
    """Carry out a batch. The caller takes the draft back where this raises."""
    for encoded, check in checks:
        record = draft.find(encoded, check.key)
        live = None if record is None or record.expired(draft.now) else record
        require(check.key, live, check.expect, draft)
    return [carry_out(encoded, operation, draft) for encoded, operation in operations]


def require(key: str, record: Record | None, expect: Expect, draft: Draft) -> None:
    """Raise `ConditionFailed` or `OtherHistory` where `expect` does not hold."""
    if expect is None:
        return
    if expect is Presence.ABSENT:
        if record is not None:
            raise ConditionFailed(f"{key!r} exists already.")
        return
    if expect is Presence.PRESENT:
        if record is None:
            raise ConditionFailed(f"{key!r} does not exist.")
        return
    if expect.history != draft.book.history:
        raise OtherHistory(f"The version given for {key!r} is of another history: read it again.")
    if record is None:
        raise ConditionFailed(f"{key!r} does not exist.")
    if record.revision != expect.revision:
        raise ConditionFailed(f"{key!r} has been changed: it has another version now.")


def _set(encoded: bytes, operation: Put | Touch, before: Record | None, draft: Draft) -> Written:
    book, key, expires = draft.book, operation.key, operation.expires
    previous, kept = (None, b"") if before is None else (before.revision, before.value)
    kind: Kind
    kind, value = ("put", operation.value) if isinstance(operation, Put) else ("touch", kept)
    revision, modified, origin = draft.next_revision(), book.clock.now(), book.node_id
    after = Record(key, value, revision, modified, origin, expires)
    draft.keep(encoded, after)
    draft.changes.append(
        Change(kind, operation.cause, key, revision, modified, origin, value, previous, expires)
    )
    return Written(revision, after, before)


def _delete(encoded: bytes, operation: Delete, before: Record, draft: Draft) -> Written:
    book = draft.book
    tombstone = Tombstone(before.key, draft.next_revision(), book.clock.now(), book.node_id)
    bury(encoded, operation.cause, tombstone, before.revision, draft)
    return Written(tombstone.revision, None, before)


def _clear(operation: Clear, draft: Draft) -> Written:
    book = draft.book
    clear = RangeTombstone(operation.prefix, draft.next_revision(), book.clock.now(), book.node_id)
    hide(operation.cause, clear, draft)
    return Written(clear.revision, None, None)


def bury(
    encoded: bytes, cause: str, tombstone: Tombstone, previous: int | None, draft: Draft
) -> None:
    """Replace a record by a tombstone, as a change."""
    draft.bury(encoded, tombstone)
    _tell_end(cause, tombstone, tombstone.modified, previous, draft)


def _tell_end(
    cause: str, tombstone: Tombstone, modified: int, previous: int | None, draft: Draft
) -> None:
    draft.changes.append(
        Change(
            "delete",
            cause,
            tombstone.key,
            tombstone.revision,
            modified,
            tombstone.origin,
            previous=previous,
        )
    )


def hide(cause: str, clear: RangeTombstone, draft: Draft) -> None:
    """Clear a prefix, as a change."""
    draft.clear(clear)
    draft.changes.append(
        Change("clear", cause, clear.prefix, clear.revision, clear.modified, clear.origin)
    )


def expire(encoded: bytes, record: Record, draft: Draft) -> None:
    """Make a record's expiry a change, of the time of the expiry.

    The tombstone depends on the record alone, so that every node which has the record makes the
    same one. It comes just behind the record and not at its expiry: what another node wrote in
    between, and this one has yet to learn of, is no part of what expires.
    """
    behind = record.modified + 1
    told = max(timestamp_at(record.expires or 0), behind)
    draft.book.clock.observe(told)
    tombstone = Tombstone(record.key, draft.next_revision(), behind, record.origin)
    draft.bury(encoded, tombstone)
    _tell_end("expire", tombstone, told, record.revision, draft)


# --- from other nodes -----------------------------------------------------------------------------


def apply_foreign(
    foreign: Sequence[tuple[bytes, Foreign]], merge: Merge | None, draft: Draft
) -> int:
    """Take what is newer than what is here, or what `merge` makes of it; returns how many were."""
    taken = 0
    for encoded, one in foreign:
        draft.book.clock.observe(one.modified)
        if draft.kept.hides(one):
            continue
        if isinstance(one, RangeTombstone):
            clear = RangeTombstone(one.prefix, draft.next_revision(), one.modified, one.origin)
            hide(REPLICATED, clear, draft)
            taken += 1
        else:
            taken += _apply_one(encoded, one, merge, draft)
    return taken


def _apply_one(encoded: bytes, one: Record | Tombstone, merge: Merge | None, draft: Draft) -> bool:
    before = draft.find(encoded, one.key)
    if before is not None and before.expired(draft.now):
        # Whether the sweeper has been here already must make no difference.
        expire(encoded, before, draft)
        before = None
    cause = REPLICATED
    if merge is not None and isinstance(before, Record) and isinstance(one, Record):
        theirs, one = one, _merged(before, one, merge)
        if _same(one, before):
            return False
        cause = REPLICATED if _same(one, theirs) else MERGED
    elif before is not None and not one.newer_than(before):
        return False
    buried = draft.tombstone(encoded, one.key)
    if buried is not None and not _outlives(one, buried):
        return False
    revision = draft.next_revision()
    previous = None if before is None else before.revision
    if isinstance(one, Record):
        draft.keep(
            encoded, Record(one.key, one.value, revision, one.modified, one.origin, one.expires)
        )
        draft.changes.append(
            Change(
                "put",
                cause,
                one.key,
                revision,
                one.modified,
                one.origin,
                one.value,
                previous,
                one.expires,
            )
        )
        return True
    tombstone = Tombstone(one.key, revision, one.modified, one.origin)
    if before is None:
        draft.bury(encoded, tombstone)  # nothing ends here, so there is nothing to tell
    else:
        bury(encoded, REPLICATED, tombstone, previous, draft)
    return True


def _merged(ours: Record, theirs: Record, merge: Merge) -> Record:
    outcome, later = merge(ours, theirs), theirs if theirs.newer_than(ours) else ours
    return Record(
        ours.key, outcome.value, ours.revision, later.modified, later.origin, outcome.expires
    )


def _same(one: Record, other: Record) -> bool:
    """Whether they differ in nothing but their revisions."""
    return (one.modified, one.origin, one.value, one.expires) == (
        other.modified,
        other.origin,
        other.value,
        other.expires,
    )


def _outlives(one: Record | Tombstone, buried: Tombstone) -> bool:
    """Whether it counts beside a deletion. Of the very moment of one, which only an expiry can be,
    a record does: somebody wrote it, and the expiry was that of the record before it.
    """
    if isinstance(one, Record):
        return not buried.newer_than(one)
    return one.newer_than(buried)


# --- the state of plugins -------------------------------------------------------------------------


def set_state(plugin: str, key: bytes, value: bytes | None, most: int, draft: Draft) -> None:
    """Set or delete a key of a plugin's state. Raises `ValueTooLarge` past `most` bytes."""
    row = state_key(plugin, key)
    before = draft.row("state", row)
    size = draft.state_size(plugin)
    if before is not None:
        size -= len(key) + len(before)
    if value is not None:
        size += len(key) + len(value)
        if size > most:
            raise ValueTooLarge(
                f"The state of {plugin} would have {size} bytes; the limit is {most} "
                "(keyspace.state_bytes)."
            )
    if value is not None or before is not None:
        draft.set_row("state", row, value)
        draft.set_state_size(plugin, size)


#: What a write does to a draft, with everything but the draft filled in.
Plan = Callable[[Draft], object]
