"""Following: what one engine commits is carried over to another, in order, some groups at a time.

The writers wait for the one in charge alone. Should the other one not keep up, they are slowed down
a little; should it fail, it is tried again; and beyond that following fails, and they go on.
"""

from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any, Final, TypeVar

import anyio

from nkv_core.errors import MigrationFailed, NkvError, StorageFailed
from nkv_core.keyspace.draft import Draft
from nkv_core.keyspace.engine import Engine
from nkv_core.keyspace.migration.replay import replay
from nkv_core.loop import Waiter, waiter_maker

T = TypeVar("T")

_HIGH: Final = 256 * 1024  # bytes that wait: from here on writers are slowed down
_LOW: Final = 64 * 1024  # and down to here
_MOST: Final = 64 * 1024 * 1024  # more is not kept in memory: following fails
_AT_ONCE: Final = 256 * 1024  # bytes that are carried over in one write
_LONGEST_HOLD: Final = 0.05  # seconds that writers are held at a time
_STALLED: Final = 1.0  # seconds: a write that takes longer holds nobody up
_ATTEMPTS: Final = 8
_PAUSES: Final = (0.005, 0.5)  # seconds before the second attempt, doubled up to the other
_CHANGE_BYTES: Final = 256  # that a change takes besides its value, roughly


class Follower:
    """Carries the groups of `leader` over to `heir`. Run it, from the same moment on."""

    def __init__(self, leader: Engine, heir: Engine) -> None:
        """Begins to collect what is committed from now on, in the step that makes it."""
        self.leader: Final = leader
        self.heir: Final = heir
        #: The revision behind which everything is carried over.
        self.since: Final = leader.committer.published
        #: Rows of the state of plugins that have changed.
        self.state_rows: Final[set[bytes]] = set()
        #: Bytes that wait.
        self.backlog = 0
        self.carried = 0  #: groups
        self.failures = 0  #: writes that were tried again
        self._told_of = 0  # groups
        self._queue: list[Draft] = []
        self._begun: float | None = None  # when the write under way was begun
        self._held = 0.0  # since when writers are held
        self._error: Exception | None = None
        self._new_waiter: Final = waiter_maker()
        self._work: Waiter | None = None
        self._watchers: list[Waiter] = []
        leader.committer.follower = self._told

    # --- on the write path --------------------------------------------------------------------

    def _told(self, draft: Draft) -> None:
        state = [key for table, key in draft.rows if table == "state"]
        if not (draft.changes or draft.tombstones or state):
            return
        self.state_rows.update(state)
        self._queue.append(draft)
        self._told_of += 1
        self.backlog += _size(draft)
        if self._work is not None:
            self._work.wake()
        if self.backlog > _HIGH and not self._held and not self._is_stalled():
            self._held = monotonic()
            self.leader.committer.hold()

    def _is_stalled(self) -> bool:
        return self._begun is not None and monotonic() - self._begun > _STALLED

    def _let_go(self) -> None:
        if self._held:
            self._held = 0.0
            self.leader.committer.resume()

    # --- carrying over ------------------------------------------------------------------------

    async def run(self) -> None:
        """Carry over until cancelled. Raises `MigrationFailed` where the heir cannot take it."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._end_holds)
                try:
                    await self._carry_over()
                except NkvError as error:
                    self._error = error
                tasks.cancel_scope.cancel()
        finally:
            self.stop()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Collect nothing any more, and hold nobody. Stopping twice does nothing."""
        if self.leader.committer.follower == self._told:
            self.leader.committer.follower = None
        self._let_go()
        self._tell()

    async def _carry_over(self) -> None:
        while True:
            while not self._queue:
                self._work = self._new_waiter()
                await self._work.wait()
                self._work = None
            if self.backlog > _MOST:
                raise MigrationFailed("The other storage cannot keep up with what is written.")
            groups, size = self._next()
            plan = partial(replay, groups, self.leader.book.clock.last)
            self._begun = monotonic()
            await persist(self.heir, plan, self._failed)
            self._begun = None
            self.backlog -= size
            self.carried += len(groups)
            if self.backlog <= _LOW:
                self._let_go()
            self._tell()

    def _next(self) -> tuple[list[Draft], int]:
        """Some groups. The same ones are written again where that fails: they make the same rows of
        the change log.
        """
        size = count = 0
        for draft in self._queue:
            size += _size(draft)
            count += 1
            if size >= _AT_ONCE:
                break
        groups = self._queue[:count]
        del self._queue[:count]
        return groups, size

    def _failed(self) -> None:
        self.failures += 1
        self._let_go()

    async def _end_holds(self) -> None:
        while True:
            await anyio.sleep(_LONGEST_HOLD / 4)
            if self._held and monotonic() - self._held > _LONGEST_HOLD:
                self._let_go()

    # --- waiting for it -----------------------------------------------------------------------

    async def caught_up(self) -> None:
        """Wait until all that is committed by now is carried over. Raises `MigrationFailed`."""
        told = self._told_of
        while self.carried < told:
            await self._next_write()

    async def kept_up(self) -> None:
        """Wait until little waits. Raises `MigrationFailed`."""
        while self.backlog > _LOW:
            await self._next_write()

    async def _next_write(self) -> None:
        if self._error is not None:
            raise MigrationFailed("What was written could not be carried over.")
        waiter = self._new_waiter()
        self._watchers.append(waiter)
        await waiter.wait()

    def _tell(self) -> None:
        watchers, self._watchers = self._watchers, []
        for waiter in watchers:
            waiter.wake()


async def persist(
    engine: Engine, plan: Callable[[Draft], T], failed: Callable[[], Any] | None = None
) -> T:
    """Write to an engine that follows, again where it fails. `failed` is called each time. Raises
    `MigrationFailed` where it does not succeed.
    """
    pause, longest = _PAUSES
    for attempt in range(_ATTEMPTS):
        try:
            return await engine.committer.take(plan)
        except NkvError as error:
            if failed is not None:
                failed()
            if attempt + 1 == _ATTEMPTS:
                raise cannot_write(error) from error
        await anyio.sleep(min(pause * 2**attempt, longest))
    raise AssertionError  # the last attempt has raised


def cannot_write(error: NkvError) -> MigrationFailed:
    """What a migration fails with where the target cannot be written."""
    what = error.detail if isinstance(error, StorageFailed) else str(error)
    return MigrationFailed(f"The other storage could not be written: {what}")


def _size(draft: Draft) -> int:
    size = _CHANGE_BYTES
    for change in draft.changes:
        size += _CHANGE_BYTES + len(change.value or b"")
    for value in draft.rows.values():
        size += len(value or b"")
    return size
