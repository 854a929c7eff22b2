"""Engine: one open storage with all that works on it. A keyspace has one in charge; while it is
being moved to another storage, there are two.
"""

import logging
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Final, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from nkv_core.contracts.settings import KeyspaceSettings
from nkv_core.contracts.storage import Storage
from nkv_core.errors import DeadlineExceeded
from nkv_core.keyspace.book import Book
from nkv_core.keyspace.committer import Committer
from nkv_core.keyspace.reading import Reader, Steps
from nkv_core.keyspace.upkeep import Upkeep
from nkv_core.keyspace.writes import Tails
from nkv_core.loop import Waiter, Worker, waiter_maker

log = logging.getLogger("nkv.keyspace")

T = TypeVar("T")


class Engine:
    """What an open storage is made of, with its threads. Made by `open_engine`."""

    __slots__ = (
        "_idle",
        "_new_waiter",
        "_reads",
        "book",
        "committer",
        "reader",
        "reading",
        "storage",
        "upkeep",
        "writing",
    )

    def __init__(
        self,
        storage: Storage,
        book: Book,
        settings: KeyspaceSettings,
        *,
        tails: Tails | None,
        writing: Worker | None,
        reading: Worker | None,
    ) -> None:
        self.storage: Final = storage
        self.book: Final = book
        self.writing: Final = writing
        self.reading: Final = reading
        self.reader: Final = Reader(book)
        self.committer: Final = Committer(book, settings, writing, tails)
        self.upkeep: Final = Upkeep(self.committer, book, settings)
        self._reads = 0  # that are under way
        self._idle: list[Waiter] = []
        self._new_waiter: Final = waiter_maker()

    async def read(self, steps: Steps[T], seconds: float) -> T:
        """Drive a read to its end, where the storage wants it. Raises `DeadlineExceeded`."""
        worker, end = self.reading, monotonic() + seconds
        self._reads += 1
        try:
            with anyio.move_on_after(seconds if worker is not None else None):
                while monotonic() < end:
                    done, result = (
                        _advance(steps)
                        if worker is None
                        else await worker.run(partial(_advance, steps))
                    )
                    if done:
                        return result  # type: ignore[return-value]
                    await checkpoint()
        finally:
            self._reads -= 1
            if not self._reads:
                for waiter in self._idle:
                    waiter.wake()
                self._idle.clear()
        raise DeadlineExceeded(f"Reading took longer than {seconds} seconds.")

    async def run(self) -> None:
        """Do what the engine in charge does in the background, until cancelled."""
        async with anyio.create_task_group() as tasks:
            if self.writing is not None:
                tasks.start_soon(self.committer.watch_deadlines)
            tasks.start_soon(self.upkeep.run)

    async def close(self, deadline: float) -> None:
        """Finish the writes and reads under way, refuse new ones, and close the storage. Closing
        twice does nothing. A storage that does not come back in `deadline` seconds is left behind.
        """
        if self.committer.closing:
            return
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(deadline) as scope:
                await self.committer.close()
                if self._reads:
                    waiter = self._new_waiter()
                    self._idle.append(waiter)
                    await waiter.wait()
                if self.writing is None:
                    self.storage.close()
                else:
                    await self.writing.run(self.storage.close)
            if scope.cancelled_caught:
                log.error("The storage has not come back in time; it was left as it is.")
                if self.writing is not None:  # should it come back, it is closed behind that
                    self.writing.submit(self.storage.close, _ignore)
        for worker in (self.reading, self.writing):
            if worker is not None:
                worker.close()


async def open_engine(
    storage: Storage,
    settings: KeyspaceSettings,
    opening: Callable[[], Book],
    tails: Tails | None = None,
    *,
    aside: bool = False,
) -> Engine:
    """Open a storage: `opening` does, in the thread that the storage writes in, or `aside` in one
    of its own where the storage has none. Without `tails` the engine follows another.
    """
    reading = Worker("nkv-reader") if storage.reads == "thread" else None
    # Planning a write reads, so one that has to read in a thread is made in a thread.
    threaded = reading is not None or storage.writes == "thread"
    writing = Worker("nkv-writer") if threaded or aside else None
    try:
        book = opening() if writing is None else await writing.run(opening)
    except BaseException:
        if writing is not None:
            # Where the waiting was cut short, the thread may yet open it: this comes behind.
            writing.submit(storage.close, _ignore)
            writing.close()
        if reading is not None:
            reading.close()
        raise
    if writing is not None and not threaded:
        writing.close()
        writing = None
    return Engine(storage, book, settings, tails=tails, writing=writing, reading=reading)


def _advance(steps: Steps[T]) -> tuple[bool, T | None]:
    try:
        next(steps)
    except StopIteration as end:
        return True, end.value
    return False, None


def _ignore(*_: object) -> None:
    """Whether a storage that nobody uses closes well is not worth more than its own log."""
