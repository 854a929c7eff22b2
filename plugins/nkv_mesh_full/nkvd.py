"""nkvd peers: nodes of another program that are members too, as well as they can be.

Each is told what this node writes, in its own form, in order and again until it answers. What it
says of itself and of others is heard by pings. There are no versions between the two: whoever
writes at the same time on both sides may leave them different until the next write of the key.
"""

import socket
from time import monotonic
from typing import Any, Final

import anyio
import httpx2

from nkv_core.contracts.context import TcpAddress
from nkv_core.contracts.keyspace import Delete, Operation, Put
from nkv_core.contracts.mesh import Member
from nkv_core.contracts.watch import Changed, Gap
from nkv_core.errors import BadRequest, NkvError, NotFound
from nkv_core.events import PeerDown, PeerUp
from nkv_core.outward import backoff
from nkv_core.records import Change, Record, Token

from .addresses import format_address, is_wildcard, parse_address
from .core import Core
from .nkvd_form import (
    CAUSE,
    addresses_of,
    operation_of,
    path_of,
    ping_answer,
    ping_path,
)
from .nkvd_server import NkvdServer

_PING: Final = 1.5
_TIMEOUT: Final = 2.0
_LONGEST_PAUSE: Final = 3.0
_READ: Final = 256
#: Keys that are shown as not replicated.
_SHOWN: Final = 20
#: Seconds for which the addresses of a name are believed.
_RESOLVED: Final = 30.0


class NkvdPeer:
    """One nkvd node."""

    def __init__(self, address: str) -> None:
        self.address: Final = address
        self.up = False
        self.was_up = False
        self.detail = "not heard yet"
        self.sent = 0
        self.left_out: Final[dict[str, str]] = {}  # keys and why, the latest last
        self.left_out_count = 0
        self.place: Token | None = None  #: how far it was told; None where it is to be told all

    def shown(self) -> dict[str, Any]:
        """What the status shows of it."""
        return {
            "address": self.address,
            "node_id": None,
            "name": "",
            "kind": "nkvd",
            "state": "up" if self.up else "down",
            "detail": self.detail,
            "sent": self.sent,
            "not_replicated": self.left_out_count,
            "not_replicated_keys": dict(self.left_out),
        }


class Nkvd:
    """All nkvd nodes of one mesh."""

    def __init__(self, core: Core) -> None:
        settings = core.settings
        self._core: Final = core
        self.peers: Final = [NkvdPeer(format_address(*parse_address(a))) for a in settings.nkvd]
        self._hosts: Final = {parse_address(a)[0] for a in settings.nkvd}
        self._ips: frozenset[str] = frozenset()
        self.own = ""
        self.taken = 0
        self.unnamed: Final[set[str]] = set()  #: addresses that were told and are none of settings

    async def listen(self) -> list[socket.socket]:
        """Listen for them. Raises `AddressInUse`, `StartError`."""
        settings, ctx = self._core.settings, self._core.ctx
        listener = await ctx.listen(
            TcpAddress(settings.host, settings.nkvd_port), guard="own", scheme="nkvd"
        )
        place = listener.addresses[0]
        port = place.port if isinstance(place, TcpAddress) else settings.nkvd_port
        host = settings.host
        if settings.advertise is not None:
            host = parse_address(settings.advertise)[0]
        elif is_wildcard(host):
            host = ctx.node.name
        self.own = format_address(host, port)
        return listener.sockets()

    async def run(self, sockets: list[socket.socket]) -> None:
        """Be a member beside them, until cancelled."""
        server = NkvdServer(self._answer, lambda host: host in self._ips)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._resolve)
            tasks.start_soon(server.serve, sockets)
            for peer in self.peers:
                tasks.start_soon(self._look_after, peer)

    @property
    def members(self) -> list[Member]:
        """These nodes, as members."""
        return [
            Member(p.address, "up" if p.up else "down", kind="nkvd", detail=p.detail)
            for p in self.peers
        ]

    # --- what they ask ----------------------------------------------------------------------------

    async def _resolve(self) -> None:
        """Keep the addresses of the machines that are answered."""
        while True:
            found: set[str] = set()
            for host in self._hosts:
                try:
                    infos = await anyio.getaddrinfo(host, None, type=socket.SOCK_STREAM)
                except OSError:
                    continue
                found |= {str(place[0]) for *_, place in infos}
            self._ips = frozenset(found)
            await anyio.sleep(_RESOLVED if found else 1.0)

    async def _answer(self, path: str, params: dict[str, str]) -> Any:
        if path == "/ping":
            return self._pinged()
        if path == "/healthcheck":
            return {"status": "ok"}
        operation = operation_of(path, params)
        if operation is None:
            raise BadRequest(f"No register handler for [{path}]")
        await self._take(operation)
        return {"success": True}

    def _pinged(self) -> dict[str, Any]:
        ours = [(p.rumour.http, p.state == "down") for p in self._core.members if p.rumour.http]
        theirs = [(peer.address, not peer.up) for peer in self.peers]
        return ping_answer(self.own, ours + theirs)

    async def _take(self, operation: Operation) -> None:
        """Do what an nkvd node has done. A value that is there already is left as it is: the same
        comes from several sides.
        """
        keyspace = self._core.keyspace
        self.taken += 1
        if isinstance(operation, Put):
            record = await keyspace.get(operation.key)
            if record is not None and record.value == operation.value and record.expires is None:
                return
            await keyspace.put(operation.key, operation.value, cause=CAUSE)
        elif isinstance(operation, Delete):
            written = await keyspace.delete(operation.key, cause=CAUSE)
            if written.previous is None:
                raise NotFound
        else:
            await keyspace.clear(cause=CAUSE)

    # --- what they are told -----------------------------------------------------------------------

    async def _look_after(self, peer: NkvdPeer) -> None:
        """Ping a node and tell it what is written, again and again where it does not answer."""
        attempt = 0
        while True:
            began = monotonic()
            try:
                async with httpx2.AsyncClient(
                    base_url=f"http://{peer.address}", timeout=_TIMEOUT, trust_env=False
                ) as http:
                    await self._ping(peer, http)
                    self._came(peer)
                    await self._tell(peer, http)
                    return  # the node stops
            except* (httpx2.HTTPError, BadRequest, _Behind) as group:
                error = _first(group)
                self._went(peer, str(error) or type(error).__name__)
            attempt = 1 if monotonic() - began > _LONGEST_PAUSE else attempt + 1
            await anyio.sleep(backoff(attempt, 0.1, _LONGEST_PAUSE))

    def _came(self, peer: NkvdPeer) -> None:
        peer.up, peer.detail = True, ""
        if not peer.was_up:
            peer.was_up = True
            self._core.ctx.emit(PeerUp(peer.address, None, ""))

    def _went(self, peer: NkvdPeer, why: str) -> None:
        peer.up, peer.detail = False, why
        if peer.was_up:
            peer.was_up = False
            self._core.ctx.emit(PeerDown(peer.address, None, "", why))

    async def _ping(self, peer: NkvdPeer, http: httpx2.AsyncClient) -> None:
        ours = [one.rumour.http for one in self._core.members if one.rumour.http]
        known = [one.address for one in self.peers if one.up]
        answer = await http.get(ping_path([self.own, *ours, *known]))
        if answer.status_code != httpx2.codes.OK:
            raise BadRequest(f"A ping was answered {answer.status_code}.")
        named = {self.own, *ours, *(one.address for one in self.peers)}
        self.unnamed.update(
            address for address in addresses_of(answer.content) if address not in named
        )
        while len(self.unnamed) > _SHOWN:
            self.unnamed.pop()

    async def _tell(self, peer: NkvdPeer, http: httpx2.AsyncClient) -> None:
        """Tell it what it lacks and then what is written, with pings in between."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_pinging, peer, http)
            if peer.place is None:
                await self._tell_all(peer, http)
            await self._follow(peer, http)
            tasks.cancel_scope.cancel()

    async def _keep_pinging(self, peer: NkvdPeer, http: httpx2.AsyncClient) -> None:
        while True:
            await anyio.sleep(_PING)
            await self._ping(peer, http)

    async def _tell_all(self, peer: NkvdPeer, http: httpx2.AsyncClient) -> None:
        keyspace, after = self._core.keyspace, None
        place = keyspace.token
        while True:
            page = await keyspace.scan(after=after)
            for record in page.records:
                await self._send(peer, http, _as_change(record))
            after = page.after
            if after is None:
                peer.place = place
                return

    async def _follow(self, peer: NkvdPeer, http: httpx2.AsyncClient) -> None:
        try:
            watcher = self._core.ctx.node.hub.watch(
                "*", since=peer.place, resync=False, label=f"mesh nkvd {peer.address}"
            )
        except NkvError as error:
            peer.place = None
            raise _Behind(error.detail) from error
        try:
            while items := await watcher.read(_READ):
                for item in items:
                    if isinstance(item, Gap):
                        peer.place = None
                        raise _Behind("the log does not reach back so far any more")
                    if isinstance(item, Changed):
                        if self._concerns(item.change):
                            await self._send(peer, http, item.change)
                        peer.place = item.token
        finally:
            watcher.close()

    def _concerns(self, change: Change) -> bool:
        """What other nodes wrote they tell themselves; what an nkvd node wrote it told its like."""
        if change.cause == CAUSE:
            return False
        return change.origin == self._core.own.node_id or change.cause in ("expire", "merged")

    async def _send(self, peer: NkvdPeer, http: httpx2.AsyncClient, change: Change) -> None:
        path, why = path_of(change)
        if why:
            peer.left_out_count += 1
            peer.left_out.pop(change.key[:200], None)
            peer.left_out[change.key[:200]] = why
            while len(peer.left_out) > _SHOWN:
                del peer.left_out[next(iter(peer.left_out))]
        if path:
            answer = await http.get(path)
            if answer.status_code not in (httpx2.codes.OK, httpx2.codes.NOT_FOUND):
                raise BadRequest(f"{path.partition('?')[0]} was answered {answer.status_code}.")
            peer.sent += 1


class _Behind(Exception):
    """It has to be told everything anew."""


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _as_change(record: Record) -> Change:
    return Change(
        "put", "put", record.key, record.revision, record.modified, record.origin,
        record.value, None, record.expires,
    )  # fmt: skip
