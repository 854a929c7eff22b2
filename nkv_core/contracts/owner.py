"""Owner: one generation of a plugin, as those see it who run things on its behalf.

The node that dispatches a request, and the bus that calls a listener, enter the owner before and
leave it after. Whoever unloads the plugin sees so what is still under way, and can end it.
"""

from collections.abc import Callable
from typing import Final

Interrupt = Callable[[], None]


class Owner:
    """What runs in the name of one generation of a plugin. Used on the event loop only."""

    __slots__ = (
        "_idle",
        "_releases",
        "_requests",
        "_streams",
        "closed",
        "draining",
        "generation",
        "name",
    )

    def __init__(self, name: str, generation: int = 1) -> None:
        self.name: Final = name
        self.generation: Final = generation
        #: Whether the plugin is being unloaded: what is under way may finish, streams say goodbye.
        self.draining = False
        #: Whether the generation is gone: nothing of it may be called any more.
        self.closed = False
        self._requests: dict[object, Interrupt | None] = {}
        self._streams: dict[object, Interrupt] = {}
        self._idle: Callable[[], None] | None = None
        self._releases: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"<Owner {self.name} generation {self.generation}>"

    def enter(self, what: object, cancel: Interrupt | None = None) -> None:
        """Note that `what` (a request, a call) runs; `cancel` ends it by force at the deadline."""
        self._requests[what] = cancel

    def leave(self, what: object) -> None:
        """Note that `what` has ended."""
        self._requests.pop(what, None)
        if self._streams:
            self._streams.pop(what, None)
        if self._idle is not None and not self._requests:
            self._idle()

    def open_stream(self, what: object, goodbye: Interrupt) -> None:
        """Note that `what`, which runs already, has no end of its own; `goodbye` asks it to end."""
        self._streams[what] = goodbye
        if self.draining:
            goodbye()

    @property
    def running(self) -> int:
        """How many requests and calls are under way."""
        return len(self._requests)

    def drain(self, idle: Callable[[], None]) -> None:
        """Ask open streams to end; `idle` is called once nothing runs any more, perhaps at once."""
        self.draining = True
        self._idle = idle
        for goodbye in list(self._streams.values()):
            goodbye()
        if not self._requests:
            idle()

    def cut(self) -> int:
        """End by force what is still under way; returns how many that were."""
        left = [cancel for cancel in self._requests.values() if cancel is not None]
        for cancel in left:
            cancel()
        return len(self._requests)

    def when_closed(self, release: Callable[[], None]) -> None:
        """Have `release` called by `close`: it lets go of what was kept of this generation."""
        self._releases.append(release)

    def close(self) -> None:
        """Note that the generation is gone, and have those who kept something of it let go."""
        self.closed = True
        releases, self._releases = self._releases, []
        for release in releases:
            release()


#: The node itself: owner of what belongs to no plugin. It never drains.
CORE: Final = Owner("nkv", 0)
