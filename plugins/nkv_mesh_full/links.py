"""Links: connections to other nodes, those that this node makes and those that it accepts."""

import errno
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from time import monotonic
from typing import Final

import anyio
import httpx2
import msgspec
from anyio.abc import ByteStream, SocketAttribute, SocketStream, TaskGroup
from anyio.streams.tls import TLSStream

from nkv_core.errors import BadRequest, Forbidden, NkvError, Overloaded
from nkv_core.outward import backoff

from .addresses import is_loopback, is_url, parse_address
from .channel import Channel
from .compare import Comparison
from .core import Core
from .feed import Feed, FeedBroken
from .handshake import Itself, SameNode, accept, connect
from .intake import Intake
from .members import LEFT, Peer
from .messages import Hello, Purpose, Welcome

#: Where a node tells over HTTP what its address is.
ADDRESS_PATH: Final = "/v1/mesh"
#: Seconds for connecting and the handshake.
_HANDSHAKE: Final = 5.0
#: Connections that have not proved anything yet, at a time.
_STRANGERS: Final = 64
_AT_ONCE: Final = 16
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 2.0
#: The same towards a node that does not let this one in.
_REFUSED_PAUSE: Final = 5.0
#: Addresses that are asked at a time who is there.
_KNOCKS: Final = 256
#: Seconds before the same warning is logged again, and how many are remembered.
_WARN_PAUSE: Final = 60.0
_WARNINGS: Final = 100
#: Seconds between two rounds at the addresses of the settings, once somebody is up.
_KNOCK_PAUSE: Final = 30.0

_ENDED: Final = (
    OSError,
    TimeoutError,
    anyio.EndOfStream,
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
    FeedBroken,
)


class Busy(Overloaded):
    """The two are comparing already."""

    code = "busy"


class _Told(msgspec.Struct):
    """What is answered at `ADDRESS_PATH`."""

    address: str


async def _address_at(url: str) -> str:
    """Where the node is reached by others whose HTTP is at a URL. Raises `FeedBroken`."""
    try:
        async with httpx2.AsyncClient(timeout=_HANDSHAKE, trust_env=False) as http:
            answer = await http.get(url.rstrip("/") + ADDRESS_PATH)
        return msgspec.json.decode(answer.content, type=_Told).address
    except (httpx2.HTTPError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FeedBroken(f"no node of a mesh answers there: {error}") from None


class Links:
    """All connections of one running mesh."""

    def __init__(self, core: Core, tasks: TaskGroup) -> None:
        self._core: Final = core
        self._tasks: Final = tasks
        self._wake: Final[dict[int, anyio.Event]] = {}  # of the dialers that wait
        self._dialed: Final[set[int]] = set()
        self._strangers = 0
        self._warned: Final[dict[str, float]] = {}  # what was logged, and when
        self.closed = ""  #: why nobody is let in any more
        self._channels: Final[set[Channel]] = set()
        self._knocking: Final[set[str]] = set()

    # --- towards others ---------------------------------------------------------------------------

    def dial_new(self) -> None:
        """See to it that each known node has somebody who connects to it."""
        for peer in self._core.members:
            if peer.node_id not in self._dialed and peer.rumour.gone != LEFT:
                self._dialed.add(peer.node_id)
                self._tasks.start_soon(self._dial, peer.node_id)

    def knock_at(self, address: str, *, tries: int | None = None) -> None:
        """Look who is at an address, now and again; with `tries`, no more often than that before
        somebody answers.
        """
        if address not in self._knocking and len(self._knocking) < _KNOCKS:
            self._knocking.add(address)
            self._tasks.start_soon(self._knock, address, tries)

    async def _dial(self, node_id: int) -> None:
        attempt = 0
        core = self._core
        try:
            while not self.closed and (peer := core.members.get(node_id)) is not None:
                began = monotonic()
                pause = _LONGEST_PAUSE
                try:
                    await self._feed(peer)
                except Exception as error:  # noqa: BLE001  # one connection's, and told
                    story = self._told(error, peer.address)
                    refused = story.detail if isinstance(story, NkvError) else ""
                    if refused and refused != peer.refused:
                        core.log.warning("%s: %s", peer.address, refused)
                    core.members.refuse(peer, refused)
                    pause = _REFUSED_PAUSE if refused else _LONGEST_PAUSE
                if monotonic() - began > _LONGEST_PAUSE:
                    attempt = 0
                attempt += 1
                self._wake[node_id] = anyio.Event()
                with anyio.move_on_after(backoff(attempt, _FIRST_PAUSE, pause)):
                    await self._wake[node_id].wait()
        finally:
            self._wake.pop(node_id, None)
            self._dialed.discard(node_id)

    async def _feed(self, peer: Peer) -> None:
        core = self._core
        async with self._connected(peer.address, "feed", peer.node_id) as (channel, welcome):
            if welcome.about.node_id != peer.node_id:
                core.members.meet(welcome.about)
                raise FeedBroken(f"at {peer.address} there is another node now")
            core.members.meet(welcome.about)
            core.members.learn(welcome.members, peer.node_id)
            await Feed(core, peer, channel).run(welcome.place)

    async def compare(self, node_id: int, reason: str) -> bool:
        """Compare with a node; whether that could be done."""
        core = self._core
        peer = core.members.get(node_id)
        if peer is None:
            return False
        began = monotonic()
        try:
            async with self._connected(peer.address, "compare", node_id) as (channel, welcome):
                if welcome.about.node_id != node_id:
                    return False
                comparison = Comparison(core, channel, welcome.about)
                with core.comparisons.settling(node_id, comparison):
                    await comparison.ask()
        except Exception as error:  # noqa: BLE001  # one connection's, and told
            story = self._told(error, peer.address)
            core.log.info("Comparing with %s failed: %s", peer.address, story)
            await anyio.sleep(_FIRST_PAUSE)
            return False
        core.figures.compared += 1
        core.figures.compared_bytes += channel.sent + channel.received
        core.comparisons.last = {
            "with": peer.address,
            "why": reason,
            "received": comparison.received,
            "sent": comparison.sent,
            "dropped": comparison.dropped,
            "bytes": channel.sent + channel.received,
            "seconds": round(monotonic() - began, 3),
            "stale": comparison.stale,
        }
        return True

    async def _knock(self, address: str, tries: int | None) -> None:
        """Ask who is there, until somebody is up, and seldom from then on."""
        core = self._core
        attempt = 0
        while not self.closed and (tries is None or attempt < tries):
            attempt += 1
            try:
                place = await _address_at(address) if is_url(address) else address
                async with self._connected(place, "knock", None) as (_, welcome):
                    core.members.meet(welcome.about)
                    core.members.learn(welcome.members, welcome.about.node_id)
                    self.dial_new()
                    if tries is not None:
                        break
            except Exception as error:  # noqa: BLE001  # one connection's, and told
                story = self._told(error, address)
                if isinstance(story, Itself):
                    return
                self._warn(f"{address} is not reached yet: {story}")
            up = any(peer.state == "up" for peer in core.members)
            await anyio.sleep(
                _KNOCK_PAUSE if up else backoff(attempt, _FIRST_PAUSE, _LONGEST_PAUSE)
            )
        self._knocking.discard(address)

    @asynccontextmanager
    async def _connected(
        self, address: str, purpose: Purpose, peer: int | None
    ) -> AsyncIterator[tuple[Channel, Welcome]]:
        core = self._core
        with anyio.fail_after(_HANDSHAKE):
            host, port = parse_address(address)
            stream: ByteStream = await anyio.connect_tcp(host, port)
        channel = Channel(stream)
        self._channels.add(channel)
        try:
            with anyio.fail_after(_HANDSHAKE):
                remote = stream.extra(SocketAttribute.remote_address)[0]  # noqa: S610  # no Django
                if not core.terms.trust.guarded and not is_loopback(str(remote)):
                    raise BadRequest(
                        f"{address} is beyond loopback: nodes there must prove who they are"
                        " (mesh.full.secret)."
                    )
                if core.terms.trust.client is not None:
                    stream = await TLSStream.wrap(
                        stream,
                        server_side=False,
                        ssl_context=core.terms.trust.client,
                        standard_compatible=False,
                    )
                    channel.replace(stream)
                welcome = await connect(channel, core.terms, purpose, peer)
            yield channel, welcome
        finally:
            self._channels.discard(channel)
            await channel.aclose()

    # --- from others ------------------------------------------------------------------------------

    async def accept(self, sockets: Sequence[socket.socket]) -> None:
        """Accept connections until cancelled. The sockets are this call's to close."""
        try:
            async with anyio.create_task_group() as acceptors:
                for listening in sockets:
                    acceptors.start_soon(self._accept, listening)
        finally:
            for listening in sockets:
                anyio.notify_closing(listening)
                listening.close()

    async def _accept(self, listening: socket.socket) -> None:
        listening.setblocking(False)
        while True:
            await anyio.wait_readable(listening)
            for _ in range(_AT_ONCE):
                try:
                    connected, _address = listening.accept()
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                        self._core.log.warning("no connection can be accepted: %s", error)
                        await anyio.sleep(0.1)
                    break
                if self._strangers >= _STRANGERS:
                    connected.close()
                    continue
                self._strangers += 1
                self._tasks.start_soon(self._serve, connected)

    async def _serve(self, connected: socket.socket) -> None:
        """Serve one connection, whatever it comes to."""
        channel: Channel | None = None
        known = False

        def proved() -> None:
            nonlocal known
            known = True
            self._strangers -= 1

        try:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stream: SocketStream = await SocketStream.from_socket(connected)
            channel = Channel(stream)
            self._channels.add(channel)
            await self._converse(channel, stream, proved)
        except Exception as error:  # noqa: BLE001  # one connection's, and told
            story = self._told(error, "A connection")
            if isinstance(story, NkvError) and channel is not None:
                await channel.refuse(story)
                if not isinstance(story, Itself | Busy):
                    self._core.figures.refused += 1
                    self._warn(f"A connection was refused: {story}")
        finally:
            if not known:
                self._strangers -= 1
            if channel is None:
                connected.close()
            else:
                self._channels.discard(channel)
                await channel.aclose()

    async def _converse(
        self, channel: Channel, stream: SocketStream, proved: Callable[[], None]
    ) -> None:
        core = self._core
        with anyio.fail_after(_HANDSHAKE):
            if core.terms.trust.server is not None:
                channel.replace(
                    await TLSStream.wrap(
                        stream,
                        server_side=True,
                        ssl_context=core.terms.trust.server,
                        standard_compatible=False,
                    )
                )
            hello = await accept(channel, core.terms)
        proved()
        if self.closed:
            raise Forbidden(self.closed)
        self._refuse_double(hello)
        peer = core.members.meet(hello.about)
        self.dial_new()
        if peer.node_id in self._wake:
            self._wake[peer.node_id].set()
        if hello.purpose == "compare" and core.comparisons.goes_first(peer.node_id):
            raise Busy
        if hello.purpose == "feed":
            await Intake(core, peer, channel, hello.about).run()
            return
        await channel.send(Welcome(core.about(peer.node_id), core.members.rumours()))
        if hello.purpose == "compare":
            comparison = Comparison(core, channel, hello.about)
            with core.comparisons.settling(peer.node_id, comparison):
                await comparison.answer()

    def _refuse_double(self, hello: Hello) -> None:
        """Refuse a second node of one id; a new connection of the same one ends the old."""
        about = hello.about
        intake = self._core.intakes.get(about.node_id)
        if intake is None:
            return
        if intake.about.boot != about.boot:
            if monotonic() - intake.last < self._core.settings.suspect_after:
                raise SameNode(
                    f"The id {about.node_id:016x} of {about.address} is that of"
                    f" {intake.about.address} too, which is a member: was a data directory copied?"
                )
            intake.scope.cancel()
        elif hello.purpose == "feed":
            intake.scope.cancel()

    async def leave(self) -> None:
        """Be alone from now on."""
        self.closed = "This node has left the mesh."
        for channel in list(self._channels):
            await channel.aclose()

    def _warn(self, text: str) -> None:
        """Log a warning, but not the same one every few seconds."""
        now = monotonic()
        if now - self._warned.get(text, -_WARN_PAUSE) >= _WARN_PAUSE:
            if len(self._warned) >= _WARNINGS:
                self._warned.clear()
            self._warned[text] = now
            self._core.log.warning("%s", text)

    def _told(self, error: Exception, where: str) -> Exception:
        """The error that counts, of a group the one that says most. What is none of a connection's
        is logged in full.
        """
        while isinstance(error, ExceptionGroup):
            inner = error.exceptions
            error = next((one for one in inner if not isinstance(one, _ENDED)), inner[0])
        if not isinstance(error, (NkvError, *_ENDED)):
            self._core.log.error("%s: it failed unexpectedly.", where, exc_info=error)
        return error
