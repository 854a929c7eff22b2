"""The committer: the one place through which everything is written. Group commit happens here.

Where the storage writes in a thread, a write joins a queue. Whenever the worker thread is idle, all
that is queued goes to it as one group: planned in order of arrival, made durable by one `apply`,
then told to the event loop, which publishes the changes and wakes the writers. What arrives
meanwhile forms the next group; a lone writer waits for nobody. Where the storage writes inline, the
same happens at once for each write, without thread and without waiting.

If a group fails, so does all that was queued behind it: those writes were made by someone who could
count on what came before them.

A committer leads or follows. One that leads takes writes and tells of them. One that follows is
that of a storage which another one's changes are carried to; all that it takes is these.
"""

import copy
import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, Final, TypeVar, cast

import anyio

from nkv_core.contracts.keyspace import Operation, Put, Written
from nkv_core.contracts.settings import KeyspaceSettings
from nkv_core.errors import (
    NkvError,
    OutcomeUnknown,
    Overloaded,
    Stopping,
    ValueTooLarge,
)
from nkv_core.keyspace.book import Book
from nkv_core.keyspace.draft import Draft
from nkv_core.keyspace.single import is_plain, put_alone
from nkv_core.keyspace.trimming import Trimmer
from nkv_core.keyspace.writes import Counts, Tails, Told, Write, late
from nkv_core.loop import Pending, Waiter, Worker, soon_caller, waiter_maker
from nkv_core.records import Change

T = TypeVar("T")


class Committer:
    """Commits writes in groups. All methods are for the event loop that it was made on."""

    def __init__(
        self,
        book: Book,
        settings: KeyspaceSettings,
        worker: Worker | None,
        tails: Tails | None = None,
    ) -> None:
        """`worker` is the thread in which the storage writes, None where it does so inline. Without
        `tails` it follows.
        """
        self._book: Final = book
        self._settings: Final = settings
        self._worker: Final = worker
        self._new_waiter: Final = waiter_maker()
        self._soon: Final = soon_caller()
        self._queue: list[Write] = []
        self._group: list[Write] = []  # in the worker's hands
        self._busy = False  # a group is under way, or about to be formed
        self._tails = tails
        self._closing = False
        self._holds = 0  # of those who want no groups to be formed
        self._abandoned = False
        self._begun = 0.0  # when the group under way was given to the worker
        self._idle: list[Waiter] = []
        self._alarm = math.inf  # when `watch_deadlines` looks next
        self._alarm_waiter: Waiter | None = None
        #: Keeps the log within its bounds.
        self.trimmer: Final = Trimmer(book, settings, worker)
        self.counts = Counts()
        #: How many groups have failed since the last one that did not.
        self.failing = 0
        #: Is given what each group was, in order, on the event loop. It must not raise.
        self.follower: Callable[[Draft], None] | None = None
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
        self._take_it()
        if self._worker is None and not self._holds:
            return self._write_now(plan)
        return cast("T", await self._wait_for(self._enqueue(plan, size, deadline, key)))

    def _take_it(self) -> None:
        if self._tails is None:
            raise Stopping("Another storage is in charge now.")
        if self._closing:
            raise Stopping("The keyspace is closed.")
        self.counts.writes += 1

    async def take(self, plan: Callable[[Draft], T]) -> T:
        """As `write`, for a committer that follows."""
        if self._closing:
            raise Stopping("The storage is closed.")
        if self._worker is None:
            return self._write_now(plan)
        return cast("T", await self._wait_for(self._enqueue(plan, 0, None, None)))

    async def _wait_for(self, write: Write) -> Any:
        try:
            await write.waiter.wait()
        except BaseException:
            write.given_up = True
            raise
        if write.given_up:
            raise late()
        if write.error is not None:
            error, write.error = write.error, None
            try:
                raise error
            finally:
                del error  # else it and this frame would hold each other
        return write.result

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
        self._take_it()
        if self._worker is None and not self._holds:
            return self._write_now(plan)
        told = Told()
        told.write = self._enqueue(plan, size, deadline, key, told)
        return told.pending

    def put_now(self, encoded: bytes, operation: Operation) -> Written | None:
        """Make a plain put, where one can be made at once; None where this is none, and it is for
        `write` or `begin`. Raises what the storage does.
        """
        book = self._book
        if not (isinstance(operation, Put) and self._inline and is_plain(operation, book)):
            return None
        try:
            made = put_alone(encoded, operation, book)
        except BaseException:
            self.counts.writes += 1
            self._failed()
            raise
        if made is None:
            return None
        written, change = made
        self.counts.writes += 1
        self._tell([change])
        self.trimmer.look()
        return written

    @property
    def _inline(self) -> bool:
        """Whether a write is made at once, and nobody follows it."""
        return (
            self._worker is None
            and not self._holds
            and self.follower is None
            and self._tails is not None
            and not self._closing
        )

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
        if not self._busy and not self._holds:
            self._start()
        return write

    def _write_now(self, plan: Callable[[Draft], T]) -> T:
        draft = Draft(self._book)
        draft.begin()
        result = plan(draft)
        try:
            self._book.commit(draft)
        except BaseException:
            self._failed()
            raise
        self._publish(draft)
        self.trimmer.look()
        return result

    # --- groups -------------------------------------------------------------------------------

    def _start(self) -> None:
        """Give all that is queued to the worker, or note that there is nothing to do."""
        self._busy = bool(self._queue) and not self._holds
        if not self._busy:
            self._tell_idle()
            return
        self._group, self._queue = self._queue, []
        self._begun = monotonic()
        try:
            cast("Worker", self._worker).submit(partial(self._commit, self._group), self._done)
        except Stopping as error:  # only where closing took too long
            self._done(None, error)

    def _commit(self, group: list[Write]) -> Draft:
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
        return draft

    def _done(self, draft: Draft | None, error: BaseException | None) -> None:
        """On the event loop: a group was committed, or was not."""
        if self._abandoned:
            return
        group, self._group = self._group, []
        if draft is not None:
            self._publish(draft)
        else:
            self._failed()
            group += self._queue
            self._queue = []
            for write in group:
                # Each writer raises one of its own: a traceback grows with every raise.
                write.error = copy.copy(error)
                if write.error is not None:
                    write.error.__cause__ = error
        for write in group:
            self.waiting -= write.size
            write.waiter.wake()
        if draft is not None:
            self.trimmer.look()
        # The writers just woken go first: what they write next belongs into the next group.
        self._soon(self._start)

    def _publish(self, draft: Draft) -> None:
        if self.follower is not None:
            self.follower(draft)
        self._tell(draft.changes)

    def _failed(self) -> None:
        self.counts.failed += 1
        self.failing += 1

    def _tell(self, changes: list[Change]) -> None:
        """Tell the tails of a group. A writer runs on only when they have been told."""
        self.counts.groups += 1
        self.failing = 0
        if not changes:
            return
        self.counts.changes += len(changes)
        self.published = changes[-1].revision
        if self._tails is not None:
            self._tails.tell(changes)

    # --- changing places ----------------------------------------------------------------------

    def hold(self) -> None:
        """Form no more groups: what is written waits for `resume`, or for another committer that
        takes over. Several may hold it; each resumes.
        """
        self._holds += 1

    async def pause(self) -> None:
        """Hold it, and wait until no group is under way."""
        self.hold()
        await self._until_idle()

    def resume(self) -> None:
        """Go on with what waits, unless somebody else holds it."""
        self._holds -= 1
        if self._holds:
            return
        if self._worker is not None:
            if not self._busy:
                self._start()
            return
        queue, self._queue = self._queue, []
        for write in queue:
            if not write.given_up:
                try:
                    write.result = self._write_now(write.plan)
                except Exception as error:  # noqa: BLE001  # this write's own; the others go on
                    write.error = error
            self.waiting -= write.size
            write.waiter.wake()

    def hand_over(self, to: "Committer") -> None:
        """Have another committer, which has followed up to here, lead; this one follows from now
        on. What waits is written by that one. This one is paused, by one who does not resume.
        """
        to.counts, self.counts = self.counts, to.counts
        to.published = self.published
        to._tails, self._tails = self._tails, None
        queue, self._queue = self._queue, []
        size = sum(write.size for write in queue)
        self.waiting -= size
        to.hold()
        to.waiting += size
        to._queue += queue
        self.resume()
        to.resume()

    def abandon(self) -> None:
        """Wait no longer for a storage that does not come back: nobody hears what becomes of it."""
        self._abandoned = True
        group, self._group = self._group, []
        for write in group:
            write.error = OutcomeUnknown("The storage did not come back, and was given up.")
            self.waiting -= write.size
            write.waiter.wake()
        self._busy = False
        self._tell_idle()

    def stuck(self, now: float) -> float:
        """For how many seconds, at `now` (monotonic), the storage has been at one group."""
        return now - self._begun if self._group else 0.0

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
        self._closing = self.trimmer.closed = True
        await self._until_idle()

    async def _until_idle(self) -> None:
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
