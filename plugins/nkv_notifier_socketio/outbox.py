"""Outbox: what waits for one client, bounded.

It takes the place of the queue that the protocol library makes for each connection, which has no
bound: a client that does not read would be sent everything into memory.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from anyio import CancelScope

from nkv_core.contracts.identity import Identity

#: Clients refuse an answer to a poll with more messages than this.
MAX_BURST: Final = 16


class Outbox(asyncio.Queue[Any]):
    """The queue of one connection. `full_up` is called once, where it would pass its bounds.

    Holds Engine.IO packets, and None at the end. It takes nothing more once it was full.
    """

    def __init__(
        self,
        identity: Identity | None,
        most: int,
        most_bytes: int,
        full_up: "Callable[[Outbox], None]",
    ) -> None:
        super().__init__()
        self.identity: Final = identity  #: who opened the connection
        self.call: CancelScope | None = None  #: that of its WebSocket, once it has one
        self.closed = False
        self._most = most
        self._most_bytes = most_bytes
        self._full_up = full_up
        self._bytes = 0
        self._burst = 0

    def may_see(self, key: str) -> bool:
        """Whether the client may be told of a key."""
        return self.identity is None or self.identity.may_read(key)

    async def get(self) -> Any:
        """The next packet; the first of a burst."""
        self._burst = 0
        return await super().get()

    def get_nowait(self) -> Any:
        """The next packet, if there is one that still fits into the burst."""
        if self._burst >= MAX_BURST:
            raise asyncio.QueueEmpty
        self._burst += 1
        return super().get_nowait()

    async def join(self) -> None:
        """Return at once: nobody is to wait until a client deigns to read."""

    def _put(self, item: Any) -> None:
        if item is None:
            super()._put(item)
            return
        if self.closed:
            return
        size = _size(item)
        waiting = self.qsize()
        # A single large message always fits: how large it may be is the keyspace's business.
        if waiting and (waiting >= self._most or self._bytes + size > self._most_bytes):
            self.close()
            self._full_up(self)
            return
        self._bytes += size
        super()._put(item)

    def _get(self) -> Any:
        item = super()._get()
        if item is not None:
            self._bytes -= _size(item)
        return item

    def close(self) -> None:
        """Let go of all that waits, and take nothing more."""
        self.closed = True
        while self.qsize():
            self._get()


def _size(packet: Any) -> int:
    # Encoded once, for all clients that get the same packet, and kept by the packet.
    return len(packet.encode())
