"""Event stream: what one watcher is told, as the bytes of Server-Sent Events.

Bytes are made when the transport asks for them, which it does once it has sent those before. So a
reader that is slow, or does not read at all, holds a cursor of the hub and a piece of bounded size.
"""

from collections.abc import Callable
from typing import Final, Self

import anyio
from anyio.lowlevel import checkpoint

from nkv_core.contracts.watch import Ended, Hub, Item, Watcher
from nkv_core.errors import Stopping
from nkv_core.loop import Waiter, waiter_maker
from nkv_core.records import Token

from .frames import frame, frame_of_place

#: Bytes after which a piece is sent, however much more there is to tell.
_PIECE: Final = 16 * 1024
#: Items taken at once: those that stay behind a full piece are kept for a reader who may not read.
_TAKE: Final = 8


class Bell:
    """Is rung by the hub when there is something to take, for one who waits for that.

    The hub holds it, and it holds nothing: so a stream that nobody reads any more goes.
    """

    __slots__ = ("_waiter", "prompt")

    def __init__(self) -> None:
        self._waiter: Waiter | None = None
        self.prompt: Callable[[], None] | None = None  #: called in the place of waking who waits

    def ring(self) -> None:
        """What the hub calls. Nobody may be waiting: who is about to wait looks first."""
        if self._waiter is None:
            return
        if self.prompt is None:
            self._waiter.wake()
        else:
            self.prompt()

    def wake(self) -> None:
        """Wake who waits, in any case."""
        if self._waiter is not None:
            self._waiter.wake()

    async def wait(self) -> None:
        """Wait until it is rung."""
        self._waiter = waiter_maker()()
        try:
            await self._waiter.wait()
        finally:
            self._waiter = None


class EventStream:
    """Iterates over pieces of one or more whole events. To be closed by `aclose`.

    Implements `contracts.handlers.Prompt`.
    """

    __slots__ = (
        "_bell",
        "_ended",
        "_full",
        "_heartbeat",
        "_hub",
        "_items",
        "_opening",
        "_place",
        "_told",
        "_watcher",
    )

    def __init__(
        self, watcher: Watcher, hub: Hub, bell: Bell, *, heartbeat: float, retry: float
    ) -> None:
        """`bell` is what the hub rings for the watcher."""
        self._watcher = watcher
        self._bell = bell
        self._hub = hub
        self._heartbeat = heartbeat  #: seconds
        self._items: list[Item] = []  # a deque, empty, would be a third of all that is here
        #: Where to go on behind what was told; while nothing is left over the watcher knows better.
        self._place = watcher.token
        self._told: Token | None = None  #: the place that the client was told of last
        self._opening = f"retry: {max(1, round(retry * 1000))}\n".encode()
        self._full = False
        self._ended = False

    def __del__(self) -> None:
        # A stream that nobody began to read is never closed by whoever reads streams.
        self._watcher.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._opening:
            # A client that is told nothing before it is cut off knows from here on where to resume.
            opening, self._opening = self._opening, b""
            return opening + (self._news_of_place() or b"\n")
        if self._full:
            await checkpoint()  # who reads as fast as others write must not keep them from it
        if not self._has_items():
            with anyio.move_on_after(self._heartbeat):
                while not (self._over or self._has_items()):
                    await self._bell.wait()
            if not (self._over or self._items):
                return b":\n" + (self._news_of_place() or b"\n")
        if not self._items:
            raise StopAsyncIteration
        return self._piece()

    @property
    def prompt(self) -> Callable[[], None] | None:
        """See `Prompt`."""
        return self._bell.prompt

    @prompt.setter
    def prompt(self, prompt: Callable[[], None] | None) -> None:
        self._bell.prompt = prompt

    def next_now(self) -> bytes | None:
        """The next piece, or None where there is none now: see `Prompt`."""
        if self._has_items():
            return self._piece()
        if self._over:
            self._bell.wake()
        return None

    @property
    def _over(self) -> bool:
        """Whether nothing more comes."""
        return self._ended or self._watcher.closed

    def _has_items(self) -> bool:
        if not (self._items or self._ended):
            self._items.extend(self._watcher.take(_TAKE))
        return bool(self._items)

    def _piece(self) -> bytes:
        """As much of what is ready as goes out at once, at least one event."""
        frames: list[bytes] = []
        size = 0
        while size < _PIECE:
            if not self._items:
                self._items.extend(self._watcher.take(_TAKE))
                if not self._items:
                    break
            item = self._items.pop(0)
            frames.append(frame(item, self._hub))
            size += len(frames[-1])
            self._place = item.token
            if item.token is not None:
                self._told = item.token
            if isinstance(item, Ended):
                self._ended = True
                break
        self._full = size >= _PIECE
        # What all who watch this are told is in memory once, if it goes out alone.
        return frames[0] if len(frames) == 1 else b"".join(frames)

    def _news_of_place(self) -> bytes:
        """What moves the client's place on past changes that were not its concern; if anything."""
        place = self._watcher.token
        if place is None or place == self._told:
            return b""
        self._told = place
        return frame_of_place(place)

    async def aclose(self) -> None:
        """Watch no more. Where to resume is known still."""
        if not self._items and not self._watcher.closed:
            self._place = self._watcher.token
        self._watcher.close()

    def goodbye(self) -> bytes:
        """The last event of a stream that is ended from this side: where to resume elsewhere."""
        if self._ended:
            return b""
        self._ended = True
        stopping = Stopping()
        return frame(Ended(self._place, stopping.code, stopping.detail), self._hub)
