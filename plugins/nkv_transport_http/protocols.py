"""Hypercorn's HTTP/1.1 and HTTP/2, with what they lack to be left alone with strangers.

Hypercorn 0.18 keeps the protocols apart from input and output; only the protocols are used here.
The subclasses repair what was seen to go wrong in that version, hence the pin on it.
"""

import logging
from collections.abc import Awaitable, Callable
from time import time
from typing import Any, Final
from wsgiref.handlers import format_date_time

import anyio
import h2.events
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import (
    H2CProtocolRequiredError,
    H2ProtocolAssumedError,
    H11Protocol,
)

from .settings import HttpSettings

#: Bytes before the payload of an HTTP/2 frame.
_FRAME_HEADER: Final = 9


class Signal:
    """An event in the form that Hypercorn asks for; it costs nothing while nobody waits."""

    __slots__ = ("_set", "_waiting")

    def __init__(self) -> None:
        self._set = False
        self._waiting: anyio.Event | None = None

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._set

    async def clear(self) -> None:
        """Have those wait who come from now on."""
        self._set = False

    async def set(self) -> None:
        """Let all pass who wait, and who come."""
        self._set = True
        if self._waiting is not None:
            self._waiting.set()
            self._waiting = None

    async def wait(self) -> None:
        """Return once it is set, at once where it is."""
        if not self._set:
            if self._waiting is None:
                self._waiting = anyio.Event()
            await self._waiting.wait()


class Worker:
    """What the connections of one server share, in the form that Hypercorn asks for."""

    event_class = Signal

    def __init__(self) -> None:
        self.terminate = Signal()
        #: Set when no further request is to be begun on a connection.
        self.terminated = Signal()

    async def mark_request(self) -> None:
        """Hypercorn counts requests here to restart itself; nothing is to be restarted."""

    @staticmethod
    async def sleep(seconds: float) -> None:
        """Sleep."""
        await anyio.sleep(seconds)

    @staticmethod
    def time() -> float:
        """The event loop's time."""
        return anyio.current_time()


class ProtocolConfig(Config):
    """Hypercorn's configuration, from ours. It writes no log of its own."""

    def __init__(self, settings: HttpSettings, log: logging.Logger) -> None:
        self.h11_max_incomplete_size = settings.max_header_bytes
        self.h2_max_header_list_size = settings.max_header_bytes
        self.h2_max_concurrent_streams = settings.max_streams
        self.keep_alive_max_requests = 10**9  # the default cuts a connection after 1,000
        self.websocket_max_message_size = settings.max_message_bytes
        self.websocket_ping_interval = settings.ping_interval
        self.accesslog = None
        self.errorlog = log
        self._second = 0
        self._headers: list[tuple[bytes, bytes]] = []

    def response_headers(self, protocol: str) -> list[tuple[bytes, bytes]]:
        """The date, made once a second, and not which server this is."""
        now = int(time())
        if now != self._second:
            self._second, self._headers = now, [(b"date", format_date_time(now).encode())]
        return self._headers


class _Nobody:
    """Stands for the stream of a request that has been answered, while its body still comes."""

    idle = True

    async def handle(self, event: object) -> None:
        """Drop it."""


class _Streams(dict[int, Any]):
    """Open streams by id. Hypercorn ends the whole connection at data for one that has ended."""

    _nobody: Final = _Nobody()

    def __missing__(self, stream_id: int) -> _Nobody:
        return self._nobody


class Http2(H2Protocol):
    """HTTP/2 on one connection."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.streams = _Streams()
        # The limit that was announced; h2 would wait for the client to say that it has heard.
        self.connection.decoder.max_header_list_size = self.config.h2_max_header_list_size
        self._unwanted: set[int] = set()

    async def handle(self, event: Event) -> None:
        """Take in what came; at the end, let nobody wait for a window that never opens again."""
        await super().handle(event)
        if isinstance(event, Closed):
            for buffer in list(self.stream_buffers.values()):
                await buffer.close()
        elif self._unread > self.config.h2_max_inbound_frame_size + _FRAME_HEADER:
            await self.close()
            await self.send(Closed())

    @property
    def _unread(self) -> int:
        """Bytes of a frame that is not complete; h2 looks at its length only once it is."""
        return len(getattr(self.connection.incoming_buffer, "_data", b""))

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        if not self.context.terminated.is_set():
            await super()._handle_events(events)
            return
        # To new requests Hypercorn would say that all is well; this code has them sent elsewhere.
        new = [event for event in events if isinstance(event, h2.events.RequestReceived)]
        for event in new:
            await self.reset(event.stream_id, ErrorCodes.REFUSED_STREAM)
        await super()._handle_events([event for event in events if event not in new])

    async def _create_stream(self, request: h2.events.RequestReceived) -> None:
        if all(value.isascii() for name, value in request.headers if name.startswith(b":")):
            await super()._create_stream(request)
        else:
            await self.reset(request.stream_id, ErrorCodes.PROTOCOL_ERROR)

    async def reset(self, stream_id: int, error: ErrorCodes) -> None:
        """End one stream before its time."""
        try:
            self.connection.reset_stream(stream_id, error)
        except ProtocolError:
            return  # it has ended already
        await self._flush()
        await self._window_updated(stream_id)

    async def refuse_body(self, stream_id: int) -> None:
        """Have the client stop sending the body of a request that has been answered."""
        if stream_id in self.stream_buffers:
            self._unwanted.add(stream_id)  # the end of the answer is still to be sent
        else:
            await self.reset(stream_id, ErrorCodes.NO_ERROR)

    async def _send_data(self, stream_id: int) -> None:
        await super()._send_data(stream_id)
        if stream_id in self._unwanted and stream_id not in self.stream_buffers:
            self._unwanted.discard(stream_id)
            await self.reset(stream_id, ErrorCodes.NO_ERROR)

    async def close(self) -> None:
        """Say that the connection ends."""
        try:
            self.connection.close_connection()
        except ProtocolError:
            return
        await self._flush()


class Protocol:
    """The protocol that one connection speaks: HTTP/1.1, until the client wishes for HTTP/2."""

    __slots__ = ("_arguments", "_current", "_send")

    def __init__(
        self, *arguments: Any, send: Callable[[Event], Awaitable[None]], alpn: str | None
    ) -> None:
        self._arguments = (*arguments, send)
        self._send = send
        self._current: H11Protocol | Http2
        self._current = Http2(*self._arguments) if alpn == "h2" else H11Protocol(*self._arguments)

    @property
    def http2(self) -> Http2 | None:
        """HTTP/2, if that is what is spoken."""
        return self._current if isinstance(self._current, Http2) else None

    async def initiate(self) -> None:
        """Begin."""
        await self._current.initiate()

    async def handle(self, event: Event) -> None:
        """Take in what came."""
        try:
            await self._current.handle(event)
            return
        except H2ProtocolAssumedError as upgrade:
            left = upgrade.data
            self._current = Http2(*self._arguments)
            await self._current.initiate()
            # Hypercorn took the preface for a request; a client that sends no more is idle.
            await self._send(Updated(idle=True))
        except H2CProtocolRequiredError as upgrade:
            left = upgrade.data
            self._current = Http2(*self._arguments)
            await self._current.initiate(upgrade.headers, upgrade.settings)
        if left:
            await self._current.handle(RawData(left))
