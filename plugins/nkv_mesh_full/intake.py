"""Intake: the changes of one other node, as they come in.

They are taken in the order in which they come, and acknowledged once they are durable. How far they
have come is kept (`store`): some of them come twice after a crash, which does no harm. It is not
kept while the comparison that has to fill a hole at the beginning is still to be made.
"""

from time import monotonic
from typing import Final

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from nkv_core.errors import BadRequest

from .channel import Channel
from .core import Core
from .entries import unpack_all
from .members import Peer
from .messages import About, Ack, Batch, Goodbye, Ping, Place, Pong, Start, Welcome
from .store import Cursor

_QUEUE: Final = 4
#: Seconds between two times of keeping the place.
_KEEP_EVERY: Final = 0.5
#: The same where only time has passed.
_KEEP_SEEN: Final = 30.0


class Intake:
    """What comes from one other node over one connection."""

    def __init__(self, core: Core, peer: Peer, channel: Channel, about: About) -> None:
        self._core: Final = core
        self._peer: Final = peer
        self._channel: Final = channel
        self.about: Final = about
        self.scope: Final = anyio.CancelScope()
        self.last = monotonic()  #: when something came
        self.complete = False  #: nothing is missing before what has come here
        self.upto = 0
        self._told = -1  # the last place that was acknowledged
        self._mark: int | None = None
        self._own = 0
        self._seen = core.wall()
        self._kept: Cursor | None = None
        self._kept_at = 0.0

    async def run(self) -> None:
        """Take what comes, until the connection ends. Raises `BadRequest` for what is no message of
        this place, or cannot be taken.
        """
        core, node_id = self._core, self._peer.node_id
        await self._channel.send(
            Welcome(core.about(node_id), core.members.rumours(), self._place())
        )
        with anyio.fail_after(core.settings.down_after):
            start = await self._channel.expect(Start)
        self.upto, self.complete = start.place.revision, start.complete
        cursor = core.store.cursors.get(node_id)
        if cursor is not None:
            self._own, self._seen = cursor.own, cursor.seen
            if self.complete:
                self._mark = cursor.mark
        core.intakes[node_id] = self
        if not self.complete:
            core.comparisons.owe(node_id, "its log does not reach back to where this node was")
        try:
            with self.scope:
                send, receive = anyio.create_memory_object_stream[Batch](_QUEUE)
                async with receive, anyio.create_task_group() as tasks:
                    tasks.start_soon(self._apply, receive)
                    async with send:
                        await self._receive(send)
        finally:
            if core.intakes.get(node_id) is self:
                del core.intakes[node_id]
            with anyio.CancelScope(shield=True), anyio.move_on_after(1):
                await self._keep()

    def completed(self, own: int) -> None:
        """A comparison has filled the hole. All that the other wrote up to `own` has come."""
        self.complete = True
        self._own = max(self._own, own)

    def _place(self) -> Place | None:
        cursor = self._core.store.cursors.get(self._peer.node_id)
        if cursor is None or cursor.history != self.about.history:
            return None
        if cursor.revision > self.about.revision:
            self._core.log.warning(
                "%s is behind what it had sent before: was it set back to an older copy?",
                self._peer.address,
            )
            return None
        return Place(cursor.history, cursor.revision, cursor.mark)

    async def _receive(self, batches: MemoryObjectSendStream[Batch]) -> None:
        core, peer = self._core, self._peer
        while True:
            with anyio.fail_after(core.settings.down_after):
                message = await self._channel.receive()
            self.last = monotonic()
            if isinstance(message, Batch):
                core.members.heard(peer)
                if message.upto < self.upto:
                    raise BadRequest("A batch goes back behind one that came before.")
                await batches.send(message)
            elif isinstance(message, Ping):
                core.members.heard(peer, message.hears, message.head)
                core.members.learn(message.members, peer.node_id)
                if self.complete and self._told < self.upto:
                    await self._acknowledge()  # by comparing, and not by a batch
                if message.head <= self.upto:
                    self._seen = core.wall()
                    every = _KEEP_SEEN if self.kept == self.upto else _KEEP_EVERY
                    if monotonic() - self._kept_at >= every:
                        await self._keep()
                await self._channel.send(
                    Pong(
                        core.wall(),
                        core.keyspace.token.revision,
                        core.hears(),
                        core.members.rumours(),
                    )
                )
            elif isinstance(message, Goodbye):
                core.said_goodbye(peer, message)
                return
            else:
                raise BadRequest(f"{type(message).__name__} has no place here.")

    async def _apply(self, batches: MemoryObjectReceiveStream[Batch]) -> None:
        core = self._core
        async for batch in batches:
            if batch.entries:
                entries = unpack_all(batch.entries, core.latest())
                taken = await core.keyspace.apply_foreign(entries, core.merge)
                core.figures.received += len(entries)
                core.figures.taken += taken
                for one in entries:
                    if one.origin == self._peer.node_id and one.modified > self._own:
                        self._own = one.modified
            self.upto, self._mark = batch.upto, batch.mark
            await self._acknowledge()
            if monotonic() - self._kept_at >= _KEEP_EVERY:
                await self._keep()

    @property
    def kept(self) -> int | None:
        """The place from which this node goes on when it is started again, if any was kept."""
        return None if self._kept is None else self._kept.revision

    async def _acknowledge(self) -> None:
        self._told = self.upto
        await self._channel.send(Ack(self.upto))

    async def _keep(self) -> None:
        if not self.complete:
            return
        cursor = Cursor(self.about.history, self.upto, self._mark, self._own, self._seen)
        if cursor != self._kept:
            self._kept_at = monotonic()
            await self._core.store.save_cursor(self._peer.node_id, cursor)
            self._kept = cursor
