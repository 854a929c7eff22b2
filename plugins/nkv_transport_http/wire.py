"""Wire: a connected socket as a byte stream, the same on asyncio and trio."""

import asyncio
import socket
import ssl
from contextlib import suppress
from typing import Final

from anyio import (
    BrokenResourceError,
    BusyResourceError,
    EndOfStream,
    notify_closing,
    wait_readable,
    wait_writable,
)
from anyio.abc import ByteStream
from anyio.lowlevel import current_token

RECEIVE: Final = 64 * 1024


class Wire(ByteStream):
    """One connected TCP socket.

    Nothing is buffered here: what `send` returned from is with the kernel, and what nobody receives
    slows the client down. A write that fits takes one system call and no turn of the event loop.
    """

    __slots__ = ("_first", "_socket", "local", "peer", "progress")

    def __init__(self, connected: socket.socket, first: bytes = b"") -> None:
        """Take over the socket; `first` was received from it already. Raises `OSError` where the
        client has gone already.
        """
        self._first = first
        connected.setblocking(False)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connected
        #: Address and port of either end.
        self.peer: Final[tuple[str, int]] = connected.getpeername()[:2]
        self.local: Final[tuple[str, int]] = connected.getsockname()[:2]
        #: How many times the client took something.
        self.progress = 0

    async def receive(self, max_bytes: int = RECEIVE) -> bytes:
        """At least one byte. Raises `EndOfStream`, `BrokenResourceError`."""
        if self._first:
            return self._take_first(max_bytes)
        # Waiting first even where bytes may be there: a client that never stops sending shares the
        # event loop with the others.
        await wait_readable(self._socket)
        while True:
            try:
                data = self._socket.recv(max_bytes)
            except BlockingIOError:
                await wait_readable(self._socket)
                continue
            except OSError as error:
                raise BrokenResourceError from error
            if not data:
                raise EndOfStream
            return data

    def _take_first(self, most: int) -> bytes:
        data, self._first = self._first[:most], self._first[most:]
        return data

    async def send(self, item: bytes) -> None:
        """Hand everything to the kernel. Raises `BrokenResourceError`."""
        left = memoryview(item)
        while left:
            try:
                sent = self._socket.send(left)
            except BlockingIOError:
                await wait_writable(self._socket)
                continue
            except OSError as error:
                raise BrokenResourceError from error
            self.progress += 1
            left = left[sent:]

    def send_now(self, data: bytes) -> bytes:
        """Hand over as much as the kernel takes at once; returns what is left. Raises
        `BrokenResourceError`.
        """
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            return data
        except OSError as error:
            raise BrokenResourceError from error
        self.progress += 1
        return data[sent:] if sent < len(data) else b""

    async def send_eof(self) -> None:
        """Tell the client that nothing more comes."""
        with suppress(OSError):  # it may be gone already
            self._socket.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """End it by force: whoever waits in `receive` or `send` is woken by the end."""
        with suppress(OSError):  # it may be gone already
            self._socket.shutdown(socket.SHUT_RDWR)

    async def aclose(self) -> None:
        """Close the socket. Closing twice does nothing."""
        if self._socket.fileno() >= 0:
            notify_closing(self._socket)
            self._socket.close()


class AsyncioWire(Wire):
    """The same on asyncio, where to begin and to end waiting for bytes costs two system calls: it
    does not end to, unless bytes come that nobody waits for.
    """

    __slots__ = ("_loop", "_most", "_waited_for", "_watched")

    def __init__(self, connected: socket.socket, first: bytes = b"") -> None:
        super().__init__(connected, first)
        self._loop = asyncio.get_running_loop()
        self._waited_for: asyncio.Future[bytes] | None = None
        self._watched = False
        self._most = 0

    async def receive(self, max_bytes: int = RECEIVE) -> bytes:
        """At least one byte. Raises `EndOfStream`, `BrokenResourceError`."""
        if self._waited_for is not None:
            raise BusyResourceError("reading from")
        if self._first:
            return self._take_first(max_bytes)
        self._most = max_bytes
        self._waited_for = self._loop.create_future()
        if not self._watched:
            self._loop.add_reader(self._socket, self._readable)
            self._watched = True
        try:
            data = await self._waited_for
        except OSError as error:
            raise BrokenResourceError from error
        finally:
            self._waited_for = None
        if not data:
            raise EndOfStream
        return data

    def _readable(self) -> None:
        waited_for = self._waited_for
        if waited_for is None or waited_for.done():
            self._ignore()
            return
        try:
            waited_for.set_result(self._socket.recv(self._most))
        except BlockingIOError:
            pass
        except OSError as error:
            waited_for.set_exception(error)

    def _ignore(self) -> None:
        if self._watched:
            self._loop.remove_reader(self._socket)
            self._watched = False

    async def aclose(self) -> None:
        """Close the socket. Closing twice does nothing."""
        if self._socket.fileno() >= 0:
            self._ignore()
        await super().aclose()


def on_asyncio() -> bool:
    """Whether we run on asyncio."""
    return isinstance(current_token().native_token, asyncio.AbstractEventLoop)


def wire(connected: socket.socket, first: bytes = b"") -> Wire:
    """Take over a connected socket, from which `first` was received already. Raises `OSError` where
    the client has gone already.
    """
    return AsyncioWire(connected, first) if on_asyncio() else Wire(connected, first)


def tls_context(certificate: str, key: str) -> ssl.SSLContext:
    """What RFC 9113 asks of TLS, HTTP/2 preferred. Raises `OSError` or `ssl.SSLError`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["h2", "http/1.1"])
    context.load_cert_chain(certificate, key)
    return context
