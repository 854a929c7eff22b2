"""The committer: the one place through which everything is written. Group commit happens here.

Where the storage writes in a thread, a write joins a queue. Whenever the worker thread is idle, all
that is queued goes to it as one group: planned in order of arrival, made durable by one `apply`,
then told to the event loop, which publishes the changes and wakes the writers. What arrives
meanwhile forms the next group; a lone writer waits for nobody. Where the storage writes inline, the
same happens at once for each write, without thread and without waiting.

If a group fails, so does all that was queued behind it: those writes were made by someone who could
count on what came before them.
"""

import copy
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, Final, TypeVar, cast

import anyio

from nkv_core.contracts.keyspace import Tail
from nkv_core.contracts.settings import KeyspaceSettings
from nkv_core.errors import DeadlineExceeded, NkvError, Overloaded, Stopping, ValueTooLarge
from nkv_core.keyspace.book import Book
from nkv_core.keyspace.draft import Draft
from nkv_core.loop import Pending, Waiter, Worker, soon_caller, waiter_maker
from nkv_core.records import Change

log = logging.getLogger("nkv.keyspace")

T = TypeVar("T")

_TRIM_SLACK: Final = 64  # the log may be over its bound by this part of it, so as to be cut rarely


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


class _Told:
    """Stands for the waiter of a write whose outcome a plain function is told."""

    __slots__ = ("pending", "write")

    def __init__(self) -> None:
        self.pending: Final[Pending[Any]] = Pending()
        self.write: Write

    def wake(self) -> None:
        write = self.write
        error, write.error = write.error, None
        try:
            self.pending.settle(write.result, _late() if write.given_up else error)
        except Exception:  # the rest of the group is not to suffer from it
            log.exception("A function that was to be told of a write raised.")

    async def wait(self) -> None:
        raise NotImplementedError  # nobody awaits it


def _late() -> DeadlineExceeded:
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


class Committer:
    """Commits writes in groups. All methods are for the event loop that it was made on."""

    def __init__(self, book: Book, settings: KeyspaceSettings, worker: Worker | None) -> None:
        """`worker` is the thread in which the storage writes, None where it does so inline."""
        self._book: Final = book
        self._settings: Final = settings
        self._worker: Final = worker
        self._new_waiter: Final = waiter_maker()
        self._soon: Final = soon_caller()
        self._queue: list[Write] = []
        self._group: list[Write] = []  # in the worker's hands
        self._busy = False  # a group is under way, or about to be formed
        self._tails: tuple[Tail, ...] = ()
        self._closing = False
        self._idle: list[Waiter] = []
        self._alarm = math.inf  # when `watch_deadlines` looks next
        self._alarm_waiter: Waiter | None = None
        self.counts: Final = Counts()
        #: Bytes of the writes that wait.
        self.waiting = 0
        #: The revision of the last change that was published.
        self.published = book.revision

    # --- writing ------------------------------------------------------------------------------

    async def write(
        self,
        plan: Callable[[Draft], T],
        size: int,
        deadline: float | None = None,
        key: bytes | None = None,
    ) -> T:
        """Have a write planned and committed; returns what `plan` does.

        `size` is in bytes, `deadline` in seconds from now on; `key` is that of the record that it
        looks at, which is then looked up with those of the rest of the group. Raises what `plan`
        does, the storage's error where the group fails, `Overloaded`, `DeadlineExceeded`,
        `Stopping`.
        """
        if self._closing:
            raise Stopping("The keyspace is closed.")
        self.counts.writes += 1
        if self._worker is None:
            return self._write_now(plan)
        write = self._enqueue(plan, size, deadline, key)
        try:
            await write.waiter.wait()
        except BaseException:
            write.given_up = True
            raise
        if write.given_up:
            raise _late()
        if write.error is not None:
            error, write.error = write.error, None
            try:
                raise error
            finally:
                del error  # else it and this frame would hold each other
        return cast("T", write.result)

    def begin(
        self,
        plan: Callable[[Draft], T],
        size: int,
        deadline: float | None = None,
        key: bytes | None = None,
    ) -> T | Pending[T]:
        """As `write`, but a plain function: the write is made now, or has its place in the queue
        when this returns.
        """
        if self._closing:
            raise Stopping("The keyspace is closed.")
        self.counts.writes += 1
        if self._worker is None:
            return self._write_now(plan)
        told = _Told()
        told.write = self._enqueue(plan, size, deadline, key, told)
        return told.pending

    def _enqueue(
        self,
        plan: Callable[[Draft], Any],
        size: int,
        deadline: float | None,
        key: bytes | None,
        waiter: "Waiter | None" = None,
    ) -> Write:
        most = self._settings.queue_bytes
        if self.waiting + size > most:
            self.counts.refused += 1
            if size > most:
                raise ValueTooLarge(f"The write has {size} bytes; the queue takes {most}.")
            raise Overloaded
        seconds = self._settings.write_deadline if deadline is None else deadline
        write = Write(plan, size, monotonic() + seconds, waiter or self._new_waiter(), key)
        self._queue.append(write)
        self.waiting += size
        if write.deadline < self._alarm:
            self._alarm = write.deadline
            if self._alarm_waiter is not None:
                self._alarm_waiter.wake()
        if not self._busy:
            self._start()
        return write

    def _write_now(self, plan: Callable[[Draft], T]) -> T:
        draft = Draft(self._book)
        draft.begin()
        result = plan(draft)
        try:
            self._book.commit(draft)
        except BaseException:
            self.counts.failed += 1
            raise
        self._publish(draft.changes)
        if self._log_is_full():
            self._trim_now()
        return result

    # --- groups -------------------------------------------------------------------------------

    def _start(self) -> None:
        """Give all that is queued to the worker, or note that there is nothing to do."""
        self._group, self._queue = self._queue, []
        self._busy = bool(self._group)
        if not self._busy:
            self._tell_idle()
            return
        try:
            cast("Worker", self._worker).submit(partial(self._commit, self._group), self._done)
        except Stopping as error:  # only where closing took too long
            self._done(None, error)

    def _commit(self, group: list[Write]) -> list[Change]:
        """Plan and commit a group, in the worker thread."""
        draft = Draft(self._book)
        keys = [write.key for write in group if write.key is not None]
        if len(keys) > 1:
            # Where one cannot be read, each write looks for itself, and that one fails alone.
            with suppress(NkvError):
                draft.fetch(keys)
        for write in group:
            if write.given_up:
                continue
            draft.begin()
            try:
                write.result = write.plan(draft)
            except Exception as error:  # noqa: BLE001  # this write's own; the others go on
                draft.undo()
                write.error = error
        self._book.commit(draft)
        return draft.changes

    def _done(self, changes: list[Change] | None, error: BaseException | None) -> None:
        """On the event loop: a group was committed, or was not."""
        group, self._group = self._group, []
        if error is not None:
            self.counts.failed += 1
            group += self._queue
            self._queue = []
            for write in group:
                # Each writer raises one of its own: a traceback grows with every raise.
                write.error = copy.copy(error)
                write.error.__cause__ = error
        else:
            self._publish(changes or [])
        for write in group:
            self.waiting -= write.size
            write.waiter.wake()
        if error is None and self._log_is_full():
            self._trim_soon()
        # The writers just woken go first: what they write next belongs into the next group.
        self._soon(self._start)

    def _publish(self, changes: Sequence[Change]) -> None:
        """Tell the tails. A writer runs on only when they have been told."""
        self.counts.groups += 1
        if not changes:
            return
        self.counts.changes += len(changes)
        self.published = changes[-1].revision
        for tail in self._tails:
            try:
                tail(changes)
            except Exception:
                log.exception("A listener to the change stream failed; it missed a change.")

    def tail(self, listener: Tail) -> Callable[[], None]:
        """Have `listener` called with the changes of every group; returns what ends that."""

        def call(changes: Sequence[Change]) -> None:
            listener(changes)

        def end() -> None:
            self._tails = tuple(other for other in self._tails if other is not call)

        self._tails = (*self._tails, call)
        return end

    # --- the log's bounds ---------------------------------------------------------------------

    def _log_is_full(self) -> bool:
        most = self._settings.log_bytes
        return self._book.log.size > most + most // _TRIM_SLACK

    def _trim(self) -> bool:
        oldest = self._book.wall() - round(self._settings.log_age * 1000)
        return self._book.trim(self._settings.log_bytes, oldest)

    def _trim_now(self) -> None:
        try:
            self._trim()
        except Exception as error:  # noqa: BLE001  # the write that led here is done and well
            self._trimmed(None, error)

    def _trim_soon(self) -> None:
        if self._worker is not None and not self._closing:
            self._worker.submit(self._trim, self._trimmed)

    def _trimmed(self, more: bool | None, error: BaseException | None) -> None:
        if more:
            self._trim_soon()
        if error is not None:
            log.warning("The change log could not be trimmed; trying again later: %s", error)

    async def trim(self) -> bool:
        """Forget some of what the log has beyond its bounds; whether there is more to forget."""
        return self._trim() if self._worker is None else await self._worker.run(self._trim)

    # --- deadlines ----------------------------------------------------------------------------

    async def watch_deadlines(self) -> None:
        """Fail the writes that are past their deadline, until cancelled.

        One task for all writes: a timer for each would cost as much as the write's own waiting.
        """
        while True:
            now = monotonic()
            overdue = [write for write in (*self._group, *self._queue) if write.deadline <= now]
            for write in overdue:
                self._give_up(write)
            left = [write for write in (*self._group, *self._queue) if not write.given_up]
            self._alarm = min((write.deadline for write in left), default=math.inf)
            self._alarm_waiter = self._new_waiter()
            try:
                with anyio.move_on_after(
                    None if self._alarm == math.inf else max(self._alarm - monotonic(), 0.0)
                ):
                    await self._alarm_waiter.wait()
            finally:
                self._alarm_waiter = None

    def _give_up(self, write: Write) -> None:
        if write.given_up:
            return
        self.counts.late += 1
        write.given_up = True
        write.waiter.wake()

    # --- the end ------------------------------------------------------------------------------

    async def close(self) -> None:
        """Take no more writes, and wait until those under way are done."""
        self._closing = True
        while self._busy:
            waiter = self._new_waiter()
            self._idle.append(waiter)
            await waiter.wait()

    def _tell_idle(self) -> None:
        idle, self._idle = self._idle, []
        for waiter in idle:
            waiter.wake()

    @property
    def closing(self) -> bool:
        """Whether no more writes are taken."""
        return self._closing
