"""Members: who is in the mesh, by what was heard from each and what others tell of them.

No input or output here. A node is *up* while it is heard; *suspect* once it has been silent for a
while; *down* when it stays silent and no other member hears it either. Whatever is only told by
others counts until the node itself is heard: a rumour can neither end a node that answers nor
change where it is found. Of two rumours that of the greater incarnation holds, and of one
incarnation the one that says that the node has gone; a node that is told to have gone, and has not,
takes a greater incarnation.
"""

from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import Final

import msgspec

from nkv_core.contracts.mesh import Member, MemberState
from nkv_core.events import PeerDown, PeerUp

from .messages import About, Rumour

STOPPED: Final = 1
LEFT: Final = 2
#: So many nodes are known at most: whoever tells of more is not believed.
MOST: Final = 256
#: Seconds for which a node is looked for that nobody here has ever heard.
_UNMET: Final = 60.0


class Peer:
    """Another node, as this one knows it."""

    def __init__(self, rumour: Rumour, now: float) -> None:
        self.rumour = rumour
        self.since: Final = now
        self.heard: float | None = None  #: when, by the monotonic clock
        self.was_up = False  #: others have been told that it is a member
        self.state: MemberState = "suspect"
        self.detail = "not heard yet"
        self.refused = ""  #: why it is not let in, or does not let us in
        self.hears: frozenset[int] = frozenset()  #: whose feeds it gets
        self.head = 0  #: its last revision, as it said
        self.met = False  #: it was heard once, in this life or one before

    @property
    def node_id(self) -> int:
        """Its id."""
        return self.rumour.node_id

    @property
    def address(self) -> str:
        """Where it is reached."""
        return self.rumour.address


class Members:
    """All nodes of the mesh. To be used on the event loop only."""

    def __init__(
        self,
        own: Rumour,
        *,
        suspect_after: float,
        down_after: float,
        forget_after: float,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.own = own
        self._suspect_after: Final = suspect_after
        self._down_after: Final = down_after
        self._forget_after: Final = forget_after
        self._clock: Final = clock
        self._peers: Final[dict[int, Peer]] = {}
        self._left: Final[dict[int, Rumour]] = {}  # told on, so that nobody takes them up again
        self.changed = False  #: since it was last looked at: who is to be kept durably

    def __iter__(self) -> Iterator[Peer]:
        return iter(list(self._peers.values()))

    def __len__(self) -> int:
        return len(self._peers) + 1

    def get(self, node_id: int) -> Peer | None:
        """The node of this id, if it is known."""
        return self._peers.get(node_id)

    # --- what is heard ----------------------------------------------------------------------------

    def meet(self, about: About) -> Peer:
        """A node has proved who it is: take what it says of itself."""
        rumour = Rumour(about.node_id, about.address, about.name, about.http, about.incarnation)
        self._left.pop(about.node_id, None)
        peer = self._peers.get(about.node_id)
        if peer is None:
            peer = self._peers[about.node_id] = Peer(rumour, self._clock())
        if peer.rumour != rumour or not peer.met:
            peer.rumour, peer.met = rumour, True
            self.changed = True
        peer.head = about.revision
        peer.refused = ""
        self.heard(peer)
        return peer

    def heard(
        self, peer: Peer, hears: Iterable[int] | None = None, head: int | None = None
    ) -> None:
        """A node has said something; of pings also whose feeds it gets, and its last revision."""
        peer.heard = self._clock()
        if hears is not None:
            peer.hears = frozenset(hears)
        if head is not None:
            peer.head = head

    def learn(self, rumours: Iterable[Rumour], teller: int) -> None:
        """Take what another node tells of nodes."""
        for rumour in list(rumours)[:MOST]:
            if rumour.node_id == self.own.node_id:
                self._refute(rumour)
            elif rumour.node_id != teller:
                self._learn(rumour)

    def _refute(self, rumour: Rumour) -> None:
        own = self.own
        ends = rumour.gone and rumour.incarnation == own.incarnation
        if own.gone != LEFT and (rumour.incarnation > own.incarnation or ends):
            self.own = msgspec.structs.replace(own, incarnation=rumour.incarnation + 1)
            self.changed = True

    def _learn(self, rumour: Rumour) -> None:
        peer = self._peers.get(rumour.node_id)
        if peer is None:
            known = self._left.get(rumour.node_id)
            if known is not None and rumour.incarnation <= known.incarnation:
                return
            if rumour.gone == LEFT:
                if known is not None or len(self._left) < MOST:
                    self._left[rumour.node_id] = rumour
            elif len(self) < MOST:
                self._left.pop(rumour.node_id, None)
                self._peers[rumour.node_id] = Peer(rumour, self._clock())
            return
        if peer.state == "up" or rumour.incarnation < peer.rumour.incarnation:
            return
        if rumour.incarnation == peer.rumour.incarnation and rumour.gone <= peer.rumour.gone:
            return
        peer.rumour = rumour
        self.changed = True
        if rumour.gone == LEFT:
            self._forget(peer, rumour)

    def said_goodbye(self, peer: Peer, incarnation: int, *, for_good: bool) -> PeerDown | None:
        """A node has said that it stops, or leaves for good."""
        gone = LEFT if for_good else STOPPED
        peer.rumour = msgspec.structs.replace(peer.rumour, incarnation=incarnation, gone=gone)
        peer.state, peer.detail = "left", "it has left" if for_good else "it has stopped"
        self.changed = True
        told = self._down(peer)
        if for_good:
            self._forget(peer, peer.rumour)
        return told

    def refuse(self, peer: Peer, reason: str) -> None:
        """A node is not let in, or does not let this one in."""
        peer.refused = reason

    def recall(self, rumours: Iterable[Rumour]) -> None:
        """Take up those who were met in an earlier life."""
        for rumour in rumours:
            if rumour.node_id != self.own.node_id and rumour.node_id not in self._peers:
                peer = self._peers[rumour.node_id] = Peer(rumour, self._clock())
                peer.met = True

    def forget_all(self) -> None:
        """Be alone: of one who leaves."""
        self._peers.clear()
        self._left.clear()
        self.changed = True

    def _forget(self, peer: Peer, rumour: Rumour | None = None) -> None:
        self._peers.pop(peer.node_id, None)
        if rumour is not None and len(self._left) < MOST:
            self._left[peer.node_id] = rumour
        self.changed = True

    # --- what follows from it ---------------------------------------------------------------------

    def tick(self) -> list[PeerUp | PeerDown]:
        """Look who is silent; returns who has come and who is given up."""
        now = self._clock()
        events: list[PeerUp | PeerDown] = []
        for peer in self:
            before = peer.state
            peer.state, peer.detail = self._judge(peer, now)
            if peer.state == "up" and not peer.was_up:
                peer.was_up = True
                events.append(PeerUp(peer.address, peer.node_id, peer.rumour.name))
            elif peer.state == "down" and before != "down":
                told = self._down(peer)
                events += [told] if told is not None else []
            silent = now - (peer.since if peer.heard is None else peer.heard)
            if peer.state != "up" and silent > (self._forget_after if peer.met else _UNMET):
                self._forget(peer)
        return events

    def _judge(self, peer: Peer, now: float) -> tuple[MemberState, str]:
        if peer.rumour.gone:
            return "left", "it has stopped"
        if peer.refused:
            return "refused", peer.refused
        silent = now - (peer.since if peer.heard is None else peer.heard)
        if peer.heard is not None and silent < self._suspect_after:
            return "up", ""
        if silent < self._down_after:
            return "suspect", f"silent for {silent:.1f} s"
        others = [
            other.rumour.name or other.address
            for other in self
            if other.state == "up" and peer.node_id in other.hears
        ]
        if others:
            return "suspect", f"silent for {silent:.0f} s here, heard by {', '.join(others[:3])}"
        return "down", f"silent for {silent:.0f} s"

    def _down(self, peer: Peer) -> PeerDown | None:
        if not peer.was_up:
            return None
        peer.was_up = False
        return PeerDown(peer.address, peer.node_id, peer.rumour.name, peer.detail)

    def rumours(self) -> list[Rumour]:
        """What this node tells of itself and of the others."""
        known = [peer.rumour for peer in self if peer.met and not peer.refused]
        return [self.own, *known, *self._left.values()][:MOST]

    def met(self) -> list[Rumour]:
        """Those that are to be looked for again in a next life."""
        return [peer.rumour for peer in self if peer.met]

    def shown(self) -> tuple[Member, ...]:
        """All nodes for people, this one first."""
        own = Member(self.own.address, "self", self.own.node_id, self.own.name)
        return (
            own,
            *(
                Member(p.address, p.state, p.node_id, p.rumour.name, detail=p.detail)
                for p in sorted(self, key=lambda peer: peer.address)
            ),
        )
