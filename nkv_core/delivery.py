"""Delivery: takes the change stream to one consumer outside, in order, from a place on.

What a notifier has to deliver is the hub's to keep: nothing is taken from it before what was taken
earlier has been dealt with. With a cursor the place is kept durably behind each delivery, so what
was delivered but not noted before a crash is delivered again, with the same token: at least once.
Without one, delivery begins with what is written from the plugin's load on.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import anyio
from anyio.lowlevel import checkpoint

from nkv_core.contracts.context import Context
from nkv_core.contracts.watch import Changed, Cursor, Ended, Gap, Watcher
from nkv_core.errors import InvalidToken, NkvError, Overloaded, Stopping
from nkv_core.keys import EVERYTHING
from nkv_core.records import Token

#: Seconds before the store, or the hub, is asked again after it failed.
PAUSE: Final = 1.0

#: Deals with these items, whatever that takes: it may only raise `Stopping`.
Deliver = Callable[[Sequence[Changed | Gap]], Awaitable[None]]


class Delivery:
    """Follows the changes of one pattern for one generation of a plugin."""

    def __init__(
        self,
        ctx: Context,
        deliver: Deliver,
        *,
        label: str,
        pattern: str = EVERYTHING.text,
        cursor: Cursor | None = None,
        at_once: int = 1,
    ) -> None:
        """`label` says who watches, for people; `at_once` is how many items to deal with at the
        most before the place is noted.
        """
        self._ctx = ctx
        self._deliver = deliver
        self._label = label
        self._pattern = pattern
        self._cursor = cursor
        self._at_once = at_once
        self._watcher: Watcher | None = None
        self._lost: Gap | None = None  #: a gap that is not the hub's, to be told first
        self.since: Token = ctx.node.hub.token  #: behind what was dealt with last
        self.gaps = 0  #: that were told

    @property
    def behind(self) -> int:
        """How many changes are still to be dealt with: exact while it keeps up, else at most so
        many.
        """
        watcher = self._watcher
        return 0 if watcher is None or watcher.closed else watcher.info().behind

    async def begin(self) -> None:
        """Find the place to go on from; the first time it is the end of the stream, now.

        A place that is not in the stream (another store, or one that was set back) is told as a
        gap that ends here and now, so that whatever is written from now on is delivered.
        """
        now = self.since = self._ctx.node.hub.token
        if self._cursor is None:
            return
        try:
            saved = await self._cursor.begin(now)
        except InvalidToken as error:
            self._ctx.log.error("%s Changes before %s may be lost.", error.detail, now)
            self._lost = Gap(Token(now.history, 0), now, resync=False)
            return
        if saved.history != now.history or saved.revision > now.revision:
            self._ctx.log.error("The stream is at %s, and %s is not in it.", now, saved)
            self._lost = Gap(saved, now, resync=False)
        else:
            self.since = saved

    async def run(self) -> None:
        """Deliver until the node stops."""
        while True:
            try:
                if self._lost is not None:
                    await self._deal_with([self._lost])
                    self._lost = None
                if await self._follow():
                    return
            except Stopping:
                return
            except Overloaded as error:
                self._ctx.log.warning("The hub takes no watcher: %s", error)
            await anyio.sleep(PAUSE)

    async def _follow(self) -> bool:
        """Deliver what the hub tells; whether the node is stopping, else the watch is to be begun
        again. Raises `Stopping` and `Overloaded`.
        """
        watcher = self._watcher = self._ctx.node.hub.watch(
            self._pattern,
            since=self.since,
            resync=False,  # the consumer is told what it missed; what to read anew is its choice
            label=self._label,
        )
        try:
            while items := await watcher.read(self._at_once):
                told = [item for item in items if isinstance(item, Changed | Gap)]
                if told:
                    await self._deal_with(told)
                if isinstance(ended := items[-1], Ended):
                    if ended.code == Stopping.code:
                        return True
                    self._ctx.log.warning("The watch has ended: %s", ended.detail)
                    return False
                await checkpoint()  # where delivering never waits, the others have a turn here
        finally:
            watcher.close()
        return False

    async def _deal_with(self, items: Sequence[Changed | Gap]) -> None:
        self.gaps += sum(isinstance(item, Gap) for item in items)
        await self._deliver(items)
        if (token := items[-1].token) is not None:
            self.since = token
            await self._note(token)

    async def _note(self, token: Token) -> None:
        """Keep the place durably, however long the store cannot."""
        while self._cursor is not None:
            try:
                await self._cursor.save(token)
                return
            except Stopping:
                raise
            except NkvError as error:
                self._ctx.log.error("The place %s cannot be kept yet: %s", token, error)
                await anyio.sleep(PAUSE)
