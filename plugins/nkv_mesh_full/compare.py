"""Compare: two nodes find out what they differ in, and exchange only that.

One asks, the other answers. First they exchange their clears, of which there are few. Then the one
who asks goes down the other's tree of digests (`tree`) where it differs from its own, tells what it
has in the leaves that differ, and is sent what it lacks, with a list of what the other lacks.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from nkv_core.contracts.keyspace import Entry, Foreign
from nkv_core.errors import BadRequest
from nkv_core.records import Tombstone, timestamp_at

from .channel import Channel
from .core import Core
from .entries import pack, unpack_all
from .messages import (
    About,
    Ack,
    Ask,
    Compare,
    Digests,
    Done,
    Entries,
    Leaves,
    Want,
)
from .tree import FANOUT, LEAVES, LEVELS, Tree, all_entries, counts, digest_of, hash_key, leaf_of

_BATCH_BYTES: Final = 512 * 1024
#: Seconds for one step of the other, of which the longest is to read all that it has.
_STEP: Final = 60.0
#: So many summaries are in memory at a time; where more differs, another round follows.
_SUMMARIES: Final = 100_000
#: So many nodes of the tree are asked for at once.
_ASKED: Final = 4096
#: Milliseconds within which one of two nodes may have forgotten a deletion already.
_MARGIN: Final = 60_000

Have = dict[int, tuple[int, int, int]]


class Comparison:
    """One comparison, of either side."""

    def __init__(self, core: Core, channel: Channel, about: About) -> None:
        """`about`: the other node."""
        self._core: Final = core
        self._channel: Final = channel
        self._about: Final = about
        self._cutoff = 0
        self._theirs: dict[int, int] = {}  # by node, up to when they have had all of its writes
        self._ours: dict[int, int] = {}
        self._stale = False
        self._set_back = False  # the other has lost some of what it had
        self.received = 0
        self.sent = 0
        self.dropped = 0

    @property
    def stale(self) -> bool:
        """Whether the two had not met for longer than deletions are remembered."""
        return self._stale

    @property
    def own(self) -> int:
        """Timestamp up to which all that the other itself wrote has come, once this is done."""
        return self._theirs.get(self._about.node_id, 0)

    # --- the one who asks -------------------------------------------------------------------------

    async def ask(self) -> None:
        """Become equal with the other."""
        core = self._core
        opening = self._opening()
        await self._channel.send(opening)
        answer = await self._channel.expect(Compare, deadline=_STEP)
        await self._begin(opening, answer)
        tree = await Tree.of(core.keyspace, self._cutoff)
        leaves = await self._differing(tree)
        for some in await self._rounds(leaves):
            await self._exchange(some)
        await self._channel.send(Done())
        await self._channel.expect(Done, deadline=_STEP)

    async def _differing(self, tree: Tree) -> list[int]:
        """The leaves that differ."""
        nodes: list[int] = [0]
        for level in range(-1, LEVELS):
            found: list[int] = []
            for start in range(0, len(nodes), _ASKED):
                asked = nodes[start : start + _ASKED]
                await self._channel.send(Ask(level, asked))
                theirs = (await self._channel.expect(Digests, deadline=_STEP)).digests
                ours = tree.below(level, asked)
                if len(ours) != len(theirs):
                    raise BadRequest("The other node tells other digests than it was asked for.")
                for place, (our, their) in enumerate(zip(ours, theirs, strict=True)):
                    if our != their:
                        parent = asked[place // FANOUT] if level >= 0 else 0
                        found.append(parent * FANOUT + place % FANOUT if level >= 0 else 0)
            nodes = found
            if not nodes:
                break
        return nodes

    async def _rounds(self, leaves: list[int]) -> list[list[int]]:
        """The leaves in portions of which the summaries fit into the memory."""
        if not leaves:
            return []
        sizes = [0] * LEAVES
        async for entries in all_entries(self._core.keyspace):
            for entry in entries:
                sizes[leaf_of(hash_key(entry.key))] += 1
        rounds: list[list[int]] = [[]]
        room = _SUMMARIES
        for leaf in leaves:
            if sizes[leaf] > room and rounds[-1]:
                rounds.append([])
                room = _SUMMARIES
            rounds[-1].append(leaf)
            room -= sizes[leaf]
        return rounds

    async def _exchange(self, leaves: list[int]) -> None:
        have: Have = {}
        wanted_leaves = set(leaves)
        async for entries in all_entries(self._core.keyspace):
            for entry in entries:
                hashed = hash_key(entry.key)
                if leaf_of(hashed) in wanted_leaves and counts(entry, self._cutoff):
                    have[hashed] = (entry.modified, entry.origin, digest_of(entry))
        await self._channel.send(Leaves(leaves, have))
        while True:
            message = await self._channel.expect(Entries, Want, deadline=_STEP)
            if isinstance(message, Want):
                await self._give(set(message.want), set(message.drop))
                return
            if isinstance(message, Entries):
                await self._take(message)

    async def _give(self, want: set[int], drop: set[int]) -> None:
        """Send what is wanted, and drop what the other has seen end."""
        if not want and not drop:
            return
        batch = _Batch(self)
        gone: list[Foreign] = []
        async for entries in all_entries(self._core.keyspace):
            for entry in entries:
                hashed = hash_key(entry.key)
                if hashed in drop and self._stale:
                    gone.append(_end_of(entry))
                elif hashed in want:
                    await batch.add(entry)
        await batch.flush()
        await self._drop(gone)

    # --- the one who answers ----------------------------------------------------------------------

    async def answer(self) -> None:
        """Let the other become equal with this node."""
        core = self._core
        theirs = await self._channel.expect(Compare, deadline=_STEP)
        opening = self._opening(theirs)
        await self._begin(opening, theirs)
        peer = core.members.get(self._about.node_id)
        if peer is not None:
            peer.hears = frozenset(theirs.hears)
        await self._channel.send(opening)
        tree = await Tree.of(core.keyspace, self._cutoff)
        while True:
            message = await self._channel.expect(Ask, Leaves, Entries, Done, deadline=_STEP)
            if isinstance(message, Ask):
                await self._tell(tree, message)
            elif isinstance(message, Leaves):
                await self._answer(message)
            elif isinstance(message, Entries):
                await self._take(message)
            else:
                await self._channel.send(Done())
                return

    async def _tell(self, tree: Tree, ask: Ask) -> None:
        if not -1 <= ask.level < LEVELS or len(ask.nodes) > _ASKED:
            raise BadRequest("There is no such level in the tree.")
        try:
            digests = tree.below(ask.level, ask.nodes)
        except IndexError:
            raise BadRequest("There is no such node in the tree.") from None
        await self._channel.send(Digests(digests))

    async def _answer(self, leaves: Leaves) -> None:
        """Send what the other lacks, then say what it is to send and to drop."""
        wanted_leaves, have = set(leaves.leaves), leaves.have
        batch = _Batch(self)
        want: list[int] = []
        gone: list[Foreign] = []
        async for entries in all_entries(self._core.keyspace):
            for entry in entries:
                hashed = hash_key(entry.key)
                if leaf_of(hashed) not in wanted_leaves:
                    continue
                theirs = have.pop(hashed, None)
                if theirs is None:
                    if not counts(entry, self._cutoff):
                        continue
                    if self._seen(entry.modified, entry.origin, self._theirs):
                        gone.append(_end_of(entry))
                    else:
                        await batch.add(entry)
                elif theirs[2] != digest_of(entry):
                    ours = (entry.modified, entry.origin)
                    both = self._core.merges(entry.key)
                    if both or ours >= theirs[:2]:
                        await batch.add(entry)
                    if both or ours <= theirs[:2]:
                        want.append(hashed)
        await batch.flush()
        drop = [
            hashed
            for hashed, (modified, origin, _) in have.items()
            if self._seen(modified, origin, self._ours)
        ]
        dropped = set(drop)
        want += [hashed for hashed in have if hashed not in dropped]
        await self._drop(gone)
        await self._channel.send(Want(want, drop))

    # --- both -------------------------------------------------------------------------------------

    def _opening(self, theirs: Compare | None = None) -> Compare:
        core, now = self._core, self._core.wall()
        age = min(core.keyspace.settings.tombstone_age, self._about.tombstone_age)
        known = core.store.cursors.get(self._about.node_id)
        both = (self._about.seen, None if known is None else known.seen)
        seen = [one for one in both if one is not None]
        stale = bool(seen) and now - min(seen) > age * 1000 - 2 * core.skew
        vector = {node: cursor.own for node, cursor in core.store.cursors.items()}
        # What this node itself has written before now it has, and what is gone of it has ended;
        # unless the node was set back, as the other can tell.
        intact = True
        if theirs is not None and known is not None:
            intact = known.history == self._about.history and known.revision <= self._about.revision
        self._set_back = not intact
        vector[core.own.node_id] = timestamp_at(now)
        cutoff = now - round(age * 1000) + _MARGIN + 2 * core.skew
        return Compare(
            [msgspec.Raw(pack(clear)) for clear in core.keyspace.clears()],
            timestamp_at(max(cutoff, 0)),
            vector,
            core.hears(),
            stale,
        )

    async def _begin(self, ours: Compare, theirs: Compare) -> None:
        self._cutoff = max(ours.cutoff, theirs.cutoff)
        self._stale = ours.stale or theirs.stale
        self._ours, self._theirs = ours.vector, dict(theirs.vector)
        if self._stale:
            self._core.log.warning(
                "%s was away for longer than deletions are remembered: comparing everything.",
                self._about.address,
            )
        await self._apply(theirs.clears)

    def _seen(self, modified: int, origin: int, vector: dict[int, int]) -> bool:
        """Whether somebody who does not have a write must have seen it end. Deletions tell, as long
        as they are remembered; it is only asked behind that.
        """
        if not self._stale or (self._set_back and vector is self._theirs):
            return False
        return vector.get(origin, -1) >= modified

    async def send(self, entries: Sequence[bytes]) -> None:
        """Have the other take entries."""
        await self._channel.send(Entries([msgspec.Raw(one) for one in entries]))
        await self._channel.expect(Ack, deadline=_STEP)
        self.sent += len(entries)

    async def _take(self, message: Entries) -> None:
        self.received += len(message.entries)
        await self._apply(message.entries)
        await self._channel.send(Ack(len(message.entries)))

    async def _apply(self, packed: Iterable[msgspec.Raw]) -> None:
        core = self._core
        entries = unpack_all(list(packed), core.latest())
        if entries:
            core.figures.received += len(entries)
            core.figures.taken += await core.keyspace.apply_foreign(entries, core.merge)

    async def _drop(self, gone: list[Foreign]) -> None:
        dropped = await self._core.keyspace.apply_foreign(gone) if gone else 0
        if dropped:
            self.dropped += dropped
            self._core.figures.dropped += dropped
            self._core.log.warning(
                "%d records were dropped that had been deleted meanwhile.", dropped
            )


class _Batch:
    """Entries that are gathered and sent."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self._packed: list[bytes] = []
        self._room = _BATCH_BYTES

    async def add(self, entry: Entry) -> None:
        packed = pack(entry)
        self._packed.append(packed)
        self._room -= len(packed)
        if self._room <= 0:
            await self.flush()

    async def flush(self) -> None:
        if self._packed:
            await self._comparison.send(self._packed)
        self._packed, self._room = [], _BATCH_BYTES


def _end_of(entry: Entry) -> Tombstone:
    """What ends an entry, and nothing that is newer."""
    return Tombstone(entry.key, 0, entry.modified + 1, entry.origin)
