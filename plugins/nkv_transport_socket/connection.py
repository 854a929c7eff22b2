"""Connection: reads the requests of one client, has them answered in order, sends what it is told.

One task reads and answers. A second one begins with the first subscription and sends what becomes
due. All that is sent goes through one buffer, which both fill with whole messages only, and neither
fills further while it is full: a client that does not read costs no more than that.

Sockets are used directly: closing and cancelling anyio's streams over Unix sockets while data
arrives makes asyncio report errors that are none.
"""

import logging
import socket
from functools import partial
from math import inf
from time import monotonic
from typing import Any, Final

import anyio
from anyio import CancelScope, Event, notify_closing, wait_readable, wait_writable
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from nkv_core.contracts.handlers import Dispatch, Request, Route
from nkv_core.errors import BadRequest, HandlerFailed, NkvError, Overloaded
from nkv_core.records import Record

from .commands import LISTENER, PATHS
from .dialects import DIALECTS, FRAMES
from .messages import Call, Hostile, Incoming, Malformed
from .parser import Parser
from .settings import SocketSettings
from .subscriptions import Figures, Registry, Sink, Subscription

#: Seconds after which a request that needs no newline is taken without one.
QUIET: Final = 0.2
#: Seconds for which a client's bytes are still read after the last answer, and thrown away.
_LINGER: Final = 0.5
_RECEIVE: Final = 64 * 1024
#: Bytes that wait to be sent before the client has to take some of them.
_FULL: Final = 64 * 1024
#: Requests answered without giving way to other connections.
_TURN: Final = 32

_GONE: Final = (OSError, anyio.ClosedResourceError, anyio.BrokenResourceError)


class Shared:
    """What the connections of one transport share."""

    def __init__(
        self,
        dispatch: Dispatch,
        registry: Registry,
        figures: Figures,
        settings: SocketSettings,
        log: logging.Logger,
    ) -> None:
        self.dispatch: Final = dispatch
        self.registry: Final = registry
        self.figures: Final = figures
        self.settings: Final = settings
        self.log: Final = log


class Connection(Sink):
    """Serves one client, from the accepted socket to its close."""

    def __init__(self, shared: Shared, connected: socket.socket, peer: str) -> None:
        self._shared = shared
        self._socket = connected
        self._peer = peer
        self._parser = Parser(shared.settings.max_request_bytes)
        self._credential: str | None = None
        self._subscriptions: dict[tuple[str, str], Subscription] = {}
        self._due: dict[Subscription, None] = {}
        self._ready = Event()
        self._pumping: CancelScope | None = None
        self._out = bytearray()
        self._sending = anyio.Lock(fast_acquire=True)
        self._life = CancelScope()
        self._reading = CancelScope()
        self._waiting = False  # for the client to send something
        self.heard = False  #: whether the client has said anything yet
        self._ending = False
        self._hostile = False
        self._broken = False
        self._begun: float | None = None  # when the first byte of what is not whole yet came
        self._deadline = inf  # of the client, to send something
        self._stalled = inf  # since when the client has taken nothing

    # --- life -------------------------------------------------------------------------------------

    async def run(self, tasks: TaskGroup) -> None:
        """Serve until either side ends it. `tasks` is for the second task."""
        self._tasks = tasks
        try:
            with self._life:
                try:
                    with self._reading:
                        await self._converse()
                    await self._finish()
                except _GONE:
                    pass
        finally:
            self._broken = True
            if self._pumping is not None:
                self._pumping.cancel()
            self._unsubscribe_all()
            notify_closing(self._socket)
            self._socket.close()

    def check(self, now: float) -> None:
        """End it where the client has let a deadline pass. Called now and then."""
        if self._waiting and now >= self._deadline:
            self._reading.cancel()
        elif now - self._stalled >= self._shared.settings.send_timeout:
            self._shared.log.info("%s took nothing for too long: connection cut", self._peer)
            self.cut()

    def end(self) -> None:
        """Have it end in good order, once what the client has already sent is answered.

        What is half there will not come whole any more.
        """
        self._ending = True
        if self._waiting:
            self._reading.cancel()

    def cut(self) -> None:
        """End it by force, and what is under way in it."""
        self._broken = True
        self._life.cancel()

    async def _finish(self) -> None:
        """Send what is left to be said, in a way that the client can still read it."""
        if self._parser.pending:
            self._refuse(self._parser.given_up())
        for subscription in list(self._due):
            subscription.take(self._out)
        self._unsubscribe_all()
        await self._flush()  # behind what the second task is sending
        if self._pumping is not None:
            self._pumping.cancel()
        if self._hostile:
            return
        # A socket that is closed while bytes lie unread takes back what was sent last.
        with anyio.move_on_after(_LINGER):
            self._socket.shutdown(socket.SHUT_WR)
            while await self._receive():
                pass

    # --- requests ---------------------------------------------------------------------------------

    async def _converse(self) -> None:
        served = 0
        while True:
            incoming = self._parser.next()
            if incoming is None:
                await self._flush()
                incoming = await self._more()
                served = 0
                if incoming is None or self._reading.cancel_called:
                    return  # a request must not be begun that would be cancelled at once
                if incoming is _AGAIN:
                    continue
            if not await self._serve(incoming):
                return
            served += 1
            if len(self._out) >= _FULL:
                await self._flush()
            elif served % _TURN == 0:
                await checkpoint()

    async def _more(self) -> Incoming | None:
        """Wait for more bytes: `_AGAIN` once they are there, None at the end.

        It may return what is a whole request if nothing follows it, because nothing does.
        """
        parser = self._parser
        if self._ending:
            return None
        self._set_deadline()
        try:
            data: bytes | None = None
            if parser.doubtful:
                with anyio.move_on_after(QUIET):
                    data = await self._receive()
                if data is None:
                    incoming = parser.quiet()
                    if incoming is not None:
                        return incoming
            if data is None:
                data = await self._receive()
        finally:
            self._waiting = False
        if not data:
            return parser.quiet()
        parser.feed(data)
        return _AGAIN

    def _set_deadline(self) -> None:
        settings, now = self._shared.settings, monotonic()
        if self._parser.pending:
            if self._begun is None:
                self._begun = now
            self._deadline = self._begun + settings.request_timeout
        else:
            self._begun = None
            self._deadline = inf if self._subscriptions else now + settings.idle_timeout
        self._waiting = True

    async def _receive(self) -> bytes:
        while True:
            await wait_readable(self._socket)
            try:
                data = self._socket.recv(_RECEIVE)
            except BlockingIOError:
                continue
            self.heard = True
            return data

    async def _serve(self, incoming: Incoming) -> bool:
        """Answer one request; returns whether there may be another."""
        self._begun = None
        if isinstance(incoming, Hostile):
            self._shared.log.info("%s speaks HTTP: connection closed", self._peer)
            self._hostile = True
            return False
        if isinstance(incoming, Malformed):
            self._refuse(incoming)
            return not incoming.fatal
        call = incoming
        request = Request(
            transport=LISTENER,
            method=call.verb,
            path=PATHS.get(call.verb, call.verb.lower()),
            params={
                "id": call.id,
                "client": call.client,
                "key": call.key,
                "dialect": call.dialect,
            },
            body=call.value,
            peer=self._peer,
            credential=self._credential if call.token is None else call.token,
        )
        await self._shared.dispatch(request, partial(self._reply, call, request))
        return True

    def _refuse(self, malformed: Malformed) -> None:
        self._shared.log.debug("%s sent %s", self._peer, malformed.reason)
        dialect = DIALECTS[malformed.dialect]
        refusal = BadRequest(f"This cannot be read: {malformed.reason}.")
        self._out += dialect.failed("", malformed.id, refusal)

    async def _reply(
        self, call: Call, request: Request, outcome: Any, error: NkvError | None, _: Route | None
    ) -> None:
        """Answer as the outcome says. Raises what a subscription raises, once it is answered."""
        dialect = DIALECTS[call.dialect]
        failure = error
        if error is None:
            try:
                self._out += self._answer(call, request, outcome)
            except NkvError as raised:
                failure = raised
        if failure is not None:
            self._out += dialect.failed(call.verb, call.id, failure)
            if failure is not error:
                raise failure

    def _answer(self, call: Call, request: Request, outcome: Any) -> bytes:
        dialect = DIALECTS[call.dialect]
        match call.verb:
            case "GET":
                return self._found(call, outcome)
            case "SUB":
                return self._subscribe(call, request, outcome)
            case "TRACE":
                return FRAMES.trace(call, [c for c in outcome if dialect.carries(c)])
            case "VERSION":
                return FRAMES.version(call, str(outcome))
            case "AUTH":
                self._credential = call.token
        return dialect.done(call)

    def _found(self, call: Call, outcome: Any) -> bytes:
        if not isinstance(outcome, list) or not all(isinstance(r, Record) for r in outcome):
            raise HandlerFailed("A plugin has put something else in the place of the records.")
        dialect, records = DIALECTS[call.dialect], outcome
        if call.dialect == "framed":  # the others send no keys
            records = [record for record in outcome if dialect.carries(record.key)]
            self._shared.figures.left_out += len(outcome) - len(records)
        return dialect.records(call, records)

    # --- subscriptions ----------------------------------------------------------------------------

    def _subscribe(self, call: Call, request: Request, hub: Any) -> bytes:
        shared = self._shared
        place = (call.key, call.client)
        before = self._subscriptions.get(place)
        if before is None and len(self._subscriptions) >= shared.settings.max_subscriptions:
            raise Overloaded("This connection has too many subscriptions.")
        if not hasattr(hub, "watch"):
            raise HandlerFailed("A plugin has put something else in the place of the hub.")
        new = Subscription(
            call, request.identity, self, shared.figures, shared.settings.max_known_keys
        )
        hello = shared.registry.add(new, hub, request.identity)
        if before is not None:  # whoever subscribes again begins again, and is told all once
            self._forget(before)
        self._subscriptions[place] = new
        if self._pumping is None:
            self._pumping = CancelScope()
            self._tasks.start_soon(self._pump)
        self.due(new)
        return hello

    def due(self, subscription: Subscription) -> None:
        """Take note that there is something to take."""
        self._due[subscription] = None
        self._ready.set()

    def unsubscribed(self, subscription: Subscription, farewell: bytes) -> None:
        """Send the last word of a subscription that was ended."""
        self._forget(subscription)
        self._out += farewell
        self._ready.set()

    def _forget(self, subscription: Subscription) -> None:
        self._due.pop(subscription, None)
        place = (subscription.key, subscription.client)
        if self._subscriptions.get(place) is subscription:
            del self._subscriptions[place]
        self._shared.registry.remove(subscription)

    def _unsubscribe_all(self) -> None:
        for subscription in list(self._subscriptions.values()):
            self._forget(subscription)

    async def _pump(self) -> None:
        """Send what subscriptions have to tell, as fast as the client takes it."""
        if self._pumping is None:
            return
        with self._pumping:
            try:
                while not self._broken:
                    await self._ready.wait()
                    self._ready = Event()
                    await self._flush()
                    while self._due:
                        if await self._pump_one(next(iter(self._due))):
                            return
            except _GONE:
                self.cut()

    async def _pump_one(self, subscription: Subscription) -> bool:
        """Give one subscription its turn; returns whether the connection is to end for it."""
        more = subscription.take(self._out)
        self._due.pop(subscription, None)
        if subscription.ended:
            # The client subscribes anew when it finds the connection closed.
            self._shared.log.warning(
                "the subscription of %s to %r has ended", self._peer, subscription.key
            )
            await self._flush()
            self.end()
            return True
        if more:
            self._due[subscription] = None  # behind the others
        await self._flush()
        return False

    # --- sending ----------------------------------------------------------------------------------

    async def _flush(self) -> None:
        """Send all that waits to be sent."""
        if not self._out or self._broken:
            return
        async with self._sending:
            while self._out and not self._broken:
                data, self._out = self._out, bytearray()
                await self._send(data)

    async def _send(self, data: bytearray) -> None:
        left = memoryview(data)
        try:
            while left:
                try:
                    left = left[self._socket.send(left) :]
                except BlockingIOError:
                    self._stalled = min(self._stalled, monotonic())
                    await wait_writable(self._socket)
                else:
                    self._stalled = inf
        except BaseException:
            self._broken = True  # halfway: nothing that followed could be read
            raise
        finally:
            self._stalled = inf


#: Stands for bytes that have come and may now make a request.
_AGAIN: Final = Hostile()
