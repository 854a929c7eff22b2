"""Streams: answers without an end of their own, sent until either side has enough."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import anyio
from anyio import CancelScope

from nkv_core.contracts.handlers import Request, Stream
from nkv_core.errors import ClientGone

from .exchange import WHEN_GONE, WRITE_NOW, Receive, Send
from .replies import raw_headers

#: How long an iterator may take to close.
_CLOSING: Final = 1.0
#: Pieces of one stream that are sent before others have their turn.
_TURN: Final = 4

Goodbye = Callable[[], None]


class OpenStreams:
    """All streams that a transport has open, to be asked to end when it stops."""

    def __init__(self) -> None:
        self._goodbyes: dict[object, Goodbye] = {}
        self.ending = False

    @contextmanager
    def open(self, request: Request, goodbye: Goodbye) -> Iterator[None]:
        """While within, `goodbye` is called once the transport, or the handler's plugin, stops."""
        request.owner.open_stream(request, goodbye)
        self._goodbyes[request] = goodbye
        try:
            if self.ending:
                goodbye()
            yield
        finally:
            del self._goodbyes[request]

    def end(self) -> None:
        """Ask all to end, and those as well that are opened from now on."""
        self.ending = True
        for goodbye in list(self._goodbyes.values()):
            goodbye()


class StreamReply:
    """Sends one stream."""

    def __init__(
        self, stream: Stream, receive: Receive, send: Send, call_soon: Callable[[Goodbye], None]
    ) -> None:
        """`call_soon` has a plain function called, in one of the next turns of the event loop."""
        self._call_soon = call_soon
        self._write: Callable[[bytes], bytes] | None = None  # where pieces are sent at once
        self._rest = b""  # of a piece that could not be
        self._stream = stream
        self._receive = receive
        self._send = send
        self._waiting: CancelScope | None = None
        self._ending = False
        self._gone = False

    def goodbye(self) -> None:
        """Have it end behind the piece that is being sent. Never cuts a piece in two."""
        self._ending = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def run(self, headers: list[tuple[bytes, bytes]], *, only_head: bool) -> None:
        """Send until the iterator ends, `goodbye` is called, or the client goes.

        Raises `ClientGone`, and what the iterator or the stream's goodbye raises: the response is
        then left unfinished, and the server breaks it off for the client to see.
        """
        stream = self._stream
        start = [
            *raw_headers(stream.headers),
            (b"content-type", stream.content_type.encode("latin-1")),
            *headers,
        ]
        try:
            await self._send(
                {"type": "http.response.start", "status": stream.status, "headers": start}
            )
            if not only_head:
                await self._piece(
                    b""
                )  # the header goes out now, however long the first piece takes
                with CancelScope() as pumping:
                    if await self._is_told_of_end(pumping):
                        await self._pump()
                    else:
                        async with anyio.create_task_group() as tasks:
                            tasks.start_soon(self._until_gone, pumping)
                            await self._pump()
                            tasks.cancel_scope.cancel()
                if self._gone:
                    raise ClientGone
        finally:
            await self._close()
        if self._ending and stream.goodbye is not None:
            await self._piece(stream.goodbye())
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pump(self) -> None:
        iterator = self._stream.iterator
        send_rest = await self._be_prompt(iterator)
        while not self._ending:
            piece, ended = None, False
            waiting = self._waiting = CancelScope()
            try:
                with waiting:
                    piece = await anext(iterator)
            except StopAsyncIteration:
                ended = True
            finally:
                self._waiting = None
            if self._rest:
                rest, self._rest = self._rest, b""
                await send_rest(rest)
            if ended:
                return
            if piece:
                await self._piece(piece)

    # --- without waiting --------------------------------------------------------------------------

    async def _be_prompt(self, iterator: Any) -> Callable[[bytes], Awaitable[None]]:
        """Have pieces sent without waking this task, if that can be; returns what sends a rest."""
        message: dict[str, Any] = {"type": WRITE_NOW, "writer": None, "rest": None}
        if hasattr(iterator, "next_now"):
            await self._send(message)
            self._write = message["writer"]
            if self._write is not None:
                iterator.prompt = self._prompted
        return message["rest"]  # type: ignore[no-any-return]  # there is none without a writer

    def _prompted(self) -> None:
        self._call_soon(self._send_now)

    def _send_now(self) -> None:
        """Send the pieces that are there, while the task waits for the next one."""
        iterator: Any = self._stream.iterator
        for _ in range(_TURN):
            waiting, write = self._waiting, self._write
            if waiting is None or write is None or self._ending or self._gone or self._rest:
                return
            piece = iterator.next_now()
            if piece is None:
                return
            self._rest = write(piece)
            if self._rest:
                waiting.cancel()  # the task sends it, before anything else
                return
        self._prompted()

    async def _piece(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def _is_told_of_end(self, pumping: CancelScope) -> bool:
        """Whether pumping is cancelled, without a task that waits for it, once the client goes."""

        def gone() -> None:
            self._gone = True
            pumping.cancel()

        message = {"type": WHEN_GONE, "call": gone, "taken": False}
        await self._send(message)
        return bool(message["taken"])

    async def _until_gone(self, pumping: CancelScope) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        pumping.cancel()

    async def _close(self) -> None:
        """Let the iterator clean up, also where we are being cancelled."""
        if self._write is not None:
            self._write = self._stream.iterator.prompt = None  # type: ignore[attr-defined]
        close = getattr(self._stream.iterator, "aclose", None)
        if close is not None:
            with anyio.move_on_after(_CLOSING, shield=True):
                await close()
