"""Comparisons: with whom this node has still to compare everything, and doing so.

That is owed where changes may have been missed: the log of another does not reach back, or a node
whose changes this one no longer gets may have told them to others. Now and then it is done without
a reason, so that a silent difference does not last.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .compare import Comparison
    from .core import Core

#: Seconds before a comparison that failed is tried again, or one with the same node made.
_PAUSE: Final = 0.5


class Comparisons:
    """The comparisons that this node begins. One at a time."""

    def __init__(self, core: "Core") -> None:
        self._core: Final = core
        self._owed: Final[dict[int, str]] = {}
        self._event = anyio.Event()
        self._missing: Final[dict[int, float]] = {}  # whose changes do not come, since when
        self._told: Final[set[int]] = set()  # those of them that were acted upon
        self._next = monotonic() + core.settings.compare_interval
        self.last: dict[str, Any] | None = None  #: what the last one was, for people
        self.running: int | None = None

    @property
    def owed(self) -> dict[int, str]:
        """By node, why there is still to be compared with it."""
        return dict(self._owed)

    def owe(self, node_id: int, reason: str) -> None:
        """Compare with a node as soon as it is there."""
        self._owed.setdefault(node_id, reason)
        self._event.set()

    @contextmanager
    def settling(self, node_id: int, comparison: "Comparison") -> Iterator[None]:
        """Around a comparison with a node, whoever has begun it: what was owed before it is settled
        by it, and so is a hole at the beginning of what comes from there.
        """
        intake = self._core.intakes.get(node_id)
        reason = self._owed.get(node_id)
        yield
        if intake is None or self._core.intakes.get(node_id) is intake:
            if intake is not None:
                intake.completed(comparison.own)
            if self._owed.get(node_id) is reason:
                self._owed.pop(node_id, None)

    def goes_first(self, node_id: int) -> bool:
        """Whether the comparison that this node has begun with another makes one that the other
        begins at the same time superfluous. One of the two goes on.
        """
        return self.running == node_id and self._core.own.node_id > node_id

    def watch_sources(self) -> None:
        """Look whose changes do not come any more: others may know some that this node does not."""
        core, now = self._core, monotonic()
        known = {peer.node_id for peer in core.members}
        for node_id in known:
            if node_id in core.intakes:
                self._missing.pop(node_id, None)
                self._told.discard(node_id)
                continue
            since = self._missing.setdefault(node_id, now)
            if now - since >= core.settings.suspect_after and node_id not in self._told:
                self._told.add(node_id)
                for other in known - {node_id}:
                    self.owe(other, f"changes of {node_id:016x} may be known there")
        for node_id in list(self._missing):
            if node_id not in known:
                del self._missing[node_id]
                self._told.discard(node_id)
        for node_id in [one for one in self._owed if one not in known]:
            del self._owed[node_id]
        if now >= self._next:
            interval = core.settings.compare_interval
            self._next = now + interval * random.uniform(0.8, 1.2)  # noqa: S311  # no secret
            up = [peer.node_id for peer in core.members if peer.state == "up"]
            if up:
                self.owe(random.choice(up), "now and then")  # noqa: S311

    async def run(self, compare: "Callable[[int, str], Awaitable[bool]]") -> None:
        """Make those that are owed. `compare` makes one; whether it could."""
        while True:
            self._event = anyio.Event()
            for node_id, reason in list(self._owed.items()):
                if node_id not in self._owed:
                    continue  # the other was faster
                peer = self._core.members.get(node_id)
                if peer is None or peer.state not in ("up", "suspect"):
                    continue
                self.running = node_id
                del self._owed[node_id]  # what is owed from here on is owed anew
                done = False
                try:
                    done = await compare(node_id, reason)
                finally:
                    self.running = None
                    if not done:
                        self._owed.setdefault(node_id, reason)
            with anyio.move_on_after(_PAUSE):
                await self._event.wait()
            await anyio.sleep(0.05)
