"""The two shells of a watch: one for asyncio and trio, one for plain programs.

Both pull: nothing is read before it is asked for, so there is no queue to fill, and a reader that
is slow holds up nobody but itself. The node keeps its place.
"""

import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

import anyio
import anyio.lowlevel
import httpx2

from nkv_core.client.changes import WatchItem
from nkv_core.client.failures import connection_failed, problem, unexpected
from nkv_core.client.following import Following
from nkv_core.client.sse import EventDecoder
from nkv_core.errors import NkvError

_MAX_PROBLEM: Final = 64 * 1024
_STREAM: Final = "text/event-stream"
#: How many items are handed out in a row before others get their turn.
_IN_A_ROW: Final = 64

HttpT = TypeVar("HttpT", httpx2.Client, httpx2.AsyncClient)


class _Watch(Generic[HttpT]):
    """What both have in common."""

    def __init__(
        self,
        http: HttpT,
        url: str,
        following: Following,
        *,
        timeout: float,
        silence: float,
        max_item: int,
        ended: Callable[[Any], object],
    ) -> None:
        self._http: HttpT = http
        self._url: Final = url
        self._following: Final = following
        self._timeout: Final = timeout
        self._timeouts: Final = httpx2.Timeout(timeout, read=silence)
        self._max_item: Final = max_item
        self._ended: Final = ended
        self._decoder = EventDecoder(max_item)

    @property
    def token(self) -> str | None:
        """Where another watch could go on: behind the item that was handed out last."""
        return self._following.place

    @property
    def live(self) -> bool:
        """Whether there is a connection to the node, as far as is known."""
        return self._following.live

    @property
    def down_for(self) -> float:
        """Seconds without a connection; 0 while there is one."""
        return self._following.down_for

    @property
    def failure(self) -> NkvError | None:
        """Why there is no connection, or why the watch is over."""
        return self._following.failure

    def _request(self) -> httpx2.Request:
        request: httpx2.Request = self._http.build_request(
            "GET",
            self._url + self._following.target(),
            headers={"accept": _STREAM, "cache-control": "no-store"},
            timeout=self._timeouts,
        )
        return request

    def _take(self, decoder: EventDecoder, piece: bytes | None) -> None:
        """Take what was read; None is the end of the stream."""
        if piece is None:
            raise httpx2.RemoteProtocolError("the node has closed it")
        for event in decoder.feed(piece):
            self._following.event(event.name, event.id, event.data)

    def _error_of(self, error: Exception) -> NkvError:
        return connection_failed(error, reads=True, url=self._url)


def _check(response: httpx2.Response, body: bytes) -> None:
    """Raise what a response stands for that is not the beginning of a watch."""
    if response.status_code != httpx2.codes.OK:
        raise problem(response.status_code, body)
    raise unexpected("The answer is not a stream of events: is this a node of nkv?")


def _is_stream(response: httpx2.Response) -> bool:
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    return response.status_code == httpx2.codes.OK and kind == _STREAM


class AsyncWatch(_Watch[httpx2.AsyncClient]):
    """The changes of the keys that match: `async with client.watch("a.*") as watch`, then iterate.

    It goes on over lost connections and restarts of the node, by itself and without a hole; where
    something is lost nevertheless, it tells a `Gap`. It never ends by itself, and raises where it
    cannot go on. Waiting for an item may be cancelled: none is lost, and the next call connects
    anew.
    """

    _pieces: AsyncIterator[bytes] | None = None
    _closed = False
    _in_a_row = 0
    #: Of what another task waits for here.
    _waiting: anyio.CancelScope | None = None

    async def __aenter__(self) -> Self:
        """Connect: what is changed from then on is told. Raises as waiting for an item does."""
        try:
            while not self._closed and not self._following.live:
                await self._step()
                self._following.check()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the watch, and the iteration of another task. Closing twice does nothing."""
        self._closed = True
        self._ended(self)
        if self._waiting is not None:
            self._waiting.cancel()
        else:
            await self._drop()

    def __aiter__(self) -> AsyncIterator[WatchItem]:
        return self

    async def __anext__(self) -> WatchItem:
        """Wait for the next item. Raises `Unreachable` and what else cannot pass."""
        following = self._following
        while not self._closed:
            if self._in_a_row >= _IN_A_ROW:
                self._in_a_row = 0
                await anyio.lowlevel.checkpoint()
            if (item := following.take()) is not None:
                self._in_a_row += 1
                return item
            await self._step()
        await self._drop()
        raise StopAsyncIteration

    async def _step(self) -> None:
        """Connect, read what comes next, or wait before the next attempt."""
        with anyio.CancelScope() as waiting:
            self._waiting = waiting
            try:
                await self._advance()
            finally:
                self._waiting = None

    async def _advance(self) -> None:
        try:
            if self._pieces is None:
                self._pieces = await self._open()
                self._decoder = EventDecoder(self._max_item)
                self._following.opened()
            else:
                self._take(self._decoder, await self._read(self._pieces))
        except (httpx2.TransportError, TimeoutError) as error:
            await self._lost(self._error_of(error))
        except NkvError as error:
            await self._lost(error)
        except BaseException:  # cancelled: the next call connects anew
            self._following.dropped()
            raise

    async def _open(self) -> AsyncIterator[bytes]:
        with anyio.fail_after(self._timeout):
            response = await self._http.send(self._request(), stream=True)
            if _is_stream(response):
                return response.aiter_raw()
            body = bytearray()
            with anyio.CancelScope() as reading:
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > _MAX_PROBLEM:
                        reading.cancel()
        _check(response, bytes(body[:_MAX_PROBLEM]))
        raise AssertionError  # it raises

    async def _read(self, pieces: AsyncIterator[bytes]) -> bytes | None:
        try:
            return await anext(pieces, None)
        except BaseException:  # cancelled, too: the connection is closed by whoever read from it
            self._pieces = None
            raise

    async def _lost(self, error: NkvError) -> None:
        await self._drop()
        await anyio.sleep(self._following.lost(error))

    async def _drop(self) -> None:
        """Close the connection. What reads is unwound from inside, by cancelling it."""
        pieces, self._pieces = self._pieces, None
        if pieces is None:
            return
        with anyio.CancelScope() as reading:
            reading.cancel()
            with suppress(httpx2.TransportError):
                async for _ in pieces:
                    pass


class Watch(_Watch[httpx2.Client]):
    """The changes of the keys that match: `with client.watch("a.*") as watch`, then iterate.

    As `AsyncWatch`, for plain programs. `close` may be called by another thread, and ends the
    iteration.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._pieces: Iterator[bytes] | None = None
        self._response: httpx2.Response | None = None
        self._closed: Final = threading.Event()
        self._lock: Final = threading.Lock()
        self._busy: Final = threading.Lock()  # held by the thread that connects or reads

    def __enter__(self) -> Self:
        """Connect: what is changed from then on is told. Raises as waiting for an item does."""
        try:
            while not self._closed.is_set() and not self._following.live:
                self._step()
                self._following.check()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the watch. Closing twice does nothing."""
        self._closed.set()
        self._ended(self)
        with self._lock:
            response = self._response
        if response is not None:
            # A thread that waits for the next byte is told so by the socket itself.
            stream = response.extensions.get("network_stream")
            found = None if stream is None else stream.get_extra_info("socket")
            if isinstance(found, socket.socket):
                with suppress(OSError):
                    found.shutdown(socket.SHUT_RDWR)
        if self._busy.acquire(blocking=False):  # else that thread closes the connection
            try:
                self._drop()
            finally:
                self._busy.release()

    def __iter__(self) -> Iterator[WatchItem]:
        return self

    def __next__(self) -> WatchItem:
        """Wait for the next item. Raises `Unreachable` and what else cannot pass."""
        following = self._following
        while not self._closed.is_set():
            if (item := following.take()) is not None:
                return item
            self._step()
        self._drop()
        raise StopIteration

    def _step(self) -> None:
        """Connect, read what comes next, or wait before the next attempt."""
        with self._busy:
            self._advance()

    def _advance(self) -> None:
        try:
            if self._pieces is None:
                self._pieces = self._open()
                self._decoder = EventDecoder(self._max_item)
                self._following.opened()
            else:
                self._take(self._decoder, next(self._pieces, None))
        except (httpx2.TransportError, TimeoutError) as error:
            self._lost(self._error_of(error))
        except NkvError as error:
            self._lost(error)
        except BaseException:  # interrupted: the next call connects anew
            self._drop()
            self._following.dropped()
            raise

    def _open(self) -> Iterator[bytes]:
        response = self._http.send(self._request(), stream=True)
        with self._lock:
            self._response = response
        if _is_stream(response):
            return response.iter_raw()
        body = bytearray()
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > _MAX_PROBLEM:
                break
        _check(response, bytes(body[:_MAX_PROBLEM]))
        raise AssertionError  # it raises

    def _lost(self, error: NkvError) -> None:
        self._drop()
        if not self._closed.is_set():
            self._closed.wait(self._following.lost(error))

    def _drop(self) -> None:
        """Close the connection."""
        self._pieces = None
        with self._lock:
            response, self._response = self._response, None
        if response is not None:
            response.close()
