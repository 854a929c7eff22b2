"""Outward: following the change stream for those who take it to somebody outside the node.

A consumer outside is slow, away, or there again, and must miss nothing that the change log still
has. So its place is kept durably, and moved on behind what was delivered: at least once, in order.
One that nothing can be kept for is told what is written from the plugin's load on.
"""

import random
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Final, Self

import anyio
from anyio import CancelScope, current_time
from anyio.lowlevel import checkpoint

from nkv_core.contracts.context import Context
from nkv_core.contracts.watch import Changed, Cursor, Ended, Gap, Watcher
from nkv_core.errors import InvalidToken, NkvError, Overloaded, Stopping
from nkv_core.keys import EVERYTHING
from nkv_core.records import Token

Delivery = Changed | Gap
#: Returns once all of these are delivered, or given up. What it raises ends the following.
Deliver = Callable[[Sequence[Delivery]], Awaitable[None]]

#: Seconds before the store, or the hub, is asked again after it failed.
PAUSE: Final = 1.0
#: Seconds without anything to deliver before the place is kept all the same: the log moves on with
#: changes that are not for this consumer, and must not leave its place behind.
_IDLE: Final = 30.0
#: Seconds that keeping the last place may take when the plugin goes.
_PARTING: Final = 1.0


class Follower:
    """Follows the stream for one consumer. Entered in `nkv_setup`: what changes from then on counts
    the first time, and later what changed behind the place that was kept. `run` is for a task.
    """

    def __init__(
        self,
        ctx: Context,
        name: str | None,
        *,
        label: str,
        pattern: str = EVERYTHING.text,
        most: int = 1,
        keep_every: float = 0.0,
    ) -> None:
        """`name` tells the consumers of one plugin apart, or is None for one whose place is not
        kept; `label` is for people.

        At most `most` items are delivered at once. The place is kept after each delivery, or no
        more often than every `keep_every` seconds and at the end.
        """
        self._ctx = ctx
        self._cursor = None if name is None else Cursor(ctx.state, name)
        self._pattern: Final = pattern
        self._label: Final = label
        self._most: Final = most
        self._keep_every: Final = keep_every
        self._keep_next = 0.0
        self._watcher: Watcher | None = None
        self._since: Token = ctx.node.hub.token
        self._lost: Gap | None = None  #: a gap that is not the hub's, to be told first
        self.gaps = 0

    @property
    def token(self) -> Token:
        """The place behind what was delivered last."""
        return self._since

    @property
    def saved(self) -> Token | None:
        """The place as it was kept last."""
        return None if self._cursor is None else self._cursor.saved

    @property
    def behind(self) -> int:
        """How many changes wait to be delivered, as `WatcherInfo.behind` has it."""
        watcher = self._watcher
        return 0 if watcher is None or watcher.closed else watcher.info().behind

    async def __aenter__(self) -> Self:
        await self._find_place()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._lost is None:
            with CancelScope(shield=True), anyio.move_on_after(_PARTING):
                await self._keep(tries=1)

    async def run(self, deliver: Deliver) -> None:
        """Deliver until the node stops; a replacement goes on once its predecessor has ended."""
        if self._cursor is not None and await self._ctx.predecessor_ended():
            await self._find_place()
        while True:
            try:
                if self._lost is not None:
                    self.gaps += 1
                    await deliver((self._lost,))
                    lost, self._lost = self._lost, None
                    await self._move_on(lost.upto)
                if await self._follow(deliver):
                    return
            except Stopping:
                return
            except Overloaded as error:
                self._ctx.log.warning("The hub takes no watcher: %s", error)
            await anyio.sleep(PAUSE)

    async def _find_place(self) -> None:
        """Find the place to go on from; the first time it is the end of the stream, now."""
        if self._cursor is None:
            return
        now = self._ctx.node.hub.token
        try:
            self._since = await self._cursor.begin(now)
        except InvalidToken as error:
            self._ctx.log.error("%s Changes before %s may be lost.", error.detail, now)
            self._since, self._lost = now, Gap(Token(now.history, 0), now, resync=False)
            return
        if self._since.history != now.history or self._since.revision > now.revision:
            # Another store, or one that was set back. The gap ends here and now, so that whatever
            # is written from now on is told.
            self._ctx.log.error("The stream is at %s, and %s is not in it.", now, self._since)
            self._lost = Gap(self._since, now, resync=False)
            self._since = now

    async def _follow(self, deliver: Deliver) -> bool:
        """Deliver what the hub tells; whether the node is stopping, else the watch is to be begun
        again. Raises `Stopping` and `Overloaded`.
        """
        watcher = self._watcher = self._ctx.node.hub.watch(
            self._pattern,
            since=self._since,
            resync=False,  # the consumer is told what it missed; what to read anew is its choice
            label=self._label,
        )
        try:
            while True:
                items = None
                with anyio.move_on_after(_IDLE):
                    items = await watcher.read(self._most)
                if items is None:
                    await self._move_on(watcher.token)
                    continue
                told = [item for item in items if isinstance(item, Changed | Gap)]
                if told:
                    self.gaps += sum(isinstance(item, Gap) for item in told)
                    await deliver(told)
                    await self._move_on(told[-1].token)
                last = items[-1] if items else None
                if isinstance(last, Ended):
                    if last.code == Stopping.code:
                        return True
                    self._ctx.log.warning("The watch has ended: %s", last.detail)
                if last is None or isinstance(last, Ended):
                    return False
                await checkpoint()  # where delivering never waits, the others have a turn here
        finally:
            watcher.close()

    async def _move_on(self, token: Token | None) -> None:
        if token is None:
            return
        self._since = token
        now = current_time()
        if now >= self._keep_next:
            self._keep_next = now + self._keep_every
            await self._keep()

    async def _keep(self, tries: int | None = None) -> None:
        """Keep the place durably, however long the store cannot, or for so many tries."""
        while self._cursor is not None:
            try:
                await self._cursor.save(self._since)
                return
            except Stopping:
                if tries is None:
                    raise
                return
            except NkvError as error:
                self._ctx.log.error("The place %s cannot be kept yet: %s", self._since, error)
                if tries is not None:
                    return
                await anyio.sleep(PAUSE)


def backoff(attempt: int, first: float, longest: float) -> float:
    """Seconds to wait behind a failed attempt, from 1: doubled each time, up to `longest`, and less
    a random part of up to a half, so that no two wait alike.
    """
    # At 2**32 any bound is long passed, and a float far from its own.
    waited = min(longest, first * 2.0 ** min(attempt - 1, 32))
    return waited * random.uniform(0.5, 1.0)  # noqa: S311  # spreads load, hides nothing
