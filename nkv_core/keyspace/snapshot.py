"""Snapshot: how the store is sent, page by page, while writing goes on.

There is no hole and no repeat in it. A page tells of the range of keys that it covers as these were
at some moment of its reading. The changes that came meanwhile are in the stream: made in the page
once more, in order, they turn it into the range as it is now. What happens later to a range already
sent is sent as changes, before the next page. So at the end all that was sent, taken in order, is
the store at one token.
"""

from collections.abc import Iterable
from typing import Final

from nkv_core.contracts.watch import Changed, Item, SnapshotRecord
from nkv_core.keyspace.routing import Selector, parts_of
from nkv_core.records import Change, RangeTombstone, Record


class Scan:
    """How far the snapshot of a watcher has come."""

    __slots__ = ("after", "limit", "part", "parts", "root")

    def __init__(self, watched: Selector) -> None:
        parts = parts_of(watched)
        #: The one key of a subscription that has the rest below it. It goes with the first page, so
        #: that what fits into a page is sent as of one moment.
        self.root: Final = parts[0] if len(parts) > 1 and parts[0].exact else None
        self.parts: Final = parts if self.root is None else parts[1:]
        self.part = 0  #: which of them is being read
        self.after: str | None = None  #: the last key that was covered in this part
        self.limit = 1000  #: of records in the next page

    @property
    def begun(self) -> bool:
        """Whether anything has been covered."""
        return self.part > 0 or self.after is not None

    @property
    def done(self) -> bool:
        """Whether everything has been covered."""
        return self.part == len(self.parts)

    def covers(self, key: str) -> bool:
        """Whether a watched key lies in what has been covered."""
        if self.root is not None and self.root.matches(key):
            return self.begun
        if any(part.matches(key) for part in self.parts[: self.part]):
            return True
        return self.after is not None and key <= self.after and self.parts[self.part].matches(key)

    def merge(self, records: list[Record], last: str | None, came: Iterable[Changed]) -> list[Item]:
        """What to send for a page of records up to `last`, and go on behind it.

        `came` are all watched changes since what was covered before was last made good, which was
        before the page was read. First what they did to that, then the page as they leave it.
        """
        amends: list[Item] = []
        now = {record.key: record for record in records}
        for entry in came:
            change = entry.change
            if change.kind == "clear":
                _clear(now, change)
                if self.begun:
                    amends.append(Changed(change, None))
            elif self.covers(change.key):
                amends.append(Changed(change, None))
            elif self._reaches(change.key, last):
                _apply(now, change)
        self.after = last
        self.part += last is None
        return [*amends, *(SnapshotRecord(now[key]) for key in sorted(now))]

    def amends(self, told: Iterable[Changed]) -> list[Item]:
        """Of watched changes, those of keys covered before: without tokens, like all of it."""
        return [
            Changed(entry.change, None)
            for entry in told
            if entry.change.kind == "clear" or self.covers(entry.change.key)
        ]

    def _reaches(self, key: str, last: str | None) -> bool:
        if self.root is not None and self.root.matches(key):
            return not self.begun
        return (last is None or key <= last) and self.parts[self.part].matches(key)


def _apply(now: dict[str, Record], change: Change) -> None:
    if change.kind == "delete":
        now.pop(change.key, None)
    else:
        now[change.key] = Record(
            change.key,
            change.value or b"",
            change.revision,
            change.modified,
            change.origin,
            change.expires,
        )


def _clear(now: dict[str, Record], change: Change) -> None:
    clear = RangeTombstone(change.key, change.revision, change.modified, change.origin)
    for record in list(now.values()):
        if clear.hides(record):
            del now[record.key]
