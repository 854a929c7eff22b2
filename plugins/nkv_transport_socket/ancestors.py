"""The notice to descendants: who watches `a.b.c` is told that `a.b` was deleted, or `a`.

The hub tells a change to those who watch its key or a level above. This notice goes the other way
and is of this dialect alone, so the transport watches the levels above its subscriptions itself:
each of them once, however many subscriptions lie below.
"""

from collections.abc import Callable
from typing import Final, Protocol

from nkv_core.contracts.watch import Changed, Ended, Gap, Hub, Item, SnapshotEnd, SnapshotRecord
from nkv_core.keys import SEPARATOR
from nkv_core.records import Change, Record

#: Timestamp and node id of a record: what a clear is compared with.
Age = tuple[int, int]


class Follower(Protocol):
    """Who lies below."""

    def notice(self, key: str, revision: int) -> None:
        """Take note that a level above was deleted. Called within a commit."""


class Ancestors:
    """The levels above all subscriptions of a transport."""

    def __init__(self, hub: Callable[[], Hub]) -> None:
        self._hub = hub
        self._levels: dict[str, _Level] = {}

    def follow(self, key: str, follower: Follower, may_read: Callable[[str], bool]) -> None:
        """Have the follower told of each level above `key` that `may_read` allows.

        Raises what the hub raises; the caller is then to `leave`.
        """
        for above in levels_above(key):
            if not may_read(above):
                continue
            level = self._levels.get(above)
            if level is None or level.closed:
                followers = {} if level is None else level.followers
                level = self._levels[above] = _Level(above, self._hub(), followers)
            level.followers[follower] = None

    def leave(self, key: str, follower: Follower) -> None:
        """Undo `follow`."""
        for above in levels_above(key):
            level = self._levels.get(above)
            if level is None:
                continue
            level.followers.pop(follower, None)
            if not level.followers:
                level.close()
                del self._levels[above]


def levels_above(key: str) -> list[str]:
    """The levels above a key, from the top: of `a.b.c` they are `a` and `a.b`."""
    parts = key.split(SEPARATOR)
    above = (SEPARATOR.join(parts[:end]) for end in range(1, len(parts)))
    # `.` and the empty text cannot be keys; whoever watches `.a` has nobody above.
    return [level for level in above if level not in ("", ".", "..")]


class _Level:
    """One level, and whether there is a record now: a clear does not say what it deletes."""

    def __init__(self, key: str, hub: Hub, followers: dict[Follower, None]) -> None:
        self.followers: Final = followers
        self._key: Final = key
        self._age: Age | None = None
        self._stale = False  # whether what is known was known before a gap
        self._watcher = hub.watch(
            key, mode="latest", snapshot=True, wake=self._wake, label=f"socket: above {key}"
        )

    @property
    def closed(self) -> bool:
        return self._watcher.closed

    def close(self) -> None:
        self._watcher.close()

    def _wake(self) -> None:
        while items := self._watcher.take():
            for item in items:
                self._take(item)

    def _take(self, item: Item) -> None:
        match item:
            case SnapshotRecord(record):
                self._age, self._stale = _age_of(record), False
            case SnapshotEnd(token):
                if self._stale:
                    self._gone(token.revision)
            case Changed(change=change):
                if change.kind == "delete":
                    self._gone(change.revision)
                elif change.kind != "clear":
                    self._age, self._stale = _age_of(change), False
                elif self._age is not None and self._age <= _age_of(change):
                    self._gone(change.revision)
            case Gap(resync=True):
                self._stale = self._age is not None
            case Ended() | Gap():
                pass  # the next to follow begins anew; a gap without a snapshot does not come

    def _gone(self, revision: int) -> None:
        self._age, self._stale = None, False
        for follower in self.followers:
            follower.notice(self._key, revision)


def _age_of(write: Record | Change) -> Age:
    return write.modified, write.origin
