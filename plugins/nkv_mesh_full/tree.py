"""Tree: digests over all entries of a keyspace, by ranges of hashed keys (after Merkle, 1987).

A leaf is one of 65,536 ranges; its digest is that of its entries, each hashed by itself and all
joined by exclusive or, so that their order does not matter. A node of a level above joins 16 below
in the same way. Two nodes whose roots are equal have the same entries; otherwise the levels lead to
the leaves that differ, at a cost that follows the differences and not the size.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from functools import reduce
from hashlib import blake2b
from operator import xor
from typing import Final

from anyio.lowlevel import checkpoint

from nkv_core.contracts.keyspace import Entry, Replicable
from nkv_core.records import Record

FANOUT: Final = 16
LEVELS: Final = 4
LEAVES: Final = FANOUT**LEVELS
_LEAF_SHIFT: Final = 48
_AT_ONCE: Final = 500


def hash_key(key: str) -> int:
    """64 bits by which a key is known while two nodes compare."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big")


def leaf_of(hashed: int) -> int:
    """The leaf of a hashed key."""
    return hashed >> _LEAF_SHIFT


def digest_of(entry: Entry) -> int:
    """64 bits over all of an entry that two nodes must agree on."""
    digest = blake2b(entry.key.encode(), digest_size=8)
    if isinstance(entry, Record):
        expires = -1 if entry.expires is None else entry.expires
        digest.update(b"\0r %d %d %d " % (entry.modified, entry.origin, expires))
        digest.update(entry.value)
    else:
        digest.update(b"\0t %d %d" % (entry.modified, entry.origin))
    return int.from_bytes(digest.digest(), "big")


def counts(entry: Entry, cutoff: int) -> bool:
    """Whether it is compared. An old deletion is not: one of the two may have forgotten it."""
    return isinstance(entry, Record) or entry.modified >= cutoff


async def all_entries(keyspace: Replicable) -> AsyncIterator[Sequence[Entry]]:
    """All entries, some at a time; others have a turn in between."""
    after: str | None = None
    while True:
        page = await keyspace.entries(after, limit=_AT_ONCE)
        yield page.entries
        if page.after is None:
            return
        after = page.after
        await checkpoint()


class Tree:
    """The digests of one keyspace at one time, or near it: writes go on meanwhile."""

    def __init__(self, leaves: list[int]) -> None:
        self._levels: list[list[int]] = [leaves]
        while len(self._levels[0]) > 1:
            below = self._levels[0]
            self._levels.insert(
                0,
                [
                    reduce(xor, below[start : start + FANOUT], 0)
                    for start in range(0, len(below), FANOUT)
                ],
            )

    @classmethod
    async def of(cls, keyspace: Replicable, cutoff: int) -> "Tree":
        """Read all entries. Deletions before the timestamp `cutoff` are left out."""
        leaves = [0] * LEAVES
        async for entries in all_entries(keyspace):
            for entry in entries:
                if counts(entry, cutoff):
                    leaves[leaf_of(hash_key(entry.key))] ^= digest_of(entry)
        return cls(leaves)

    def below(self, level: int, nodes: Iterable[int]) -> list[int]:
        """The digests of the children of nodes at a level, in order; level -1 has the root below.

        Raises `IndexError` where there is no such node.
        """
        if level == -1:
            return list(self._levels[0])
        children = self._levels[level + 1]
        found: list[int] = []
        for node in nodes:
            if not 0 <= node < len(self._levels[level]):
                raise IndexError
            found += children[node * FANOUT : (node + 1) * FANOUT]
        return found
