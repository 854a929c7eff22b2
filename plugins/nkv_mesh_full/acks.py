"""Acks: waiting until enough nodes have a write."""

from collections.abc import Callable
from typing import Final

import anyio

from nkv_core.contracts.keyspace import Acknowledged


class Acks:
    """Who waits for which revision to be acknowledged by how many nodes."""

    def __init__(self, count: Callable[[int], int]) -> None:
        """`count` gives how many nodes have all up to a revision."""
        self._count: Final = count
        self._waiting: Final[dict[int, tuple[int, int, anyio.Event]]] = {}
        self._number = 0
        self._none = anyio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def told(self) -> None:
        """Somebody has acknowledged something, or has gone."""
        for revision, wanted, event in list(self._waiting.values()):
            if self._count(revision) >= wanted:
                event.set()

    async def none_waits(self, seconds: float) -> None:
        """Wait until nobody waits any more, but no longer than so many seconds."""
        with anyio.move_on_after(seconds):
            while self._waiting:
                self._none = anyio.Event()
                await self._none.wait()

    async def wait(self, revision: int, wanted: int, deadline: float) -> Acknowledged:
        """Wait until so many nodes have the revision, but no longer than so many seconds."""
        nodes = self._count(revision)
        if nodes < wanted:
            self._number += 1
            number, event = self._number, anyio.Event()
            self._waiting[number] = (revision, wanted, event)
            try:
                with anyio.move_on_after(deadline):
                    await event.wait()
            finally:
                del self._waiting[number]
                if not self._waiting:
                    self._none.set()
            nodes = self._count(revision)
        return Acknowledged(nodes, wanted)
