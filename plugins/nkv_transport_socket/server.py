"""Server: accepts connections on the node's sockets, watches over them, and ends them in order."""

import errno
import socket
import struct
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Final

import anyio
from anyio import CancelScope, notify_closing, wait_readable
from anyio.abc import TaskGroup

from .connection import Connection, Shared

#: How long clients may still send on an open connection, at a stop: what crosses our end of it.
_CROSSING: Final = 0.25
#: How long one that has connected and said nothing yet may take for it, at a stop: it is about to.
_NEWCOMERS: Final = 2.0
#: At one turn of the event loop so many connections are accepted from one socket.
_AT_ONCE: Final = 64
_EXHAUSTED: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
#: What cannot go on without a socket that listens. Other faults are of the one that was to come.
_FATAL: Final = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP}
_FULL: Final = b"- FAILED\n"
_CREDENTIALS: Final = struct.Struct("3i")  #: pid, uid, gid


class Server:
    """Serves one transport. It is used once."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._connections: set[Connection] = set()
        self._emptied: anyio.Event | None = None

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    async def serve(
        self,
        sockets: Sequence[socket.socket],
        *,
        started: Callable[[], None],
        stop: anyio.Event,
        deadline: float,
    ) -> None:
        """Serve until `stop` is set, then return within `deadline` seconds.

        The sockets are this call's to close.
        """
        try:
            async with anyio.create_task_group() as tasks:
                with CancelScope() as accepting:
                    tasks.start_soon(self._watch)
                    async with anyio.create_task_group() as acceptors:
                        for listening in sockets:
                            acceptors.start_soon(self._accept, listening, tasks)
                        started()
                        await stop.wait()
                        accepting.cancel()
                await self._drain(deadline)
                tasks.cancel_scope.cancel()
        finally:
            for listening in sockets:
                notify_closing(listening)
                listening.close()

    async def _accept(self, listening: socket.socket, tasks: TaskGroup) -> None:
        listening.setblocking(False)
        while True:
            await wait_readable(listening)
            for _ in range(_AT_ONCE):
                try:
                    connected, address = listening.accept()
                except BlockingIOError:
                    break  # a generation beside this one was faster
                except OSError as error:
                    if error.errno in _FATAL:
                        raise
                    if error.errno in _EXHAUSTED:
                        self._shared.log.warning("no connection can be accepted: %s", error)
                        await anyio.sleep(0.1)
                    break
                self._begin(connected, address, tasks)

    def _begin(self, connected: socket.socket, address: Any, tasks: TaskGroup) -> None:
        try:
            connected.setblocking(False)
            peer = _peer(connected, address)
            full = len(self._connections) >= self._shared.settings.max_connections
            if full:
                connected.send(_FULL)
        except OSError:
            connected.close()  # the client has gone already
            return
        if full:
            self._shared.log.warning(
                "more than %d connections", self._shared.settings.max_connections
            )
            connected.close()
            return
        connection = Connection(self._shared, connected, peer)
        self._connections.add(connection)
        tasks.start_soon(self._run, connection, tasks)

    async def _run(self, connection: Connection, tasks: TaskGroup) -> None:
        try:
            await connection.run(tasks)
        except Exception:  # one connection's failure is not the others'
            self._shared.log.exception("a connection failed")
        finally:
            self._connections.discard(connection)
            if not self._connections and self._emptied is not None:
                self._emptied.set()

    async def _watch(self) -> None:
        settings = self._shared.settings
        shortest = min(settings.request_timeout, settings.idle_timeout, settings.send_timeout, 4.0)
        while True:
            await anyio.sleep(shortest / 4)
            now = monotonic()
            for connection in list(self._connections):
                connection.check(now)

    async def _drain(self, deadline: float) -> None:
        began = monotonic()
        await self._until_empty(min(_CROSSING, deadline / 4))
        for connection in list(self._connections):
            if connection.heard:
                connection.end()
        if not all(connection.heard for connection in self._connections):
            await self._until_empty(min(_NEWCOMERS, deadline / 4))
            for connection in list(self._connections):
                connection.end()
        # A little before the deadline, so that we are gone when it comes.
        await self._until_empty(began + deadline - min(0.2, deadline / 10) - monotonic())
        if self._connections:
            count = len(self._connections)
            self._shared.log.warning("cutting %d connections at the deadline", count)
        for connection in list(self._connections):
            connection.cut()

    async def _until_empty(self, seconds: float) -> None:
        if not self._connections:
            return
        self._emptied = anyio.Event()
        with anyio.move_on_after(seconds):
            await self._emptied.wait()


def _peer(connected: socket.socket, address: Any) -> str:
    """Who is at the other end: `host:port`, or `unix:UID`."""
    if connected.family == socket.AF_UNIX:
        packed = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return f"unix:{_CREDENTIALS.unpack(packed)[1]}"
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    return f"{host}:{address[1]}"
