"""Feed: the changes of this node on their way to one other, and the pings beside them.

The other says how far it has come; from there the changes are sent in order, a batch at a time, and
the other acknowledges each once it is durable there. Batches form by themselves: while some are
under way, what is written meanwhile waits for the next.

What other nodes wrote is left out where the other gets it from them. Where it does not, it is
passed on.
"""

from collections import deque
from typing import Final

import anyio
import msgspec

from nkv_core.contracts.watch import Changed, Ended, Gap
from nkv_core.errors import InvalidToken, Stopping
from nkv_core.records import Change, Token

from .channel import Channel, PeerRefused
from .core import Core
from .entries import form_of
from .handshake import refuse_skew
from .members import Peer
from .messages import Ack, Batch, Goodbye, Ping, Place, Pong, Refusal, Start

_READ: Final = 512
_BATCH_BYTES: Final = 512 * 1024
#: So many batches may be under way.
_WINDOW: Final = 2
#: Seconds between two looks at the log while the node stops.
_STOPPING_PAUSE: Final = 0.02


class FeedBroken(Exception):
    """The feed cannot go on over this connection; another one may."""


class Feed:
    """What is sent to one other node over one connection."""

    def __init__(self, core: Core, peer: Peer, channel: Channel) -> None:
        self._core: Final = core
        self._peer: Final = peer
        self._channel: Final = channel
        self._unacked: Final[deque[int]] = deque()
        self._room = anyio.Event()
        self._quiet: tuple[int, int] | None = None  # a place that the other has yet to be told
        self._asked: Final[deque[int]] = deque()  # when the pings were sent
        self.acked = -1  #: up to this revision the other has everything, durably
        self.complete = True

    async def run(self, place: Place | None) -> None:
        """Send, until the connection ends. `place` is how far the other has come."""
        start, self.complete = await self._begin(place)
        await self._channel.send(Start(Place(start.history, start.revision, None), self.complete))
        if self.complete:
            self.acked = start.revision
        self._core.feeds[self._peer.node_id] = self
        self._core.acks.told()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._send, start)
                tasks.start_soon(self._ping)
                await self._receive()
        finally:
            if self._core.feeds.get(self._peer.node_id) is self:
                del self._core.feeds[self._peer.node_id]
            self._core.acks.told()

    async def goodbye(self, *, for_good: bool) -> None:
        """Tell the other that this node goes."""
        with anyio.move_on_after(1):
            try:
                await self._channel.send(Goodbye(self._core.own.incarnation, for_good))
            except (OSError, TimeoutError, anyio.BrokenResourceError, anyio.ClosedResourceError):
                return

    async def _begin(self, place: Place | None) -> tuple[Token, bool]:
        """Where to begin, and whether nothing is left out by it."""
        keyspace = self._core.keyspace
        now = keyspace.token
        if place is None or place.history != now.history or place.revision > now.revision:
            return now, False
        if place.mark is not None and place.revision > 0:
            before = Token(place.history, place.revision - 1)
            page = await keyspace.changes(before, limit=1)
            if page.gap or not page.changes:
                return now, False
            first = page.changes[0]
            if (first.revision, first.modified) != (place.revision, place.mark):
                return now, False  # our stream is another than the one that was taken so far
        token = Token(place.history, place.revision)
        if (await keyspace.changes(token, limit=1)).gap:
            return now, False
        return token, True

    # --- changes ----------------------------------------------------------------------------------

    async def _send(self, start: Token) -> None:
        try:
            watcher = self._core.ctx.node.hub.watch(
                "*", since=start, resync=False, label=f"mesh {self._peer.address}"
            )
        except (InvalidToken, Stopping) as error:
            raise FeedBroken(str(error)) from error
        place = start
        try:
            while items := await watcher.read(_READ):
                if any(isinstance(item, Gap) for item in items):
                    raise FeedBroken("the log does not reach back so far any more")
                changes = [item for item in items if isinstance(item, Changed)]
                await self._send_changes(changes)
                if changes:
                    place = Token(start.history, changes[-1].change.revision)
                last = items[-1]
                if isinstance(last, Ended):
                    if last.code != Stopping.code:
                        raise FeedBroken(last.detail)
                    break
        finally:
            watcher.close()
        await self._send_rest(place)

    async def _send_rest(self, place: Token) -> None:
        """Send what the log has behind a place, for as long as the connection lasts: the hub has
        ended before those who write do, since the node stops.
        """
        while True:
            page = await self._core.keyspace.changes(place, limit=_READ)
            if page.changes:
                place = page.token
                await self._send_changes([Changed(one, place.history) for one in page.changes])
            else:
                await anyio.sleep(_STOPPING_PAUSE)

    async def _send_changes(self, changes: list[Changed]) -> None:
        entries: list[msgspec.Raw] = []
        room = _BATCH_BYTES
        last: Change | None = None
        for changed in changes:
            last = changed.change
            if not self._concerns(last):
                continue
            packed = form_of(changed)
            entries.append(msgspec.Raw(packed))
            room -= len(packed)
            if room <= 0:
                await self._send_batch(last, entries)
                entries, room, last = [], _BATCH_BYTES, None
        if entries and last is not None:
            await self._send_batch(last, entries)
        elif last is not None:
            # It goes with the next ping: by itself it is not worth a message.
            self._quiet = last.revision, last.modified

    async def _send_batch(self, last: Change, entries: list[msgspec.Raw]) -> None:
        while len(self._unacked) >= _WINDOW:
            self._room = anyio.Event()
            await self._room.wait()
        self._quiet = None
        self._unacked.append(last.revision)
        self._core.figures.sent += len(entries)
        await self._channel.send(Batch(last.revision, last.modified, entries))

    def _concerns(self, change: Change) -> bool:
        if change.cause == "expire":
            return False  # every node comes to that by itself
        if change.origin == self._core.own.node_id or change.cause == "merged":
            return True
        return change.origin != self._peer.node_id and change.origin not in self._peer.hears

    # --- pings and answers ------------------------------------------------------------------------

    async def _ping(self) -> None:
        core = self._core
        while True:
            if self._quiet is not None and not self._unacked:
                upto, mark = self._quiet
                self._quiet = None
                self._unacked.append(upto)
                await self._channel.send(Batch(upto, mark, []))
            now = core.wall()
            self._asked.append(now)
            await self._channel.send(
                Ping(now, core.keyspace.token.revision, core.hears(), core.members.rumours())
            )
            await anyio.sleep(core.settings.ping_interval)

    async def _receive(self) -> None:
        core, peer = self._core, self._peer
        while True:
            with anyio.fail_after(core.settings.down_after):
                message = await self._channel.receive()
            if isinstance(message, Ack):
                while self._unacked and self._unacked[0] <= message.upto:
                    self._unacked.popleft()
                if message.upto <= core.keyspace.token.revision:
                    self.acked = max(self.acked, message.upto)
                self._room.set()
                core.members.heard(peer)
                core.acks.told()
            elif isinstance(message, Pong):
                begun = self._asked.popleft() if self._asked else core.wall()
                refuse_skew(message.wall, begun, core.terms, peer.address)
                core.members.heard(peer, message.hears, message.head)
                core.members.learn(message.members, peer.node_id)
            elif isinstance(message, Refusal):
                raise PeerRefused(message.detail, message.code)
            else:
                raise FeedBroken(f"{type(message).__name__} has no place here")
