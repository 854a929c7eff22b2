"""Stream: the recent changes, held once in memory for all watchers.

Changes have positions here: whole numbers without holes, which revisions need not be. A watcher
remembers positions and never a change, so that one who does not read keeps nothing alive.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Final

from nkv_core.contracts.watch import Changed, Mode
from nkv_core.keyspace.routing import Selector, concerns
from nkv_core.records import Change, Token

#: What a change takes in memory besides its key and value, roughly, with its place in the stream.
OVERHEAD: Final = 512


def size_of(change: Change) -> int:
    """How much memory a change takes, roughly."""
    return OVERHEAD + len(change.key) + len(change.value or b"")


class Entry(Changed, kw_only=True, eq=False):
    """A change in the stream: when it came (monotonic seconds), and bytes up to its end."""

    at: float
    end: int


class Stream:
    """The changes behind revision `floor` up to `head`, all of them, bounded by bytes."""

    __slots__ = (
        "_bound",
        "_forgotten",
        "entries",
        "first",
        "floor",
        "head",
        "history",
        "next",
        "total",
    )

    def __init__(self, bound: int) -> None:
        """`bound`: bytes to keep at most, though never less than the last change."""
        self._bound: Final = bound
        self.entries: Final[dict[int, Entry]] = {}  #: by position
        self._forgotten = 0  # bytes of all that came and went
        self.total = 0  #: bytes of all changes that ever came
        self.first = 0  #: position of the oldest change kept
        self.next = 0  #: position of the next change to come
        self.history = ""
        self.floor = 0  #: revision behind which all is kept
        self.head = 0  #: revision of the last change

    def begin(self, token: Token) -> None:
        """Forget everything, and go on behind this token. Positions are never used again."""
        self._forgotten = self.total
        self.entries.clear()
        self.first = self.next
        self.history = token.history
        self.floor = self.head = token.revision

    def append(self, change: Change, at: float) -> int:
        """Take up a change that is newer than all others; returns its position."""
        position = self.next
        self.total = end = self.total + size_of(change)
        self.entries[position] = Entry(change, self.history, at=at, end=end)
        self.next = position + 1
        self.head = change.revision
        while end - self._forgotten > self._bound and self.first < position:
            gone = self.entries.pop(self.first)
            self.floor = gone.change.revision
            self._forgotten = gone.end
            self.first += 1
        return position

    def __len__(self) -> int:
        return self.next - self.first

    def between(self, start: int, stop: int) -> Iterator[Entry]:
        """The changes from one position up to another, both kept."""
        return map(self.entries.__getitem__, range(start, stop))

    def behind(self, revision: int) -> int:
        """The position of the first change behind a revision that is not below `floor`."""
        return bisect_right(range(self.first, self.next), revision, key=self._revision) + self.first

    def _revision(self, position: int) -> int:
        return self.entries[position].change.revision

    @property
    def bytes(self) -> int:
        """Bytes of the changes kept."""
        return self.total - self._forgotten

    def bytes_from(self, position: int) -> int:
        """Bytes of the changes kept from a position on."""
        start = self.entries[position - 1].end if position > self.first else self._forgotten
        return self.total - start

    def token(self, revision: int | None = None) -> Token:
        """The token behind a revision, or behind the last change."""
        return Token(self.history, self.head if revision is None else revision)


def gather(
    entries: Iterable[Changed], watched: Selector, mode: Mode, limit: int
) -> tuple[int, list[Changed]]:
    """At most `limit` of the changes that concern this; and how many were looked at for them."""
    looked = 0
    if mode == "every":
        found: list[Changed] = []
        for entry in entries:
            looked += 1
            if concerns(entry.change, watched):
                found.append(entry)
                if len(found) == limit:
                    break
        return looked, found
    last: dict[str, Changed] = {}
    for entry in entries:
        looked += 1
        if concerns(entry.change, watched):
            slot = slot_of(entry.change)
            last.pop(slot, None)  # in the order of the last change of each key
            last[slot] = entry
            if len(last) == limit:
                break
    return looked, list(last.values())


def slot_of(change: Change) -> str:
    """What later changes replace this one where only the latest count. No key begins like that."""
    return "\0" + change.key if change.kind == "clear" else change.key
