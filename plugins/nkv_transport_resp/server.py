"""Server: accepts clients on the node's sockets, watches over them, and ends them in order."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from socket import socket
from typing import Final

import anyio

from nkv_core.contracts.context import Context
from nkv_core.contracts.handlers import DispatchNow
from nkv_core.contracts.owner import Owner
from nkv_core.loop import Together

from .follower import Follower
from .listing import Cursors
from .pubsub import Channels, concerns_keys
from .session import Session
from .settings import RespSettings
from .table import Table
from .tracking import Tracker

#: Of connections that wait to be accepted.
_QUEUE: Final = 1024
#: At a stop clients may still send for so many seconds: what crosses our notice of the end.
_CROSSING: Final = 0.25
#: Seconds in which a connection that was accepted has surely become a session.
_ACCEPTING: Final = 0.02
#: How long one that has connected and said nothing yet may take for it, at a stop: it is about to.
_NEWCOMERS: Final = 2.0
#: How often idle clients are looked for, in seconds.
_LOOK: Final = 5.0


class Figures:
    """What is counted for people."""

    def __init__(self) -> None:
        self.connections = 0
        self.refused = 0
        self.cut_for_output = 0


class Shared:
    """What the clients of one transport share."""

    def __init__(self, ctx: Context, settings: RespSettings) -> None:
        self.settings: Final = settings
        self.dispatch_now: Final[DispatchNow] = ctx.dispatch_now
        self.owner: Final[Owner] = ctx.owner
        self.log: Final[logging.Logger] = ctx.log
        self.loop: Final = asyncio.get_running_loop()
        self.together: Final = Together()
        self.began: Final = self.loop.time()
        self.table: Final = Table()
        self.figures: Final = Figures()
        self.sessions: Final[dict[int, Session]] = {}
        self.channels: Final = Channels()
        self.tracker: Final = Tracker(settings.max_tracked_keys, self.sessions.get)
        self.follower: Final = Follower(
            lambda: ctx.node.hub, self.channels, self.tracker, self._lost, ctx.log
        )
        self.cursors: Final = Cursors()
        self.emptied: asyncio.Event | None = None
        self._count = 0

    def next_id(self) -> int:
        """The number of the next client."""
        self._count += 1
        return self._count

    def enter(self, session: Session) -> bool:
        """Take a client in; whether there is room."""
        if len(self.sessions) >= self.settings.max_clients:
            self.figures.refused += 1
            return False
        self.figures.connections += 1
        self.sessions[session.id] = session
        return True

    def leave(self, session: Session) -> None:
        """A client has gone."""
        self.sessions.pop(session.id, None)
        self.forget(session)
        if not self.sessions and self.emptied is not None:
            self.emptied.set()

    def forget(self, session: Session) -> None:
        """End what a client has asked to be told."""
        for name in session.channels:
            self.channels.unsubscribe(session, name, pattern=False)
        for name in session.patterns:
            self.channels.unsubscribe(session, name, pattern=True)
        session.channels.clear()
        session.patterns.clear()
        session.tracking = None
        self.tracker.end(session)
        self.follow_if_needed()

    def follow_if_needed(self) -> None:
        """Stop reading the change stream where nobody wants to be told of it any more."""
        if self.channels.empty and self.tracker.empty:
            self.follower.close()

    def _lost(self) -> None:
        """Subscribers missed something, which the protocol has no word for: they are to notice."""
        for session in list(self.sessions.values()):
            told = any(concerns_keys(name, pattern=False) for name in session.channels) or any(
                concerns_keys(name, pattern=True) for name in session.patterns
            )
            if told:
                session.cut()


async def serve(
    shared: Shared,
    sockets: Sequence[socket],
    *,
    started: Callable[[], None],
    stop: anyio.Event,
    deadline: float,
) -> None:
    """Serve until `stop` is set, then return within `deadline` seconds.

    The sockets are this call's to close.
    """
    servers: list[asyncio.Server] = []
    try:
        for listening in sockets:
            servers.append(  # noqa: PERF401  # those begun so far are to be closed
                await shared.loop.create_server(
                    lambda: Session(shared), sock=listening, backlog=_QUEUE
                )
            )
        started()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_watch, shared)
            await stop.wait()
            tasks.cancel_scope.cancel()
        for server in servers:
            server.close()
        await _drain(shared, deadline)
    finally:
        for server in servers:
            server.close()
        for listening in sockets:
            listening.close()
        for session in list(shared.sessions.values()):
            session.cut()
        shared.follower.close()


async def _watch(shared: Shared) -> None:
    """Close the connections of clients that say nothing for too long."""
    idle = shared.settings.idle_timeout
    while True:
        await anyio.sleep(min(_LOOK, idle / 4))
        oldest = shared.loop.time() - idle
        for session in list(shared.sessions.values()):
            silent = not (session.channels or session.patterns or session.tracking)
            if silent and session.last < oldest and not session.waiting:
                session.finish()


async def _drain(shared: Shared, deadline: float) -> None:
    """Answer what has come, and end all connections; by force a little before the deadline."""
    began = shared.loop.time()
    await anyio.sleep(min(_ACCEPTING, deadline / 8))
    await _emptied(shared, min(_CROSSING, deadline / 4))
    for session in list(shared.sessions.values()):
        if session.heard:
            session.finish()
    if not all(session.heard for session in shared.sessions.values()):
        await _emptied(shared, min(_NEWCOMERS, deadline / 4))
    for session in list(shared.sessions.values()):
        session.finish()
    left = began + deadline - shared.loop.time()
    if await _emptied(shared, left - min(0.5, deadline / 4)):
        return
    shared.log.warning("cutting %d connections at the deadline", len(shared.sessions))
    for session in list(shared.sessions.values()):
        session.cut()
    await _emptied(shared, min(0.25, deadline / 8))


async def _emptied(shared: Shared, seconds: float) -> bool:
    if shared.sessions:
        shared.emptied = asyncio.Event()
        with anyio.move_on_after(seconds):
            await shared.emptied.wait()
    return not shared.sessions
