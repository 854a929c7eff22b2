"""Core: what all parts of a running mesh share."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from nkv_core.contracts.context import Context
from nkv_core.contracts.keyspace import Merge, Replicable
from nkv_core.records import wall_clock

from .acks import Acks
from .comparisons import Comparisons
from .handshake import Terms
from .members import Members, Peer
from .merging import Merging
from .messages import About, Goodbye, Rumour
from .settings import FullSettings
from .store import Store

if TYPE_CHECKING:
    from .feed import Feed
    from .intake import Intake
    from .nkvd import Nkvd

#: A message may be so large besides the largest value.
MESSAGE_BYTES: Final = 4 * 1024 * 1024


class Figures:
    """What is counted."""

    def __init__(self) -> None:
        self.sent = 0  #: changes sent to others, each counted for each
        self.received = 0  #: changes that came from others
        self.taken = 0  #: of these, those that were newer than what was here
        self.refused = 0  #: connections and messages that were not taken
        self.compared = 0  #: comparisons that were made
        self.compared_bytes = 0  #: that these took
        self.dropped = 0  #: stale records of nodes that were away for too long


class Core:
    """One running mesh. To be used on the event loop only."""

    def __init__(
        self,
        ctx: Context,
        keyspace: Replicable,
        settings: FullSettings,
        *,
        boot: bytes,
        members: Members,
        store: Store,
        merging: Merging | None = None,
        wall: Callable[[], int] = wall_clock,
    ) -> None:
        self.ctx: Final = ctx
        self.keyspace: Final = keyspace
        self.settings: Final = settings
        self.boot: Final = boot
        self.members: Final = members
        self.store: Final = store
        self._merging: Final = merging
        self.wall: Final = wall
        self.log: Final[logging.Logger] = ctx.log
        self.figures: Final = Figures()
        self.feeds: Final[dict[int, Feed]] = {}  #: to others, by node
        self.intakes: Final[dict[int, Intake]] = {}  #: from others, by node
        self.acks: Final = Acks(self.acknowledged)
        self.comparisons: Final = Comparisons(self)
        self.terms: Terms
        self.nkvd: Nkvd | None = None  #: where there are such nodes

    @property
    def merge(self) -> Merge | None:
        """What makes one record of two, where settings say that something does."""
        return self._merging or None

    def merges(self, key: str) -> bool:
        """Whether records of a key are merged."""
        return self._merging is not None and self._merging.concerns(key)

    @property
    def own(self) -> Rumour:
        """What this node tells of itself."""
        return self.members.own

    def about(self, peer: int | None) -> About:
        """Who this node is, as told to the one of that id."""
        own, limits, token = self.own, self.keyspace.settings, self.keyspace.token
        cursor = None if peer is None else self.store.cursors.get(peer)
        return About(
            own.node_id,
            own.name,
            own.address,
            own.http,
            own.incarnation,
            self.boot,
            self.wall(),
            limits.max_key_bytes,
            limits.max_value_bytes,
            limits.tombstone_age,
            token.history,
            token.revision,
            None if cursor is None else cursor.seen,
        )

    def said_goodbye(self, peer: Peer, goodbye: Goodbye) -> None:
        """A node has said that it goes."""
        event = self.members.said_goodbye(peer, goodbye.incarnation, for_good=goodbye.for_good)
        if event is not None:
            self.ctx.emit(event)

    def hears(self) -> list[int]:
        """Whose feeds this node gets."""
        return list(self.intakes)

    def latest(self) -> int:
        """What is dated later than this is not taken. Logical time may be ahead of each clock, by
        as much as that of another node is.
        """
        return self.wall() + 2 * self.skew

    @property
    def skew(self) -> int:
        """How far clocks may be apart, in milliseconds."""
        return round(self.settings.max_skew * 1000)

    def acknowledged(self, revision: int) -> int:
        """How many nodes have this node's changes up to a revision, itself included."""
        return 1 + sum(feed.acked >= revision for feed in self.feeds.values())

    def reachable(self) -> int:
        """How many nodes could acknowledge something now, this one included."""
        return 1 + len(self.feeds)
