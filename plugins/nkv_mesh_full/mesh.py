"""Mesh: a keyspace that is the same on all nodes, sooner or later."""

import secrets
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any, Final

import anyio
import msgspec
from anyio import Event

from nkv_core.contracts.context import Context, Measurement, TcpAddress
from nkv_core.contracts.handlers import Request
from nkv_core.contracts.keyspace import Replicable
from nkv_core.contracts.mesh import Member
from nkv_core.errors import DeadlineExceeded, NkvError, StartError

from .addresses import check_join, format_address, is_wildcard, parse_address
from .core import MESSAGE_BYTES, Core
from .handshake import Terms
from .keyspace import MeshKeyspace
from .links import ADDRESS_PATH, Links
from .members import Members
from .merging import Merging
from .messages import Rumour
from .nkvd import Nkvd
from .settings import FullSettings
from .status import measurements_of, status_of
from .store import Store
from .trust import Trust

_TICK: Final = 0.25
#: How often somebody at an address that was found is asked before it is given up; and the seconds
#: before a discovery that failed is tried again.
_FOUND_TRIES: Final = 5
_DISCOVERY_PAUSE: Final = 30.0


class FullMesh(MeshKeyspace):
    """Implements `contracts.mesh.Mesh`."""

    backends: Final = frozenset(("asyncio", "trio"))

    def __init__(self, settings: FullSettings) -> None:
        super().__init__(settings)
        self._links: Links | None = None
        self._wake = Event()
        self._left = False

    # --- its life -----------------------------------------------------------------------------

    async def serve(
        self,
        ctx: Context,
        keyspace: Replicable,
        *,
        started: Callable[[], None],
        stop: Event,
        goodbye: Callable[[], bool],
        deadline: float,
    ) -> None:
        """Be a member, as `contracts.mesh.Mesh` has it."""
        settings = self._settings
        trust = Trust(settings)
        for address in settings.join:
            check_join(address)
        listener = await ctx.listen(
            TcpAddress(settings.host, settings.port),
            guard="own" if trust.guarded else "nobody",
            scheme="nkv-mesh",
        )
        place = listener.addresses[0]
        port = place.port if isinstance(place, TcpAddress) else settings.port
        own = Rumour(ctx.node.node_id, self._advertised(ctx, port), ctx.node.name, "", 0)
        members = Members(
            own,
            suspect_after=settings.suspect_after,
            down_after=settings.down_after,
            forget_after=settings.forget_after,
        )
        core = Core(
            ctx,
            keyspace,
            settings,
            boot=secrets.token_bytes(16),
            members=members,
            store=Store(ctx.state),
            merging=Merging(settings.mergers, ctx.merger, ctx.log),
        )
        core.terms = Terms(
            trust,
            core.about,
            core.skew,
            MESSAGE_BYTES + keyspace.settings.max_value_bytes,
            core.wall,
        )
        nkvd = core.nkvd = Nkvd(core) if settings.nkvd else None
        nkvd_sockets = [] if nkvd is None else await nkvd.listen()
        if nkvd is not None:
            members.own = own = msgspec.structs.replace(own, http=nkvd.own)
        self._begin(core)
        # Public, as it is what somebody needs who is to join: it says where, and lets nobody in.
        ctx.handlers.add(ADDRESS_PATH, self._tell_address, command="mesh", public=True)
        started()
        # Two generations would be two nodes of one id: this one is silent until the other is.
        await ctx.predecessor_ended()
        known, incarnation = await core.store.load()
        members.own = msgspec.structs.replace(own, incarnation=incarnation + 1)
        members.recall(known)
        await core.store.save_members(members.met(), members.own.incarnation)
        async with anyio.create_task_group() as tasks:
            links = self._links = Links(core, tasks)
            tasks.start_soon(links.accept, listener.sockets())
            tasks.start_soon(core.comparisons.run, links.compare)
            tasks.start_soon(self._supervise, core, links)
            if nkvd is not None:
                tasks.start_soon(nkvd.run, nkvd_sockets)
            for address in settings.join:
                links.knock_at(address)
            for name in settings.discovery:
                tasks.start_soon(self._discover, core, links, name)
            await stop.wait()
            with anyio.CancelScope(shield=True):
                await self._end(core, links, goodbye=goodbye(), deadline=deadline)
                tasks.cancel_scope.cancel()
        self._links = None

    def _tell_address(self, _: Request) -> dict[str, str]:
        """Where other nodes reach this one."""
        return {"address": "" if self._core is None else self._core.own.address}

    def _advertised(self, ctx: Context, port: int) -> str:
        settings = self._settings
        if settings.advertise is not None:
            return format_address(*parse_address(settings.advertise))
        host = ctx.node.name if is_wildcard(settings.host) else settings.host
        if not host:
            raise StartError("mesh.full.advertise is needed: where do other nodes reach this one?")
        return format_address(host, port)

    async def _discover(self, core: Core, links: Links, name: str) -> None:
        """Look for other nodes, and again where that fails: nothing depends on it."""
        while True:
            try:
                found = partial(links.knock_at, tries=_FOUND_TRIES)
                await core.ctx.discovery(name).run(core.own.address, found)
            except (NkvError, OSError) as error:
                core.log.error("The discovery %s has failed: %s", name, error)
            await anyio.sleep(_DISCOVERY_PAUSE)

    async def _supervise(self, core: Core, links: Links) -> None:
        """Look who has come and gone, and do what follows from it."""
        while True:
            for event in core.members.tick():
                core.ctx.emit(event)
            links.dial_new()
            core.comparisons.watch_sources()
            if core.members.changed and not self._left:
                core.members.changed = False
                await core.store.save_members(core.members.met(), core.own.incarnation)
            await anyio.sleep(_TICK)

    async def _end(self, core: Core, links: Links, *, goodbye: bool, deadline: float) -> None:
        """Let those who wait for others have their answer, and say goodbye."""
        until = monotonic() + deadline * 0.8
        await core.acks.none_waits(until - monotonic())
        if goodbye and not self._left:
            links.closed = "This node is stopping."
            await self._flush(core, max(until - monotonic(), 0.1))
            for feed in list(core.feeds.values()):
                await feed.goodbye(for_good=False)

    async def _flush(self, core: Core, seconds: float) -> bool:
        """Wait until all who listen have all that this node has; whether they do."""
        nodes = core.reachable()
        done = await core.acks.wait(core.keyspace.token.revision, nodes, seconds)
        return done.nodes >= core.reachable()

    async def leave(self) -> None:
        """Leave for good, as `contracts.mesh.Mesh` has it."""
        core = self._core
        if core is None or self._links is None:
            return
        head = core.keyspace.token.revision
        if not await self._flush(core, self._settings.acknowledge_deadline):
            lacking = [
                peer.address
                for peer in core.members
                if peer.node_id in core.feeds and core.feeds[peer.node_id].acked < head
            ]
            raise DeadlineExceeded(
                f"{', '.join(lacking)} lack some changes yet: this node is a member still."
            )
        if core.members.met() and not core.feeds:
            raise DeadlineExceeded("No other node is reached: this node is a member still.")
        self._left = True
        core.members.own = msgspec.structs.replace(
            core.own, incarnation=core.own.incarnation + 1, gone=2
        )
        for feed in list(core.feeds.values()):
            await feed.goodbye(for_good=True)
        # First of all nobody is to be heard any more: who is heard is a member again.
        await self._links.leave()
        core.members.forget_all()
        await core.store.forget()

    # --- what it says -------------------------------------------------------------------------

    @property
    def members(self) -> tuple[Member, ...]:
        """All nodes that it knows, itself first."""
        core = self._core
        if core is None:
            return ()
        return (*core.members.shown(), *(() if core.nkvd is None else core.nkvd.members))

    def status(self) -> dict[str, Any]:
        """What `/v1/status` and `nkv mesh` show of it."""
        return {} if self._core is None else status_of(self._core, left=self._left)

    def measurements(self) -> list[Measurement]:
        """What `/metrics` shows of it."""
        return [] if self._core is None else measurements_of(self._core)
