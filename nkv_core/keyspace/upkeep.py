"""Upkeep: expiry, reclaiming what was cleared, and the bounds of log and tombstones."""

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import anyio
from anyio.lowlevel import checkpoint

from nkv_core.contracts.settings import KeyspaceSettings
from nkv_core.errors import NkvError
from nkv_core.keyspace.book import Book
from nkv_core.keyspace.cleaning import (
    Walk,
    all_tombstones,
    forget_tombstones,
    reclaim,
    records_below,
    sweep,
)
from nkv_core.keyspace.committer import Committer

log = logging.getLogger("nkv.keyspace")

_LONGEST_PAUSE: Final = 60.0
_TIDY_INTERVALS: Final = (1.0, 600.0)
_TIDY_PARTS: Final = 64  # of the shortest age: what is kept may be older by such a part


class Upkeep:
    """The background work of one keyspace. Each of `sweep`, `reclaim` and `tidy` does what is due
    now; `run` calls them for as long as the keyspace lives.
    """

    def __init__(self, committer: Committer, book: Book, settings: KeyspaceSettings) -> None:
        self._committer: Final = committer
        self._book: Final = book
        self._settings: Final = settings
        #: Held while a part of what was cleared is reclaimed. Whoever counts holds it too.
        self.reclaiming: Final = anyio.Lock(fast_acquire=True)
        #: Whether tombstones are kept beyond their age, because somebody else needs them.
        self.keeping = False
        #: How many records have expired.
        self.expired = 0

    async def run(self) -> None:
        """Do all of it when it is due, until cancelled."""
        shortest = min(self._settings.log_age, self._settings.tombstone_age)
        tidy_interval = min(max(shortest / _TIDY_PARTS, _TIDY_INTERVALS[0]), _TIDY_INTERVALS[1])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._forever, "expiry", self.sweep, self._until_expiry)
            interval = self._settings.sweep_interval
            tasks.start_soon(self._forever, "reclaiming", self.reclaim, lambda: interval)
            tasks.start_soon(self._forever, "tidying", self.tidy, lambda: tidy_interval)

    async def _forever(
        self, what: str, work: Callable[[], Awaitable[object]], pause: Callable[[], float]
    ) -> None:
        longer = 1.0
        while True:
            try:
                await work()
                longer = 1.0
            except NkvError as error:
                log.warning("The keyspace's %s failed and is tried again: %s", what, error)
                longer = min(longer * 2, _LONGEST_PAUSE)
            except Exception:
                # Damaged rows, say. The others depend on it no more than the writers do.
                log.exception("The keyspace's %s failed and is tried again.", what)
                longer = min(longer * 2, _LONGEST_PAUSE)
            await anyio.sleep(min(pause() * longer, max(_LONGEST_PAUSE, pause())))

    def _until_expiry(self) -> float:
        """Seconds to the next expiry, or the interval in which an earlier one may be put."""
        interval = self._settings.sweep_interval
        earliest = self._book.next_expiry
        if earliest is None:
            return interval
        return min(interval, max((earliest - self._book.wall()) / 1000, 0.001))

    async def sweep(self) -> int:
        """Make changes of the expiries that are due; returns how many."""
        count, more = 0, True
        while more and self._book.next_expiry is not None:
            if self._book.next_expiry > self._book.wall():
                break
            expired, more = await self._committer.write(sweep, 0)
            count += expired
            self.expired += expired
            await checkpoint()
        return count

    async def reclaim(self) -> None:
        """Give back the room of all that was cleared."""
        while clears := list(self._book.clears.active):
            clear, more = clears[0], True
            walk = Walk(partial(records_below, clear), partial(reclaim, clear))
            while more:
                async with self.reclaiming:
                    more = await self._committer.write(walk.step, 0)
                await checkpoint()

    async def tidy(self) -> None:
        """Forget what log and tombstones have beyond their age."""
        while await self._committer.trimmer.trim():
            await checkpoint()
        before = self._book.wall() - round(self._settings.tombstone_age * 1000)
        walk = Walk(all_tombstones, partial(forget_tombstones, before))
        while not self.keeping and await self._committer.write(walk.step, 0):
            await checkpoint()
