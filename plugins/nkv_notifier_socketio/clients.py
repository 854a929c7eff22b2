"""Clients: all who are connected by Socket.IO, over the protocol library.

The library is used for the protocol alone. What it leaves unbounded, its queues, its tasks and its
log, is ours.
"""

import asyncio
import logging
from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final, Self

import engineio.packet
import socketio
import socketio.packet
from anyio import CancelScope

from nkv_core.contracts.identity import Identity

from .outbox import Outbox
from .settings import SocketioSettings

NAMESPACE: Final = "/"
_BINARY: Final = (str(socketio.packet.BINARY_EVENT), str(socketio.packet.BINARY_ACK))

#: The request in which a connection is opened: who asks, and what ends its WebSocket.
opening: Final[ContextVar[tuple[Identity | None, CancelScope | None]]] = ContextVar("opening")


class TextPacket(socketio.packet.Packet):  # type: ignore[misc]  # the library has no types
    """A Socket.IO packet without attachments, of which a client could announce any number."""

    uses_binary_events = False

    def decode(self, encoded_packet: Any) -> int:
        """Read a packet. Raises `ValueError` for one with attachments."""
        if not isinstance(encoded_packet, str) or encoded_packet.startswith(_BINARY):
            raise ValueError("Only text is taken.")
        count: int = super().decode(encoded_packet)
        return count


class Clients:
    """The Socket.IO server, and who is connected to it."""

    def __init__(self, settings: SocketioSettings, log: logging.Logger) -> None:
        self.settings: Final = settings
        self.dropped = 0  #: clients that did not read
        self.ending = False
        self._log = log
        self._tasks: set[asyncio.Task[Any]] = set()
        #: By the id of the connection, those who have entered the namespace.
        self._connected: dict[str, Outbox] = {}
        self._server = socketio.AsyncServer(
            async_mode="asgi",
            serializer=TextPacket,
            namespaces=[NAMESPACE],
            always_connect=True,  # "connected" comes behind the answer to connecting
            async_handlers=False,
            cors_allowed_origins=[],  # whose pages may connect is the transport's rule
            http_compression=False,
            max_http_buffer_size=settings.max_message_bytes,
            ping_interval=settings.ping_interval,
            ping_timeout=settings.ping_timeout,
            logger=_quiet(log),
            engineio_logger=_quiet(log),
        )
        self._engine: Final = self._server.eio
        self._engine.create_queue = self._make_outbox
        self._engine.start_background_task = self._start
        self._server.on("connect", self._entered)
        self._server.on("disconnect", self._left)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.goodbye()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- who is there -----------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """How many are connected."""
        return len(self._connected)

    @property
    def full(self) -> bool:
        """Whether no further connection is taken."""
        return self.ending or len(self._engine.sockets) >= self.settings.max_clients

    def outbox(self, connection: str) -> Outbox | None:
        """The outbox of an open connection."""
        socket = self._engine.sockets.get(connection)
        return None if socket is None or socket.closed else socket.queue

    def polls(self, connection: str) -> bool:
        """Whether the connection is one that polls."""
        socket = self._engine.sockets.get(connection)
        return socket is not None and socket.connected and not socket.upgraded and not socket.closed

    # --- telling ----------------------------------------------------------------------------------

    def tell(self, event: str, data: Any, may_see: Callable[[Outbox], bool]) -> None:
        """Send an event to all who may see it. Waits for nobody."""
        if not self._connected:
            return
        packet = _packet(event, data)
        for outbox in list(self._connected.values()):
            if may_see(outbox):
                outbox.put_nowait(packet)

    # --- serving ----------------------------------------------------------------------------------

    async def serve(self, scope: Any, receive: Any, send: Any) -> None:
        """Have the library answer one request."""
        await self._engine.handle_request(scope, receive, send)

    def end_poll(self, connection: str) -> None:
        """Have a poll that waits be answered now, with nothing."""
        outbox = self.outbox(connection)
        if outbox is not None:
            outbox.put_nowait(engineio.packet.Packet(engineio.packet.NOOP))

    def goodbye(self) -> None:
        """End all connections, in the way that has clients look for another: no word, but the end
        of what waits. A library that is told to disconnect would not come back.
        """
        self.ending = True
        self._connected.clear()
        for socket in list(self._engine.sockets.values()):
            if not socket.closed:
                socket.queue.put_nowait(engineio.packet.Packet(engineio.packet.NOOP))
                socket.queue.put_nowait(None)
                socket.closed = True
        self._engine.sockets.clear()

    # --- what the library asks --------------------------------------------------------------------

    def _make_outbox(self, *_: Any, **__: Any) -> Outbox:
        identity, call = opening.get()
        settings = self.settings
        outbox = Outbox(identity, settings.pending, settings.pending_bytes, self._drop)
        outbox.call = call
        return outbox

    def _start(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> asyncio.Task[Any]:
        # The library starts tasks by this, outside of any; they are cancelled in the end.
        task: asyncio.Task[Any] = asyncio.ensure_future(  # nkv: allow unowned_task
            function(*args, **kwargs)
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _entered(self, sid: str, *_: Any) -> None:
        """A client has entered the namespace, or sends an event that is called `connect`."""
        connection = self._server.manager.eio_sid_from_sid(sid, NAMESPACE)
        outbox = self.outbox(connection)
        if outbox is not None and connection not in self._connected and not self.ending:
            self._connected[connection] = outbox
            outbox.put_nowait(_packet("connected", {"data": "Connected", "count": 0}))

    def _left(self, sid: str, *_: Any) -> None:
        self._connected.pop(self._server.manager.eio_sid_from_sid(sid, NAMESPACE), None)

    def _drop(self, outbox: Outbox) -> None:
        """Part with a client that does not read."""
        for connection, socket in self._engine.sockets.items():
            if socket.queue is outbox:
                self._connected.pop(connection, None)
                self.dropped += 1
                self._log.info("a Socket.IO client was dropped: it does not read")
                self._start(self._end, connection, socket)
                return

    async def _end(self, connection: str, socket: Any) -> None:
        await socket.close(wait=False, abort=True)
        self._engine.sockets.pop(connection, None)
        if socket.queue.call is not None:
            socket.queue.call.cancel()
        socket.queue.put_nowait(None)


def _packet(event: str, data: Any) -> Any:
    """An event as the Engine.IO packet that carries it."""
    inner = TextPacket(socketio.packet.EVENT, data=[event, data], namespace=NAMESPACE)
    return engineio.packet.Packet(engineio.packet.MESSAGE, inner.encode())


def _quiet(log: logging.Logger) -> logging.Logger:
    """A logger for the library. At its usual level it writes down values, and what it calls errors
    are mostly clients' faults, whole tracebacks of them.
    """
    logger = logging.Logger(f"{log.name}.library", logging.ERROR)

    def tell(record: logging.LogRecord) -> bool:
        log.debug("%s", record.getMessage())
        return False

    logger.addFilter(tell)
    return logger
