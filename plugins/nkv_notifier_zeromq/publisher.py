"""Publisher: a PUB socket on the node's own port, and what is sent through it."""

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import anyio
import zmq

from nkv_core.contracts.context import Context, Listener
from nkv_core.contracts.watch import Changed, Gap
from nkv_core.outward import Follower

from .messages import Frames
from .messages import Sequence as Messages
from .settings import ZeromqSettings

#: Milliseconds for which what was published is still sent when the plugin goes.
_LINGER: Final = 500
#: Items that are published before others have a turn.
_AT_ONCE: Final = 64


class Publisher:
    """Publishes for one generation of the plugin."""

    def __init__(self, ctx: Context, sockets: Sequence[zmq.Socket[bytes]]) -> None:
        self._ctx = ctx
        self._sockets = sockets
        self._messages = Messages(secrets.token_hex(8))
        settings: ZeromqSettings = ctx.settings
        self._heartbeat = settings.heartbeat
        self._follower = Follower(
            ctx, None, label="zeromq", pattern=settings.pattern, most=_AT_ONCE
        )

    async def run(self) -> None:
        """Publish until the node stops."""
        await self._follower.run(self._publish)

    async def beat(self) -> None:
        """Say how far the stream is, again and again, so that silence is told from loss."""
        while True:
            self._send(self._messages.heartbeat(self._follower.token))
            await anyio.sleep(self._heartbeat)

    def status(self) -> dict[str, object]:
        """How it goes, for JSON."""
        return {
            "publisher": self._messages.publisher,
            "published": self._messages.last,
            "token": str(self._follower.token),
            "behind": self._follower.behind,
            "gaps": self._follower.gaps,
        }

    async def _publish(self, items: Sequence[Changed | Gap]) -> None:
        for item in items:
            self._send(self._messages.of(item, self._ctx.keyspace.history))

    def _send(self, frames: Frames) -> None:
        # A PUB socket never blocks: a subscriber whose queue is full does not get the message.
        for each in self._sockets:
            each.send_multipart(frames, zmq.NOBLOCK)


@asynccontextmanager
async def published_at(listener: Listener, pending: int) -> AsyncIterator[list[zmq.Socket[bytes]]]:
    """PUB sockets that accept on the node's sockets, closed when the block is left."""
    context = zmq.Context()
    sockets = []
    try:
        for listening in listener.sockets():
            each = context.socket(zmq.PUB)
            sockets.append(each)
            each.setsockopt(zmq.SNDHWM, pending)
            each.setsockopt(zmq.LINGER, _LINGER)
            each.setsockopt(zmq.IPV6, 1)
            # The library accepts on this one, and closes it; the address only says of what kind.
            each.setsockopt(zmq.USE_FD, listening.detach())
            each.bind("tcp://127.0.0.1:*")
        yield sockets
    finally:
        for each in sockets:
            each.close()
        with anyio.CancelScope(shield=True):
            # It waits for what lingers, in a thread that ends by itself then.
            await anyio.to_thread.run_sync(context.term)
