"""Lane: a connection that is served without tasks, while it brings nothing but simple requests.

It reads and writes the socket itself, from callbacks of asyncio's event loop. With the first
request that is not simple the connection is given over to the server, with the bytes that were
read, and stays there. Requests of a connection are served one by one.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from math import inf
from time import monotonic
from typing import Any, Final

from nkv_core.contracts.handlers import DispatchNow, Request, Route
from nkv_core.errors import HandlerFailed, NkvError
from nkv_core.loop import Together

from .app import App
from .connection import LINGER
from .simple import Simple
from .tasks import Tasks
from .wire import RECEIVE

#: So many requests of a connection are served in a turn of the event loop.
_TURN: Final = 64
#: Bytes that may wait while a request is under way, before no more are read.
_WAITING: Final = 256 * 1024


class Lanes:
    """What the lanes of a server share."""

    def __init__(
        self,
        app: App,
        dispatch_now: DispatchNow,
        log: logging.Logger,
        give_over: Callable[["Lane", socket.socket, bytes], None],
        left: Callable[["Lane"], None],
    ) -> None:
        """`give_over` takes a connection that is no longer for a lane, with the bytes that were
        read; `left` is told of one that has ended.
        """
        self.app: Final = app
        self.simple: Final = Simple(app)
        self.dispatch_now: Final = dispatch_now
        self.log: Final = log
        self.give_over: Final = give_over
        self.left: Final = left
        self.loop: Final = asyncio.get_running_loop()
        self.together: Final = Together()
        self.patience: Final = app.settings.keep_alive_timeout
        self.tasks: Tasks  #: of requests that have to wait; set before there is a lane


class Lane:
    """One connection."""

    __slots__ = (
        "_busy",
        "_data",
        "_deadline",
        "_ended",
        "_eof",
        "_given",
        "_local",
        "_now",
        "_peer",
        "_reads",
        "_reply",
        "_request",
        "_shared",
        "_socket",
        "_stalled",
        "_then",
        "_unsent",
        "heard",
    )

    def __init__(self, shared: Lanes, connected: socket.socket) -> None:
        """Take over the socket. Raises `OSError` where the client has gone already."""
        connected.setblocking(False)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        host, port = connected.getpeername()[:2]
        self._shared = shared
        self._socket = connected
        self._peer = f"{host}:{port}"
        self._local: str = connected.getsockname()[0]
        self._data = b""  # that was read and not served yet
        self._busy = False
        self._now = False  # whether dispatch is being called
        self._ended = False  # whether nothing more is answered
        self._reply: bytes | None = None
        self._request: Request
        self._unsent = b""
        self._then: Callable[[], None] | None = None  # once all is sent
        self._reads = False
        self._eof = False  # whether the client sends no more
        self._given = False
        self._stalled = inf
        self._deadline = monotonic() + shared.patience
        self.heard = False  #: whether the client has said anything yet
        self._read()

    # --- what the server asks ---------------------------------------------------------------------

    def check(self, now: float) -> None:
        """End the connection where the client has let a deadline pass. Called now and then."""
        if now >= self._stalled:
            self._shared.log.info("a client took nothing for too long: connection cut")
            self.cut()
        elif not self._busy and not self._unsent and now >= self._deadline:
            self._close()

    def end_if_idle(self) -> None:
        """End the connection if no request is under way."""
        if not self._busy and not self._unsent:
            self._close()

    def cut(self) -> None:
        """End the connection by force. A request that is under way goes on without it."""
        self._close()

    # --- reading ----------------------------------------------------------------------------------

    def _read(self) -> None:
        if not self._reads and not self._given and not self._eof:
            self._reads = True
            self._shared.loop.add_reader(self._socket, self._readable)

    def _rest(self) -> None:
        if self._reads:
            self._reads = False
            self._shared.loop.remove_reader(self._socket)

    def _readable(self) -> None:
        try:
            data = self._socket.recv(RECEIVE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if self._ended:
            if not data:
                self._close()
            return
        if not data:
            self._rest()
            self._eof = True  # what it has sent is still answered
            self._go_on()
            return
        self.heard = True
        self._data = self._data + data if self._data else data
        if not self._busy:
            self._serve()
        elif len(self._data) >= _WAITING:
            self._rest()

    # --- serving ----------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Serve what was read, until one has to wait, or others are to have their turn."""
        data, at = self._data, 0
        replies: list[bytes] = []
        then: Callable[[], None] | None = None
        shared = self._shared
        find, dispatch_now = shared.simple.request, shared.dispatch_now
        for _ in range(_TURN):
            found = find(data, at, self._peer, self._local)
            if found is None:
                then = self._give_over
                break
            self._request, at = found
            reply = self._dispatch(dispatch_now)
            if reply is None:
                break
            self._busy = False
            replies.append(reply)
            if shared.app.streams.ending:
                then = self._say_farewell
                break
            if at == len(data):
                then = self._go_on if self._eof else None
                break
        else:
            then = self._go_on
        self._data = data[at:]
        self._send(b"".join(replies), then)

    def _dispatch(self, dispatch_now: DispatchNow) -> bytes | None:
        """Have the request answered; None where the answer comes later."""
        self._reply = None
        self._busy = self._now = True
        rest = dispatch_now(self._request, self._replied)
        self._now = False
        if rest is not None:
            self._begin(rest)
        return self._reply

    def _go_on(self) -> None:
        if self._given or self._ended or self._busy or self._unsent:
            return
        if self._data:
            self._serve()
        elif self._eof:
            self._close()
        else:
            self._read()

    def _begin(self, rest: Coroutine[Any, Any, None]) -> None:
        self._shared.tasks.start_soon(_awaited, rest)

    def _replied(self, outcome: Any, error: NkvError | None, route: Route | None) -> None:
        """What dispatch calls with the outcome: at once, or later."""
        shared = self._shared
        if self._given:
            raise BrokenPipeError  # the client has gone meanwhile
        try:
            self._reply = shared.simple.response(self._request, outcome, error, route)
        except Exception:  # a handler's or a listener's: whatever it is, it cannot be sent
            shared.log.exception("What answers %s cannot be sent.", self._request.command)
            self._reply = shared.simple.response(self._request, None, HandlerFailed(), route)
        if self._now:
            return
        self._busy = False
        then = self._say_farewell if shared.app.streams.ending else self._go_on
        self._send(self._reply, then)

    # --- sending ----------------------------------------------------------------------------------

    def _send(self, data: bytes, then: Callable[[], None] | None) -> None:
        """Send, together with what others are sent, and do `then` once all is with the kernel."""
        if self._given:
            return
        if self._unsent:
            self._unsent, self._then = self._unsent + data, then
        elif data:
            self._unsent, self._then = data, then
            self._shared.together.call(self._flush)
        elif then is not None:
            then()

    def _flush(self) -> None:
        data = self._unsent
        if not data or self._given:
            return
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close()
            return
        if sent < len(data):
            self._unsent = data[sent:]
            self._stalled = monotonic() + self._shared.app.settings.send_timeout
            self._rest()
            self._shared.loop.add_writer(self._socket, self._writable)
            return
        self._unsent = b""
        self._deadline = monotonic() + self._shared.patience
        then, self._then = self._then, None
        if then is not None:
            then()

    def _writable(self) -> None:
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            return
        except OSError:
            self._close()
            return
        self._unsent = self._unsent[sent:]
        self._stalled = monotonic() + self._shared.app.settings.send_timeout
        if not self._unsent:
            self._stalled = inf
            self._shared.loop.remove_writer(self._socket)
            self._deadline = monotonic() + self._shared.patience
            then, self._then = self._then or self._go_on, None
            then()

    # --- the end ----------------------------------------------------------------------------------

    def _let_go(self) -> None:
        self._rest()
        if self._unsent:
            self._shared.loop.remove_writer(self._socket)
            self._unsent = b""
        self._given = True

    def _give_over(self) -> None:
        self._let_go()
        self._shared.give_over(self, self._socket, self._data)

    def _say_farewell(self) -> None:
        """End it so that the client can still read what was sent to it: a socket that is closed
        while bytes lie unread takes back what was sent last.
        """
        self._ended = True
        self._data = b""
        self._deadline = monotonic() + LINGER
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        self._read()

    def _close(self) -> None:
        if self._given:
            return
        self._let_go()
        self._socket.close()
        self._shared.left(self)


async def _awaited(rest: Coroutine[Any, Any, None]) -> None:
    await rest
