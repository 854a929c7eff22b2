"""Exchange: one request and its response, between Hypercorn's protocols and the application."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Final

import anyio
from anyio import CancelScope
from anyio.lowlevel import checkpoint
from h2.errors import ErrorCodes

if TYPE_CHECKING:
    from .connection import Connection

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Put = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

#: In a message that starts a response: all of its body follows at once, in one message.
BODY_FOLLOWS: Final = "nkv.body_follows"

#: What the application sends to have `call` called, which must not wait, once the client has gone.
#: It is taken, and then `taken` is set in it, where nothing of the request is left to be received.
#: Whoever receives finds out as well, but takes a task for it, which costs 5 KB.
WHEN_GONE: Final = "nkv.when_gone"

#: What the application sends, in the middle of a stream, to be given `writer`: what sends a piece
#: as far as that can be done at once, and returns the bytes that are left, which `rest` then sends.
#: Not given where pieces are not sent as they are: in HTTP/2, with TLS, to a client of HTTP/1.0.
WRITE_NOW: Final = "nkv.write_now"

#: How much of a body may wait for the application before the client is slowed down.
_BUFFERED: Final = 128 * 1024


class Exchange:
    """One call of the application."""

    __slots__ = (
        "_arrived",
        "_body_ended",
        "_buffered",
        "_chunked",
        "_complete",
        "_connection",
        "_done",
        "_gone",
        "_head",
        "_messages",
        "_room",
        "_scope",
        "_send_to",
        "_started",
        "_when_gone",
    )

    def __init__(self, connection: Connection, scope: Scope, send_to: Send) -> None:
        self._connection = connection
        self._scope = scope
        self._send_to = send_to
        #: None while there are none: most of the time, and a deque has 700 bytes.
        self._messages: deque[Message] | None = None
        self._buffered = 0
        self._arrived: anyio.Event | None = None
        self._room: anyio.Event | None = None
        self._head: Message | None = None
        self._body_ended = False
        self._gone = False  # the client, or its patience with the body
        self._started = False
        self._chunked = False
        self._complete = False
        self._done = False
        self._when_gone: Callable[[], None] | None = None

    async def run(self, app: Application) -> None:
        """Call the application, and leave the connection in order whatever it did."""
        try:
            await app(self._scope, self.receive, self.send)
        except Exception:  # an application's failure is its own, not the server's
            self._connection.shared.log.exception("answering a request failed")
        finally:
            self._done = True
            self._when_gone = None
            self._messages = None
            if self._room is not None:
                self._room.set()
            with CancelScope(shield=True):
                await self._end()

    async def _end(self) -> None:
        await self._send_to(None)  # type: ignore[arg-type]  # Hypercorn's sign that it has returned
        http2 = self._connection.protocol.http2
        if http2 is None:
            return
        stream_id: int = self._send_to.__self__.stream_id  # type: ignore[attr-defined]
        if self._started and not self._complete:
            await http2.reset(stream_id, ErrorCodes.INTERNAL_ERROR)
        elif not self._body_ended:
            await http2.refuse_body(stream_id)

    # --- the protocol's side ----------------------------------------------------------------------

    async def put(self, message: Message) -> None:
        """Take what came from the client. Returns late where too much of it is waiting already."""
        if self._done:
            return
        if self._messages is None:
            self._messages = deque()
        self._messages.append(message)
        if self._arrived is not None:
            self._arrived.set()
        if message["type"].endswith(".disconnect"):
            self._gone = True
            if self._when_gone is not None:
                self._when_gone()
            return
        if message["type"] == "http.request" and not message["more_body"]:
            self._body_ended = True
        self._buffered += _size(message)
        while self._buffered > _BUFFERED and not self._done:
            self._room = anyio.Event()
            await self._room.wait()

    # --- the application's side -------------------------------------------------------------------

    async def receive(self) -> Message:
        """The next message from the client; for ever `disconnect` once it has gone."""
        while not self._messages:
            if self._gone:
                return {"type": f"{self._scope['type']}.disconnect", "code": 1006}
            self._arrived = anyio.Event()
            if self._body_ended or self._scope["type"] != "http":
                await self._arrived.wait()
                continue
            with anyio.move_on_after(self._connection.shared.settings.body_timeout):
                await self._arrived.wait()
                continue
            self._gone = True
        message = self._messages.popleft()
        if not self._messages:
            self._messages = None
        self._buffered -= _size(message)
        if self._room is not None:
            self._room.set()
        return message

    async def send(self, message: Message) -> None:
        """Send one message of the response. Once the client has gone it goes nowhere."""
        kind = message["type"]
        if kind == WHEN_GONE:
            message["taken"] = self._body_ended
            if self._body_ended:
                self._when_gone = message["call"]
                if self._gone:
                    self._when_gone()
            return
        if kind == WRITE_NOW:
            if self._chunked and self._connection.prompt:
                message["writer"], message["rest"] = self._write, self._connection.send_rest
            return
        if kind == "http.response.start":
            self._started = True
            self._chunked = self._is_chunked(message)
            if BODY_FOLLOWS in message:
                self._head = message
                return
        elif kind == "http.response.body" and not message.get("more_body"):
            self._complete = True
        if self._gone:
            await checkpoint()  # whoever sends on and on to nobody lets others run
        if self._head is None:
            await self._connection.send(self._send_to, message)
        else:
            head, self._head = self._head, None
            await self._connection.send(self._send_to, head, message)

    def _is_chunked(self, start: Message) -> bool:
        """Whether h11 puts a header before each piece of this response, and nothing else."""
        return (
            self._scope.get("http_version") == "1.1"
            and self._scope["method"] != "HEAD"
            and start["status"] not in (204, 304)
            and not any(name == b"content-length" for name, _ in start.get("headers", ()))
        )

    def _write(self, piece: bytes) -> bytes:
        if self._gone or not piece:
            return b""
        return self._connection.send_now(b"%x\r\n%b\r\n" % (len(piece), piece))


def _size(message: Message) -> int:
    return len(message.get("body") or message.get("bytes") or message.get("text") or b"")
