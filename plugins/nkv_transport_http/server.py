"""Server: accepts connections on the node's sockets, watches over them, and ends them in order.

It stops in three steps. First nothing new is accepted, open streams are ended, and clients are told
to go elsewhere, while what they had already sent is still answered. Then idle connections end and
busy ones finish. What is left at the deadline is cut: half bodies, handshakes that never come to an
end, clients that do not read.
"""

import errno
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final

import anyio
from anyio import CancelScope, notify_closing, wait_readable
from anyio.abc import TaskGroup

from nkv_core.contracts.handlers import DispatchNow
from nkv_core.errors import SettingsError

from .app import App
from .connection import Connection, Shared
from .lane import Lane, Lanes
from .settings import HttpSettings
from .tasks import tasks
from .wire import on_asyncio, tls_context, wire

#: How long clients may still send on an open connection, at a stop: what crosses our notice.
_CROSSING: Final = 0.25
#: How long one that has connected and said nothing yet may take for it, at a stop: it is about to.
_NEWCOMERS: Final = 2.0
#: At one turn of the event loop so many connections are accepted from one socket.
_AT_ONCE: Final = 64

#: Seconds between two warnings of that no connection can be taken.
_QUIET: Final = 10.0

_EXHAUSTED: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
#: Faults of the connection that was to be accepted, not of the socket that it came through.
_FAULTS: Final = {
    errno.ECONNABORTED,
    errno.ECONNRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EPERM,
    errno.EPROTO,
}
_FULL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\n"
    b"connection: close\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n"
)


class Server:
    """Serves one application. It is used once."""

    def __init__(
        self, app: App, settings: HttpSettings, log: logging.Logger, dispatch_now: DispatchNow
    ) -> None:
        """Raises `SettingsError` where the TLS files are no use, or `server` is not possible."""
        self._settings = settings
        self._lanes = self._fast_lanes(app, dispatch_now, log)
        self._log = log
        self._shared = Shared(app, settings, log)
        self._tls = _tls(settings)
        self._connections: set[Connection | Lane] = set()
        self._tasks: TaskGroup
        self._emptied: anyio.Event | None = None
        self._quiet_until = 0.0

    def _fast_lanes(self, app: App, dispatch_now: DispatchNow, log: logging.Logger) -> Lanes | None:
        if self._settings.server == "hypercorn":
            why = "transport.http.server says so"
        elif self._settings.tls_certificate is not None:
            why = "it is with TLS"
        elif not on_asyncio():
            if self._settings.server == "fast":
                raise SettingsError("transport.http.server = fast needs node.backend = asyncio.")
            why = "node.backend is not asyncio"
        else:
            log.info("Simple requests are answered by the fast lane, all others by Hypercorn.")
            return Lanes(app, dispatch_now, log, give_over=self._take_over, left=self._left)
        log.info("All requests are answered by Hypercorn: %s.", why)
        return None

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
        stopping: Callable[[], None],
        deadline: float,
    ) -> None:
        """Serve until `stop` is set, then return within `deadline` seconds.

        The sockets are this call's to close. `stopping` is called once nothing more is accepted; it
        is to end the streams.
        """
        try:
            async with tasks() as requests, anyio.create_task_group() as self._tasks:
                if self._lanes is not None:
                    self._lanes.tasks = requests
                try:
                    with CancelScope() as accepting:
                        self._tasks.start_soon(self._watch)
                        async with anyio.create_task_group() as acceptors:
                            for listening in sockets:
                                acceptors.start_soon(self._accept, listening, self._tasks)
                            started()
                            await stop.wait()
                            accepting.cancel()
                    await self._drain(stopping, deadline)
                finally:
                    for connection in list(self._connections):
                        connection.cut()
                    requests.cancel()
                self._tasks.cancel_scope.cancel()
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
                    connected, _address = listening.accept()
                except BlockingIOError:
                    break  # a generation beside this one was faster
                except OSError as error:
                    if error.errno in _EXHAUSTED:
                        self._warn(f"no connection can be accepted: {error}")
                        await anyio.sleep(0.1)
                    elif error.errno not in _FAULTS:
                        raise
                    break
                self._begin(connected, tasks)

    def _begin(self, connected: socket.socket, tasks: TaskGroup) -> None:
        try:
            full = len(self._connections) >= self._settings.max_connections
            if full and self._tls is None:
                connected.send(_FULL)
            elif not full and self._lanes is not None:
                self._connections.add(Lane(self._lanes, connected))
                return
            wired = wire(connected)
        except OSError:
            connected.close()  # the client has gone already
            return
        if full:
            self._warn(f"there are {len(self._connections)} connections: one more was refused")
            connected.close()
            return
        connection = Connection(self._shared, wired)
        self._connections.add(connection)
        tasks.start_soon(self._run, connection)

    def _warn(self, message: str) -> None:
        """Log what would come with every new connection, but not with every one."""
        if monotonic() >= self._quiet_until:
            self._quiet_until = monotonic() + _QUIET
            self._log.warning("%s", message)

    def _take_over(self, lane: Lane, connected: socket.socket, data: bytes) -> None:
        """Go on with a connection that brings something that is not simple."""
        self._connections.discard(lane)
        try:
            connection = Connection(self._shared, wire(connected, data))
        except OSError:
            connected.close()  # the client has gone already
            self._left(lane)
            return
        connection.heard = True
        self._connections.add(connection)
        self._tasks.start_soon(self._run, connection)

    def _left(self, connection: Connection | Lane) -> None:
        self._connections.discard(connection)
        if not self._connections and self._emptied is not None:
            self._emptied.set()

    async def _run(self, connection: Connection) -> None:
        try:
            await connection.run(self._tls)
        except Exception:  # noqa: BLE001  # one connection's failure is not the others'
            self._log.exception("a connection failed")
        finally:
            self._left(connection)

    async def _watch(self) -> None:
        settings = self._settings
        shortest = min(
            settings.header_timeout, settings.keep_alive_timeout, settings.send_timeout, 4.0
        )
        while True:
            await anyio.sleep(shortest / 4)
            now = monotonic()
            for connection in list(self._connections):
                connection.check(now)

    # --- stopping ---------------------------------------------------------------------------------

    async def _drain(self, stopping: Callable[[], None], deadline: float) -> None:
        began = monotonic()
        stopping()
        await self._until_empty(min(_CROSSING, deadline / 4))
        await self._shared.worker.terminated.set()
        for connection in list(self._connections):
            if connection.heard:
                connection.end_if_idle()
        if not all(connection.heard for connection in self._connections):
            await self._until_empty(min(_NEWCOMERS, deadline / 4))
            for connection in list(self._connections):
                connection.end_if_idle()
        # A little before the deadline, so that we are gone when it comes.
        await self._until_empty(began + deadline - min(0.2, deadline / 10) - monotonic())
        if self._connections:
            self._log.warning("cutting %d connections at the deadline", len(self._connections))

    async def _until_empty(self, seconds: float) -> None:
        if not self._connections:
            return
        self._emptied = anyio.Event()
        with anyio.move_on_after(seconds):
            await self._emptied.wait()


def _tls(settings: HttpSettings) -> ssl.SSLContext | None:
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    try:
        return tls_context(settings.tls_certificate, settings.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"tls_certificate {settings.tls_certificate} and tls_key {settings.tls_key} "
            f"cannot be used: {error}."
        ) from error
