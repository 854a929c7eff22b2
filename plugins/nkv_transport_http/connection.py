"""Connection: one client's connection, from the accepted socket to its end.

A connection has one task that reads, and one for each request. Its end is its own: whatever the
client does or fails to do, `run` returns, at the latest when the server cuts the wire.
"""

import logging
import ssl
from math import inf
from time import monotonic
from typing import Any, Final

import anyio
from anyio import BrokenResourceError, CancelScope, ClosedResourceError, EndOfStream
from anyio.abc import ByteStream
from anyio.lowlevel import checkpoint
from anyio.streams.tls import TLSAttribute, TLSStream
from hypercorn.events import Closed, Event, RawData, Updated

from .exchange import Application, Exchange, Message, Put, Scope, Send
from .protocols import Protocol, ProtocolConfig, Worker
from .settings import HttpSettings
from .tasks import Tasks, tasks
from .wire import RECEIVE, Wire

#: How long a client that is still sending may go on, so that it gets to read why it was refused.
LINGER: Final = 1.0

#: So many times as many requests as a client may have open can be under way, because it has reset
#: the others and their handlers have not come to an end yet.
_ABANDONED: Final = 2

_GONE: Final = (BrokenResourceError, ClosedResourceError, EndOfStream, ssl.SSLError)


class Shared:
    """What all connections of one server have in common."""

    __slots__ = ("app", "config", "log", "settings", "worker")

    def __init__(self, app: Application, settings: HttpSettings, log: logging.Logger) -> None:
        self.app: Final = app
        self.settings: Final = settings
        self.log: Final = log
        self.worker: Final = Worker()
        self.config: Final = ProtocolConfig(settings, log)


class Connection:
    """One client's connection. It is what Hypercorn calls the task group of its protocols."""

    def __init__(self, shared: Shared, wire: Wire) -> None:
        self._shared = shared
        self._wire = wire
        self._stream: ByteStream = wire
        self._protocol: Protocol | None = None
        self._tasks: Tasks | None = None
        self._reading = CancelScope()
        self._lock = anyio.Lock(fast_acquire=True)
        self._outgoing: bytearray | None = None  # what is held back to go out together
        self.heard = False  #: whether the client has said anything yet
        self._broken = False
        self._calls = 0
        self._calls_ended: anyio.Event | None = None
        self._sending = 0
        self._stalled: tuple[int, float] | None = None
        self._head_begun = False
        self._deadline = inf
        #: Whether no request is under way.
        self.idle = True

    # --- life -------------------------------------------------------------------------------------

    async def run(self, context: ssl.SSLContext | None) -> None:
        """Serve the client until either side ends it, with TLS where there is a context."""
        try:
            alpn = await self._shake_hands(context)
            if alpn is not None:
                await self._serve(alpn)
                await self._say_farewell()
        except _GONE:
            pass
        finally:
            await self._wire.aclose()

    async def _shake_hands(self, context: ssl.SSLContext | None) -> str | None:
        """The protocol agreed on; None where the client did not do it in time."""
        if context is None:
            return "http/1.1"
        with anyio.move_on_after(self._shared.settings.handshake_timeout):
            stream = await TLSStream.wrap(
                self._wire, server_side=True, ssl_context=context, standard_compatible=False
            )
            self._stream = stream
            alpn = stream.extra(TLSAttribute.alpn_protocol)  # noqa: S610  # nothing of Django's
            return alpn or "http/1.1"
        return None

    async def _serve(self, alpn: str) -> None:
        async with tasks() as self._tasks:
            self._protocol = protocol = Protocol(
                self._shared.app,
                self._shared.config,
                self._shared.worker,
                self,
                {},
                self._stream is not self._wire,
                self._wire.peer,
                self._wire.local,
                send=self._protocol_send,
                alpn=alpn,
            )
            self._updated(idle=True)
            try:
                with self._reading:
                    await protocol.initiate()
                    await self._read(protocol)
            except _GONE:
                pass
            finally:
                # Requests under way go on to their end; those that wait for the client are told.
                with CancelScope(shield=True):
                    await self._tell_closed(protocol)
            if self._calls and not self._broken:
                self._calls_ended = anyio.Event()
                await self._calls_ended.wait()
            # What is left are pings, for whose next turn Hypercorn would wait.
            self._started.cancel()

    async def _tell_closed(self, protocol: Protocol) -> None:
        try:
            await protocol.handle(Closed())
        except Exception:  # some requests may not have been told
            self._shared.log.exception("a connection could not be ended in order")
            self.cut()

    async def _read(self, protocol: Protocol) -> None:
        settings = self._shared.settings
        while True:
            try:
                data = await self._stream.receive(
                    settings.max_header_bytes + 1 if self.idle else RECEIVE
                )
            except EndOfStream:
                data = b""
            self.heard = True
            try:
                await protocol.handle(RawData(data))
            except _GONE:
                raise
            except Exception as error:  # noqa: BLE001  # Hypercorn tripped over what the client sent
                self._shared.log.debug("a connection could not be followed: %r", error)
                return
            if not data:
                return
            if self.idle and not self._head_begun and protocol.http2 is None:
                self._head_begun = True
                self._deadline = monotonic() + settings.header_timeout

    async def _say_farewell(self) -> None:
        """End it so that the client can still read what was sent to it.

        A socket that is closed while bytes lie unread takes back what was sent last, so those of a
        client that was refused are read for a while. One without a request can send nothing more.
        """
        if self._broken or self._protocol is None:
            return
        with anyio.move_on_after(LINGER):
            if self._protocol.http2 is not None:
                await self._protocol.http2.close()
        with anyio.move_on_after(0 if self.idle else LINGER):
            if isinstance(self._stream, TLSStream):
                await self._stream.unwrap()
            await self._wire.send_eof()
            while True:
                await self._wire.receive()

    # --- what the server asks ---------------------------------------------------------------------

    def check(self, now: float) -> None:
        """End the connection where the client has let a deadline pass. Called now and then."""
        if now >= self._deadline:
            self._reading.cancel()
        if not self._sending:
            self._stalled = None
        elif self._stalled is None or self._stalled[0] != self._wire.progress:
            self._stalled = self._wire.progress, now
        elif now - self._stalled[1] >= self._shared.settings.send_timeout:
            self._shared.log.info("a client took nothing for too long: connection cut")
            self.cut()

    def end_if_idle(self) -> None:
        """End the connection if no request is under way."""
        if self._protocol is None:
            self.cut()  # it is still shaking hands
        elif self.idle:
            self._reading.cancel()

    def cut(self) -> None:
        """End the connection by force, and what is under way in it."""
        self._broken = True
        self._wire.cut()
        self._reading.cancel()
        if self._calls_ended is not None:
            self._calls_ended.set()
        if self._tasks is not None:
            self._tasks.cancel()

    # --- what Hypercorn's protocols ask -----------------------------------------------------------

    async def spawn_app(self, app: Application, config: object, scope: Scope, send: Send) -> Put:
        """Have the application answer a request; returns what takes the rest of the request."""
        exchange = Exchange(self, scope, send)
        if self._calls < _ABANDONED * self._shared.settings.max_streams:
            self._calls += 1
            self._started.start_soon(self._call, exchange, app)
        else:
            self._shared.log.warning("a client resets requests and makes new ones: connection cut")
            self.cut()
        return exchange.put

    async def _call(self, exchange: Exchange, app: Application) -> None:
        try:
            await exchange.run(app)
        finally:
            self._calls -= 1
            if self._calls_ended is not None and not self._calls:
                self._calls_ended.set()

    def spawn(self, function: Any, *arguments: Any) -> None:
        """Run a task of a protocol's own."""
        self._started.start_soon(function, *arguments)

    async def _protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData):
            if self._outgoing is not None:
                self._outgoing += event.data
            elif event.data:
                await self._transmit(event.data)
        elif isinstance(event, Updated):
            self._updated(event.idle)
        else:
            self._reading.cancel()

    @property
    def _started(self) -> Tasks:
        assert self._tasks is not None  # noqa: S101  # protocols exist only within the task group
        return self._tasks

    def _updated(self, idle: bool) -> None:
        # What Hypercorn says of a request that was refused at once is that there is one.
        http2 = None if self._protocol is None else self._protocol.http2
        self.idle = idle = idle or (http2 is not None and http2.idle)
        self._head_begun = False
        if not idle:
            self._deadline = inf
        elif self._shared.worker.terminated.is_set():
            self._reading.cancel()
        else:
            self._deadline = monotonic() + self._shared.settings.keep_alive_timeout

    # --- what an exchange asks --------------------------------------------------------------------

    @property
    def shared(self) -> Shared:
        """What this connection shares with the others."""
        return self._shared

    @property
    def protocol(self) -> Protocol:
        """The protocol that is spoken."""
        assert self._protocol is not None  # noqa: S101  # an exchange is the protocol's own doing
        return self._protocol

    async def send(self, send: Send, *messages: Message) -> None:
        """Send these messages of one response; over HTTP/1.1 they go out together."""
        self._sending += 1
        try:
            if len(messages) == 1 or self.protocol.http2 is not None:
                for message in messages:
                    await send(message)
                return
            # Nothing in here waits for the client: HTTP/1.1 has no windows.
            self._outgoing = bytearray()
            try:
                for message in messages:
                    await send(message)
            finally:
                data, self._outgoing = bytes(self._outgoing), None
            await self._transmit(data)
        finally:
            self._sending -= 1

    def send_now(self, data: bytes) -> bytes:
        """Send bytes of a response as far as they can be sent at once; returns what is left. Once
        the client has gone it goes nowhere.
        """
        if self._broken:
            return b""
        if self._lock.locked():
            return data
        try:
            return self._wire.send_now(data)
        except BrokenResourceError:
            self._broken = True
            self._reading.cancel()
            return b""

    async def send_rest(self, data: bytes) -> None:
        """Send what `send_now` has left."""
        await self._transmit(data)

    @property
    def prompt(self) -> bool:
        """Whether bytes of a response can be sent by `send_now`: those of HTTP/1.1 without TLS."""
        return self._stream is self._wire and self.protocol.http2 is None

    async def _transmit(self, data: bytes) -> None:
        if self._broken:
            await checkpoint()  # whoever sends on and on to nobody lets others run
            return
        self._sending += 1
        try:
            async with self._lock:
                await self._stream.send(data)
        except _GONE:
            self._broken = True
            self._reading.cancel()
        except BaseException:
            # Stopped halfway: what followed would be taken for the rest of this.
            self.cut()
            raise
        finally:
            self._sending -= 1
