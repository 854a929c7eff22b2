"""Writes that wait for their group, what is counted of them, and who is told of them."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from nkv_core.contracts.keyspace import Tail
from nkv_core.errors import DeadlineExceeded
from nkv_core.keyspace.draft import Draft
from nkv_core.loop import Pending, Waiter
from nkv_core.records import Change

log = logging.getLogger("nkv.keyspace")


class Write:
    """A write that waits for its group."""

    __slots__ = ("deadline", "error", "given_up", "key", "plan", "result", "size", "waiter")

    def __init__(
        self,
        plan: Callable[[Draft], Any],
        size: int,
        deadline: float,
        waiter: Waiter,
        key: bytes | None,
    ) -> None:
        self.plan = plan
        self.key = key  #: of the one record that it looks at
        self.size = size
        self.deadline = deadline
        self.waiter = waiter
        self.result: Any = None
        self.error: BaseException | None = None
        #: Nobody waits for it any more: where it has not been planned yet, it never is.
        self.given_up = False


class Told:
    """Stands for the waiter of a write whose outcome a plain function is told."""

    __slots__ = ("pending", "write")

    def __init__(self) -> None:
        self.pending: Final[Pending[Any]] = Pending()
        self.write: Write

    def wake(self) -> None:
        """Tell the outcome."""
        write = self.write
        error, write.error = write.error, None
        try:
            self.pending.settle(write.result, late() if write.given_up else error)
        except Exception:  # the rest of the group is not to suffer from it
            log.exception("A function that was to be told of a write raised.")

    async def wait(self) -> None:
        """Nobody awaits it."""
        raise NotImplementedError


def late() -> DeadlineExceeded:
    """What a write raises that is given up."""
    return DeadlineExceeded("The write was not made durable in time; it may still be.")


class Counts:
    """What the committer counts."""

    __slots__ = ("changes", "failed", "groups", "late", "refused", "writes")

    def __init__(self) -> None:
        self.writes = 0  #: that were asked for, conditions that failed included
        self.groups = 0  #: that were committed
        self.changes = 0
        self.failed = 0  #: groups that the storage refused
        self.refused = 0  #: writes for which the queue had no room
        self.late = 0  #: writes that passed their deadline


class Tails:
    """Those who are told of every commit, whichever committer makes it."""

    __slots__ = ("_listeners",)

    def __init__(self) -> None:
        self._listeners: tuple[Tail, ...] = ()

    def add(self, listener: Tail) -> Callable[[], None]:
        """Have `listener` called with the changes of every group; returns what ends that."""
        call = partial(listener)  # each of its own, though one be added twice

        def end() -> None:
            self._listeners = tuple(other for other in self._listeners if other is not call)

        self._listeners = (*self._listeners, call)
        return end

    def tell(self, changes: Sequence[Change]) -> None:
        """Call them all."""
        for tail in self._listeners:
            try:
                tail(changes)
            except Exception:
                log.exception("A listener to the change stream failed; it missed a change.")
