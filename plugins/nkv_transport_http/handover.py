"""Handover: gives a connection to a WebSocket handler or a mounted ASGI application."""

from contextlib import suppress
from logging import Logger
from typing import Final

import anyio
from anyio import CancelScope, EndOfStream
from starlette.websockets import WebSocket, WebSocketDisconnect

from nkv_core.contracts.handlers import REQUEST_IN_SCOPE, AsgiApp, Request, WebSocketHandler
from nkv_core.errors import NkvError, Stopping

from .exchange import Message, Receive, Scope, Send
from .streams import OpenStreams

#: Messages that wait for a handler to receive them before the client is slowed down.
_QUEUE: Final = 16
#: How long a handler may go on sending behind a goodbye: it has something to say there, or nothing.
_LAST_WORDS: Final = 1.0
#: Close codes of RFC 6455.
_NORMAL: Final = 1000
_GOING_AWAY: Final = 1001
_REFUSED: Final = 1008
_FAILED: Final = 1011
_GOODBYE: Final = (_GOING_AWAY, "going away")
#: The longest reason that fits into the frame that closes a WebSocket.
_MAX_REASON: Final = 123


class ServedWebSocket:
    """A WebSocket as `contracts.handlers.WebSocket` has it."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._closed = False
        self._ending = False
        self._served = anyio.Event()
        self._pumping = CancelScope()
        self._arrived, self._messages = anyio.create_memory_object_stream[str | bytes](_QUEUE)

    async def run(
        self, handler: WebSocketHandler, request: Request, streams: OpenStreams, log: Logger
    ) -> None:
        """Accept it, and have the handler serve it until either side ends it."""
        await self._websocket.accept()
        with streams.open(request, self.goodbye):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._pump)
                try:
                    await handler(request, self)
                except Stopping:
                    pass  # it went on sending after the end
                except NkvError as error:
                    await self.close(_REFUSED, error.code)
                except Exception:
                    log.exception("The WebSocket handler of %s failed.", request.command)
                    await self.close(_FAILED, "handler_failed")
                else:
                    await self.close(*(_GOODBYE if self._ending else (_NORMAL,)))
                finally:
                    self._stop()

    async def receive(self) -> str | bytes | None:
        """The next message; None once the other side has closed, or it is time for last words."""
        try:
            return await self._messages.receive()
        except EndOfStream:
            return None

    async def send(self, message: str | bytes) -> None:
        """Send one message. Raises `Stopping` once the connection is closed."""
        if self._closed:
            raise Stopping("The WebSocket is closed.")
        try:
            if isinstance(message, str):
                await self._websocket.send_text(message)
            else:
                await self._websocket.send_bytes(message)
        except (WebSocketDisconnect, RuntimeError) as error:
            self._closed = True
            raise Stopping("The WebSocket is closed.") from error

    async def close(self, code: int = _NORMAL, reason: str = "") -> None:
        """Close the connection. Closing twice does nothing."""
        if self._closed:
            return
        self._closed = True
        short = reason.encode()[:_MAX_REASON].decode(errors="ignore")
        with suppress(WebSocketDisconnect, RuntimeError):  # the client may have been faster
            await self._websocket.close(code, short)

    def goodbye(self) -> None:
        """Have the handler see the end, then the client told that the node goes away."""
        self._ending = True
        self._pumping.cancel()

    async def _pump(self) -> None:
        """Take in messages until either side ends it. Notices a client that goes away."""
        with self._arrived, self._pumping:
            while not self._ending:
                message = await self._websocket.receive()
                if message["type"] == "websocket.disconnect":
                    self._closed = True
                    return
                text = message.get("text")
                await self._arrived.send(message["bytes"] if text is None else text)
        with anyio.move_on_after(_LAST_WORDS):
            await self._served.wait()
        await self.close(*_GOODBYE)

    def _stop(self) -> None:
        """End `_pump` without a word to the client."""
        self._closed = True
        self._served.set()
        self._pumping.cancel()
        self._arrived.close()
        self._messages.close()


class MountedCall:
    """One call of a mounted application.

    Where it answers with something that has no end of its own, it is told at a goodbye that the
    client has gone: that is all that ASGI has to say. What has an end may come to it.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._waiting: CancelScope | None = None
        self._endless = False
        self._ending = False

    def goodbye(self) -> None:
        """Have the application end what has no end of its own."""
        self._ending = True
        if self._endless and self._waiting is not None:
            self._waiting.cancel()

    async def receive(self) -> Message:
        """What the application receives."""
        if not (self._ending and self._endless):
            with CancelScope() as self._waiting:
                return await self._receive()
        return {"type": f"{self._scope['type']}.disconnect", "code": _GOING_AWAY}

    async def send(self, message: Message) -> None:
        """What the application sends."""
        if message["type"] == "http.response.start":
            names = {bytes(name).lower() for name, _ in message.get("headers", ())}
            self._endless = b"content-length" not in names
        elif message["type"] == "websocket.accept":
            self._endless = True
        if self._ending:
            self.goodbye()
        await self._send(message)

    async def run(self, app: AsgiApp, prefix: str, request: Request, streams: OpenStreams) -> None:
        """Call the application, with its prefix as `root_path` and who asks as `nkv.request`."""
        root = self._scope.get("root_path", "") + prefix.rstrip("/")
        scope = {**self._scope, "root_path": root, REQUEST_IN_SCOPE: request}
        with streams.open(request, self.goodbye):
            await app(scope, self.receive, self.send)
