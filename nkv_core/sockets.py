"""Sockets: accepting connections where another generation may do so from the same socket."""

import errno
import socket
from typing import Final

import anyio
from anyio import wait_readable
from anyio.abc import ByteStream, SocketStream, UNIXSocketStream

#: Of the machine: there may be room again soon.
_EXHAUSTED: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
#: Of the connection that was to be accepted, not of the socket that it came through.
_GONE: Final = frozenset(
    (errno.ECONNABORTED, errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPERM)
)
_PAUSE: Final = 0.1  # seconds


async def accept(listening: socket.socket) -> tuple[ByteStream, str]:
    """Wait for a connection; returns it, and who is at its other end: `host:port`, or `unix`.

    No connection is lost where this is cancelled. Raises `OSError` where the socket does not listen
    any more.
    """
    listening.setblocking(False)
    while True:
        await wait_readable(listening)
        try:
            connected, address = listening.accept()
        except BlockingIOError:
            continue  # a generation beside this one was faster
        except OSError as error:
            if error.errno in _EXHAUSTED:
                await anyio.sleep(_PAUSE)
            elif error.errno not in _GONE:
                raise
            continue
        connected.setblocking(False)
        with anyio.CancelScope(shield=True):  # it does not wait, but would give way
            if connected.family == socket.AF_UNIX:
                return await UNIXSocketStream.from_socket(connected), "unix"
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            host, port = address[:2]
            return await SocketStream.from_socket(connected), f"{host}:{port}"
