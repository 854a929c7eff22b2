"""Mesh: a keyspace around a keyspace, which shares its records with other nodes.

A mesh stands between those who ask and the node's own keyspace. What it offers is a keyspace, so
that handlers and transports cannot tell; while it is in charge, `node.keyspace`, `ctx.keyspace` and
`request.keyspace` are the mesh. The watch hub stays with the keyspace within: what comes from other
nodes gets there through `apply_foreign`, and watchers are told of it as of everything else.

Besides the mesh itself, two things are offered by name and can come from other plugins: mergers,
which make one record of two, and discoveries, which find other nodes.
"""

from collections.abc import Callable
from typing import Any, Literal, Protocol

import msgspec
from anyio import Event

from nkv_core.contracts.context import Context, Measurement
from nkv_core.contracts.keyspace import Keyspace, Replicable
from nkv_core.contracts.markers import hookspec
from nkv_core.events import PeerDown, PeerUp
from nkv_core.records import Record

#: `self`: the node that tells. `suspect`: it has not answered, and may yet. `left`: it has said
#: goodbye. `refused`: it answers, but is not let in; `detail` says why.
MemberState = Literal["self", "up", "suspect", "down", "left", "refused"]


class Member(msgspec.Struct, frozen=True):
    """A node of a mesh, as the node that is asked knows it."""

    address: str  #: `host:port` under which the others reach it
    state: MemberState
    node_id: int | None = None  #: None while it is not known
    name: str = ""
    kind: str = "nkv"  #: what sort of node it is
    detail: str = ""  #: why it is down or refused, for people


class Mesh(Keyspace, Protocol):
    """A keyspace around a keyspace, with members. Made by `nkv_mesh`, put around by `serve`.

    From `started` on, and after `serve` has ended too, its methods as a keyspace work: requests
    that began with it end with it. They go on to the keyspace within where the mesh has nothing to
    add. A write that does not reach the acknowledgement asked for stands nevertheless, and raises
    `NotAcknowledged`, so that no dialect takes it for one that has reached it; one that does says
    so in `Written.acknowledged`.
    """

    @property
    def backends(self) -> frozenset[str]:
        """The async backends that it runs on: of `asyncio` and `trio`."""

    @property
    def members(self) -> tuple[Member, ...]:
        """All nodes that it knows, itself first."""

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
        """Be a member until `stop` is set, then end within `deadline` seconds.

        `keyspace` is the one within. `started` is called once the mesh can be put around it, which
        the node then does. `goodbye`, asked after `stop`, says whether the other nodes are to be
        told that this one goes: not where a next generation takes over, nor where this one never
        came to be in charge. A next generation is set up while the one before still serves.

        Raises `SettingsError` or `StartError` where it cannot be a member as it is set up.
        """

    async def leave(self) -> None:
        """Leave for good: hand over what others lack, say goodbye, and forget the other nodes.

        Raises `DeadlineExceeded` where others still lack something; then it is a member still.
        """

    def status(self) -> dict[str, Any]:
        """What `/v1/status` and `nkv mesh` show of it."""

    def measurements(self) -> list[Measurement]:
        """What `/metrics` shows of it."""


class Merger(Protocol):
    """Makes one record of two that were written without knowing of each other."""

    def merge(self, ours: Record, theirs: Record) -> Record:
        """Return the record that both sides are to have.

        Commutative, associative and idempotent in what a reader sees: value and expiry. Timestamp
        and origin of the outcome are set by the one who asks, to the greater of the two. A value
        that is none of the merger's counts as the least there can be; nothing is raised.
        """


#: Called with an address, `host:port`, under which another node may be reached.
Found = Callable[[str], None]


class Discovery(Protocol):
    """Finds other nodes. What it finds is asked and has to prove who it is, like any other."""

    async def run(self, own: str, found: Found) -> None:
        """Call `found` with each address, as often as it likes, until cancelled or all is told.

        `own` is the address under which this node is to be found. Raises `StartError` where it
        cannot work at all.
        """


class MeshHooks:
    """The hooks of meshes and of what they use, and those of who listens to them."""

    @hookspec
    def nkv_mesh(self, name: str, settings: Any) -> Mesh | None:
        """Return the mesh called `name`, or None where that is another's name.

        :param name: what the plugin's name has behind `nkv_mesh_`, or its whole name.
        :param settings: the section `mesh.NAME`, as the type that `nkv_settings` gives.
        """

    @hookspec
    def nkv_merger(self, name: str, settings: Any) -> Merger | None:
        """Return the merger called `name`, or None where that is another's name.

        :param name: as a mesh's settings give it for the keys of some pattern.
        :param settings: the plugin's own section, as the type that `nkv_settings` gives.
        """

    @hookspec
    def nkv_discovery(self, name: str, settings: Any) -> Discovery | None:
        """Return the discovery called `name`, or None where that is another's name.

        :param name: as a mesh's settings give it.
        :param settings: the plugin's own section, as the type that `nkv_settings` gives.
        """

    @hookspec
    def nkv_peer_up(self, event: PeerUp) -> None:
        """Called when another node has become a member, or is one again.

        :param event: its address, id and name.
        """

    @hookspec
    def nkv_peer_down(self, event: PeerDown) -> None:
        """Called when a member is given up as down, or has left.

        :param event: its address, id and name, and the reason.
        """
