"""Departures: generations on their way out, and whether anything of them stays in memory."""

import logging
from typing import Final

import anyio
from anyio import Event

from nkv_core.plugin_host.leaks import PAUSE, Collector, Witnesses
from nkv_core.plugin_host.lifecycle import Generation

#: Seconds to wait before each look whether a closed generation is gone.
LOOKS: Final = (0.0, PAUSE, 2 * PAUSE, 0.3, 1.4)

log = logging.getLogger("nkv.plugins")


class Departure:
    """A generation that leaves, and what is known of it when it has left."""

    def __init__(self, generation: Generation, loaded_at: int, collector: Collector) -> None:
        self.generation: Final = generation
        self.loaded_at: Final = loaded_at  #: milliseconds since 1970
        self.over: Final = Event()  #: closed, or found to have leaked
        self.leaked = False
        self.held_by: tuple[str, ...] = ()
        self._collector = collector
        self._witnesses: Witnesses | None = generation.witnesses

    async def look_back(self, stopping: Event) -> None:
        """Find out whether the generation, which is retired, is gone from memory, unless the node
        is `stopping`: then nobody needs the memory any more.
        """
        generation = self.generation
        generation.forget()
        for wait in LOOKS:
            with anyio.move_on_after(wait):
                await stopping.wait()
            if stopping.is_set() or self._collector.gone(self._witnesses):
                log.info("%s generation %d is closed.", generation.name, generation.number)
                break
        else:
            self._leak()
        if generation.state != "failed":
            generation.state = "leaked" if self.leaked else "closed"
        self.over.set()

    def is_past(self) -> bool:
        """Whether nothing is left of it, now at least."""
        gone_since = self._witnesses is None or self._witnesses.gone()
        return self.over.is_set() and (gone_since or not self.leaked)

    def _leak(self) -> None:
        self.leaked = True
        if self._witnesses is not None:
            try:
                self.held_by = tuple(self._witnesses.holders())
            except Exception as error:  # noqa: BLE001  # any object of anybody's is looked at
                log.info("What holds %r could not be found: %r", self.generation.owner, error)
        log.warning(
            "%r is closed, but its code is still held in memory: by %s.",
            self.generation.owner,
            ", ".join(self.held_by) or "something that could not be found",
        )
