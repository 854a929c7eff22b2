"""Clears: one range tombstone hides every older record below a prefix, at once.

The records that it hides stay in the storage until they are reclaimed, so readers have to know the
clears. They keep them in memory; and as a clear is committed by a worker thread while the event
loop reads, they must take up the new set in the very moment in which the storage has it.
"""

from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from nkv_core.contracts.storage import Storage
from nkv_core.keyspace.layout import range_tombstone_key
from nkv_core.records import RangeTombstone, Record, Tombstone, unpack_range_tombstone

T = TypeVar("T")


class ClearSet:
    """Range tombstones by prefix. Immutable; false where empty."""

    __slots__ = ("_by_prefix", "_lengths")

    def __init__(self, tombstones: dict[str, RangeTombstone] | None = None) -> None:
        self._by_prefix: Final = tombstones or {}
        self._lengths: Final = tuple(sorted({len(prefix) for prefix in self._by_prefix}))

    def __bool__(self) -> bool:
        return bool(self._by_prefix)

    def __len__(self) -> int:
        return len(self._by_prefix)

    def __iter__(self) -> Iterator[RangeTombstone]:
        return iter(self._by_prefix.values())

    def hides(self, record: Record | Tombstone | RangeTombstone) -> bool:
        """Whether one of the clears is not older than `record`, and its prefix covers it."""
        text = record.prefix if isinstance(record, RangeTombstone) else record.key
        for length in self._lengths:
            if length > len(text):
                return False
            clear = self._by_prefix.get(text[:length])
            if clear is not None and (clear.modified, clear.origin) >= (
                record.modified,
                record.origin,
            ):
                return True
        return False

    def covered(self, clear: RangeTombstone) -> list[RangeTombstone]:
        """Those that `clear` makes superfluous."""
        return [
            other
            for other in self._by_prefix.values()
            if other.prefix.startswith(clear.prefix)
            and (other.modified, other.origin) <= (clear.modified, clear.origin)
        ]

    def with_(self, clear: RangeTombstone) -> "ClearSet":
        """These and one more, without those that it makes superfluous."""
        gone = {other.prefix for other in self.covered(clear)}
        kept = {prefix: old for prefix, old in self._by_prefix.items() if prefix not in gone}
        kept[clear.prefix] = clear
        return ClearSet(kept)

    def without(self, clear: RangeTombstone) -> "ClearSet":
        """These without that one, if it is still there."""
        if self._by_prefix.get(clear.prefix) != clear:
            return self
        return ClearSet({p: old for p, old in self._by_prefix.items() if p != clear.prefix})


NO_CLEARS: Final = ClearSet()


class Clears:
    """The clears that readers heed. The thread that commits changes it; any thread reads it."""

    __slots__ = ("_number", "_pending", "active", "quiet")

    def __init__(self, active: ClearSet = NO_CLEARS) -> None:
        self.active = active
        #: Whether there are no clears, and none is being committed.
        self.quiet = not active
        self._number = 0
        self._pending: tuple[RangeTombstone, ClearSet] | None = None

    def prepare(self, last: RangeTombstone, clears: ClearSet) -> None:
        """Before a group is applied whose last clear is `last`; `clears` hold behind it."""
        self._number += 1
        self.quiet = False
        self._pending = (last, clears)

    def settle(self, active: ClearSet) -> None:
        """After it was applied, or was not: `active` hold."""
        self._number += 1
        self.active = active
        self._pending = None
        self.quiet = not active

    def read(self, storage: Storage, read: Callable[[], T]) -> tuple[T, ClearSet]:
        """Return what `read` gives, and the clears that held in the state which it saw."""
        while True:
            number = self._number
            clears = self._now(storage)
            seen = read()
            if self._number == number and self._now(storage) is clears:
                return seen, clears

    def _now(self, storage: Storage) -> ClearSet:
        pending = self._pending
        if pending is None:
            return self.active
        last, clears = pending
        packed = storage.get("tombstones", range_tombstone_key(last.prefix.encode()))
        if packed is None:
            return self.active
        stored = unpack_range_tombstone(last.prefix, packed)
        return clears if stored.revision >= last.revision else self.active
