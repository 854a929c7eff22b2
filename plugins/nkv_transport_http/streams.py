"""Streams: answers without an end of their own, sent until either side has enough."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import anyio
from anyio import CancelScope

from nkv_core.contracts.handlers import Request, Stream
from nkv_core.errors import ClientGone

from .exchange import WHEN_GONE, Receive, Send
from .replies import raw_headers

#: How long an iterator may take to close.
_CLOSING: Final = 1.0

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

    def __init__(self, stream: Stream, receive: Receive, send: Send) -> None:
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
        while not self._ending:
            piece = None
            waiting = self._waiting = CancelScope()
            try:
                with waiting:
                    piece = await anext(iterator)
            except StopAsyncIteration:
                return
            finally:
                self._waiting = None
            if piece:
                await self._piece(piece)

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
        close = getattr(self._stream.iterator, "aclose", None)
        if close is not None:
            with anyio.move_on_after(_CLOSING, shield=True):
                await close()
