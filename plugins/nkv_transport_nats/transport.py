"""Transport: requests from a NATS server, and replies to it."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import anyio
from anyio import CancelScope, Event, current_time
from anyio.abc import TaskGroup
from nats.aio.client import Client

from nkv_core.contracts.context import Context
from nkv_core.contracts.handlers import Request, Route
from nkv_core.errors import BadRequest, HandlerFailed, NkvError, Overloaded, ValueTooLarge
from nkv_core.nats_link import LinkLost, NatsMessage, NatsSession, TooLarge, keep_linked
from nkv_core.records import Record

from .commands import LISTENER, Commands
from .messages import VERBS, Call, Malformed, Verb, done, failed, id_of, read_request
from .settings import NatsSettings
from .subjects import Subjects

TOKEN: Final = "nkv-token"  # noqa: S105  # the header field that a token comes in
PATH: Final = "/v1/status/nats"
#: Messages that the library has read and not handed over yet. More than are under way at once, so
#: that those too many are refused: what exceeds this it drops without a word.
_UNHEARD: Final = 65_536


class NatsTransport:
    """The dialect over a NATS server."""

    backends: Final = frozenset(("asyncio",))
    features: Final[frozenset[str]] = frozenset()
    scheme: Final = "nats"

    def __init__(self, settings: NatsSettings) -> None:
        self._settings = settings

    async def serve(
        self, ctx: Context, *, started: Callable[[], None], stop: Event, deadline: float
    ) -> None:
        """Serve, as `contracts.transport.Transport` has it.

        A server that is away does not keep the node from starting: it is looked for until it is
        there.
        """
        subjects = Subjects(ctx, self._settings.max_keys)
        await subjects.load()
        Commands(subjects).register(ctx.handlers)
        async with anyio.create_task_group() as tasks:
            server = Server(ctx, self._settings, subjects, tasks)
            ctx.handlers.add(PATH, lambda _: server.status(), command="status", timeout=None)
            tasks.start_soon(server.stay_connected)
            await server.tried.wait()
            started()
            await stop.wait()
            await server.drain(deadline)
            tasks.cancel_scope.cancel()


class Server:
    """Answers the requests of one generation."""

    def __init__(
        self, ctx: Context, settings: NatsSettings, subjects: Subjects, tasks: TaskGroup
    ) -> None:
        self._ctx = ctx
        self._settings = settings
        self._subjects = subjects
        self._tasks = tasks
        self._session: NatsSession | None = None
        self._subscriptions: list[Any] = []
        self._under_way = 0
        self._bytes = 0
        self._idle = Event()
        self._idle.set()
        self.tried: Final = Event()  #: whether a first connection serves, or could not be made
        self._refused = 0
        self._failing: str | None = None

    def status(self) -> dict[str, Any]:
        """How it goes, for JSON."""
        return {
            "connected": self._session is not None,
            "requests": self._under_way,
            "refused_requests": self._refused,
            "subscribed_keys": len(self._subjects),
            "left_out_too_large": self._subjects.left_out,
            "failing": self._failing,
        }

    async def stay_connected(self) -> None:
        """Serve over one connection after the other, until cancelled."""
        name = f"nkv {self._ctx.node.name} {self._ctx.name}"
        await keep_linked(
            self._settings, name, Client, self._use, log=self._ctx.log, failed=self._note_failure
        )

    async def drain(self, seconds: float) -> None:
        """Take no more requests, and answer those that have come, within so many seconds."""
        until = current_time() + seconds - min(0.2, seconds / 10)
        session = self._session
        if session is None:
            return
        with CancelScope(deadline=until):
            try:
                for subscription in self._subscriptions:
                    await session.drain(subscription)
                await self._idle.wait()
                await session.flush()
            except LinkLost:
                await self._idle.wait()

    def _note_failure(self, reason: str) -> None:
        self._failing = reason
        self.tried.set()

    async def _use(self, session: NatsSession) -> None:
        settings = self._settings
        self._subscriptions = [
            await session.subscribe(
                f"pubsub.{verb}",
                queue=settings.group,
                cb=partial(self._hear, session, verb),
                pending_msgs_limit=_UNHEARD,
                pending_bytes_limit=settings.max_request_bytes,
            )
            for verb in VERBS
        ]
        await session.confirm()
        try:
            with self._ctx.reach(session.host, session.port):
                self._session, self._failing = session, None
                self.tried.set()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._tell, session)
                    await session.lost.wait()
                    tasks.cancel_scope.cancel()
                raise LinkLost(session.reason)
        finally:
            self._session = None

    async def _tell(self, session: NatsSession) -> None:
        if await self._ctx.predecessor_ended():
            await self._subjects.load()  # what was subscribed to meanwhile, over the other
        try:
            await self._subjects.tell(session)
        except LinkLost as error:
            session.reason = str(error)
            session.lost.set()

    # --- requests ---------------------------------------------------------------------------------

    async def _hear(self, session: NatsSession, verb: Verb, message: NatsMessage) -> None:
        settings, size = self._settings, len(message.data)
        full = self._under_way >= settings.max_requests
        if full or (self._under_way and self._bytes + size > settings.max_request_bytes):
            self._refused += 1
            refusal = Overloaded("Too many requests are under way: try again shortly.")
            await self._send(session, message, failed(verb, id_of(message.data), refusal))
            return
        if not self._under_way:
            self._idle = Event()
        self._under_way += 1
        self._bytes += size
        self._tasks.start_soon(self._serve, session, verb, message)

    async def _serve(self, session: NatsSession, verb: Verb, message: NatsMessage) -> None:
        try:
            incoming = read_request(verb, message.data)
            if isinstance(incoming, Malformed):
                self._ctx.log.debug("a request that cannot be read: %s", incoming.reason)
                refusal = BadRequest(f"This cannot be read: {incoming.reason}.")
                await self._send(session, message, failed(verb, incoming.id, refusal))
                return
            headers = {name.lower(): text for name, text in (message.headers or {}).items()}
            request = Request(
                transport=LISTENER,
                method=verb.upper(),
                path=verb,
                params={"id": str(incoming.id), "key": incoming.key},
                headers=headers,
                body=incoming.value,
                peer=f"nats:{session.host}:{session.port}",
                credential=headers.get(TOKEN),
            )
            await self._ctx.dispatch(request, partial(self._reply, session, message, incoming))
        except LinkLost:
            pass  # the client cannot be told any more
        finally:
            self._under_way -= 1
            self._bytes -= len(message.data)
            if not self._under_way:
                self._idle.set()

    async def _reply(
        self,
        session: NatsSession,
        message: NatsMessage,
        call: Call,
        outcome: Any,
        error: NkvError | None,
        _: Route | None,
    ) -> None:
        """Answer as the outcome says. Raises `LinkLost`, and what the answer became instead."""
        if error is not None:
            await self._send(session, message, failed(call.verb, call.id, error))
            return
        try:
            await self._send(session, message, _answer(call, outcome))
        except TooLarge:
            refusal = ValueTooLarge("The value is more than a message of this server can carry.")
            await self._send(session, message, failed(call.verb, call.id, refusal))
            raise refusal from None
        if call.verb == "subscribe":
            self._subjects.greet(call.key)

    async def _send(self, session: NatsSession, message: NatsMessage, body: bytes) -> None:
        if message.reply:
            await session.publish(message.reply, body)


def _answer(call: Call, outcome: Any) -> bytes:
    if call.verb == "get" and isinstance(outcome, Record):
        return done(call.verb, call.id, outcome.value)
    if call.verb == "subscribe" and isinstance(outcome, str):
        return done(call.verb, call.id, outcome.encode())
    if call.verb in ("put", "delete"):
        return done(call.verb, call.id)
    raise HandlerFailed("A plugin has put something else in the place of the answer.")
