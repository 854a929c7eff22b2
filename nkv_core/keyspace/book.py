"""The committed state of a keyspace, as the one who commits sees it.

It is used by one thread at a time: the worker thread where the storage writes in one, else the
event loop. The few attributes that others read (`clears`, `log.forgotten`) are made for it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from nkv_core.contracts.storage import Storage
from nkv_core.errors import NkvError, OutcomeUnknown
from nkv_core.keyspace.clears import NO_CLEARS, Clears, ClearSet
from nkv_core.keyspace.log import ChangeLog
from nkv_core.records import HybridClock

if TYPE_CHECKING:
    from nkv_core.keyspace.draft import Draft


class Book:
    """What is committed, besides the records themselves."""

    __slots__ = (
        "clears",
        "clock",
        "commits",
        "history",
        "kept",
        "log",
        "next_expiry",
        "node_id",
        "revision",
        "state_sizes",
        "storage",
        "wall",
    )

    def __init__(
        self,
        storage: Storage,
        *,
        node_id: int,
        history: str,
        wall: Callable[[], int],
        revision: int = 0,
        timestamp: int = 0,
        log: ChangeLog | None = None,
        active: ClearSet = NO_CLEARS,
        kept: ClearSet = NO_CLEARS,
        next_expiry: int | None = None,
    ) -> None:
        self.storage: Final = storage
        self.node_id: Final = node_id
        self.history: Final = history
        self.wall: Final = wall
        self.clock: Final = HybridClock(wall, timestamp)
        self.log: Final = log or ChangeLog(storage)
        #: The last revision given out, committed or not.
        self.revision = revision
        #: How many groups were committed.
        self.commits = 0
        #: Clears whose records still take up room, and so must be hidden.
        self.clears: Final = Clears(active)
        #: All clears of which the tombstones are kept: no older record of another node gets in.
        self.kept = kept
        #: No record expires before this time; None where none does at all.
        self.next_expiry = next_expiry
        #: Bytes of state by plugin, as far as they were needed so far.
        self.state_sizes: dict[str, int] = {}

    def commit(self, draft: "Draft") -> None:
        """Make what the draft holds: all of it, or nothing and raise `StorageFailed`.

        Raises `OutcomeUnknown` where the storage fails in a way that its contract does not allow.
        """
        self.revision = draft.revision  # whatever becomes of them, they are not given again
        rows = self.log.rows(draft.changes, draft.now, self.clock.last)
        batch, earliest = draft.batch(rows)
        if not batch.writes:
            self.next_expiry = draft.next_expiry
            return
        if draft.last_clear is not None:
            self.clears.prepare(draft.last_clear, draft.clears)
        try:
            self.storage.apply(batch)
        except BaseException as error:
            self.clears.settle(self.clears.active)
            if isinstance(error, NkvError):
                raise
            raise OutcomeUnknown(f"The storage failed unexpectedly: {error!r}.") from error
        if draft.clears is not self.clears.active:
            self.clears.settle(draft.clears)
        self.commits += 1
        self.kept = draft.kept
        self.state_sizes.update(draft.state_sizes)
        if rows:
            self.log.grown(rows[-1].total, draft.now)
        known = draft.next_expiry
        if earliest is None or (known is not None and known < earliest):
            earliest = known
        self.next_expiry = earliest

    def trim(self, most_bytes: int, oldest: int) -> bool:
        """Forget some of what the log has beyond its bounds; whether there is more to forget."""
        return self.log.trim(most_bytes, oldest, self.revision, self.clock.last)
