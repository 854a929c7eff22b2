"""Watcher: one who follows the stream, as far as the event loop alone can serve it.

It is in one of these states:

- *live*: the hub notes for it the positions of changes that concern it, up to a bound;
- *behind*: it is no more than a cursor, costs the hub nothing, and reads from the stream, or where
  that no longer reaches back, from the keyspace's log (`catch_up` does that for it);
- *snapshot*: the store is being read for it;
- *ended*.
"""

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, Literal

from nkv_core.contracts.watch import (
    DEFAULT_TAKE,
    Changed,
    Ended,
    Gap,
    Item,
    Mode,
    Wake,
    WatcherInfo,
)
from nkv_core.keyspace.routing import Routes, Selector, Subtree
from nkv_core.keyspace.snapshot import Scan
from nkv_core.keyspace.stream import Stream, gather, slot_of
from nkv_core.loop import Waiter, waiter_maker
from nkv_core.records import Change, Token

State = Literal["live", "behind", "snapshot", "ended"]

#: How many changes to look at in one go for a watcher that is behind: a millisecond or so.
_LOOK: Final = 4096
_log = logging.getLogger("nkv.watch")


class Feed:
    """What the watchers of a hub share."""

    __slots__ = ("clock", "drop", "routes", "stream", "waiter", "want")

    def __init__(
        self,
        stream: Stream,
        clock: Callable[[], float],
        want: Callable[["HubWatcher"], None],
        drop: Callable[["HubWatcher"], None],
    ) -> None:
        self.stream: Final = stream
        self.routes: Final[Routes[HubWatcher]] = Routes()
        self.clock: Final = clock  #: monotonic seconds
        self.want: Final = want  #: asks for what has to be waited for to be read
        self.drop: Final = drop  #: takes note that a watcher is closed
        #: Makes a waiter of the event loop that the hub runs on, which is known at the first one.
        self.waiter: Callable[[], Waiter] = self._first_waiter

    def _first_waiter(self) -> Waiter:
        self.waiter = waiter_maker()
        return self.waiter()


class Reading:
    """What a watcher has besides while something is read for it."""

    __slots__ = ("buffer", "failing", "scan", "tries")

    def __init__(self, buffer: list[Item], scan: Scan | None = None) -> None:
        self.buffer = buffer
        self.scan = scan
        self.failing = 0.0  #: since when it has failed, where `tries` is not 0
        self.tries = 0


class HubWatcher:
    """A watcher of the hub. What is not in `contracts.watch.Watcher` is the hub's own."""

    __slots__ = (
        "_feed",
        "_waiter",
        "_wake",
        "bound",
        "cursor",
        "id",
        "label",
        "late",
        "mode",
        "pending",
        "reading",
        "resuming",
        "resync",
        "state",
        "watched",
    )

    def __init__(
        self,
        feed: Feed,
        number: int,
        watched: Selector,
        mode: Mode,
        *,
        cursor: int,
        bound: int,
        resync: bool | None,
        wake: Wake | None,
        label: str,
    ) -> None:
        self._feed: Final = feed
        self._wake = wake
        self._waiter: Waiter | None = None
        self.id: Final = number
        self.label: Final = label
        self.watched: Final = watched
        self.mode: Final = mode
        self.bound: Final = bound
        #: Whether a gap is followed by a snapshot; None: only while resuming.
        self.resync: Final = resync
        self.resuming = False  #: whether the token that it came with has yet to prove good
        self.state: State = "behind"
        #: The revision up to which it has been told. Live, it counts only while something pends.
        self.cursor = cursor
        #: Live, what waits to be taken: positions, or in mode `latest` the last one of each key.
        self.pending: list[int] | dict[str, int] | None = None
        self.late: float | None = None  #: when it was last level with the stream, if it is not
        self.reading: Reading | None = None

    def __repr__(self) -> str:
        return f"<Watcher {self.id} of {self.pattern!r}, {self.state}>"

    # --- what the contract has ---

    @property
    def pattern(self) -> str:
        """The pattern, as text."""
        watched = self.watched
        return watched.pattern.text if isinstance(watched, Subtree) else watched.text

    @property
    def closed(self) -> bool:
        """Whether nothing will come any more: it was closed, or `Ended` has been taken."""
        return self.state == "ended" and self.reading is None

    @property
    def token(self) -> Token | None:
        """Where another watcher could go on behind what was taken here.

        None inside a snapshot, and once the watcher is closed.
        """
        stream = self._feed.stream
        if self.reading is not None and self.reading.buffer:
            match self.reading.buffer[0]:
                case Gap(after=after):
                    return after
                case Ended(token=token):
                    return token
                case Changed(change=change, history=str()):
                    return stream.token(change.revision - 1)
            return None
        if self.state == "live":
            return stream.token(None if self.pending is None else self.cursor)
        return stream.token(self.cursor) if self.state == "behind" else None

    def take(self, limit: int = DEFAULT_TAKE) -> list[Item]:
        """At most `limit` items that are ready, without waiting.

        Only after an empty list will `wake` be called for what comes next.
        """
        limit = max(limit, 1)
        reading = self.reading
        if reading is None and self.state == "live":
            return self._take_pending(limit)
        if reading is not None and reading.buffer:
            items = reading.buffer[:limit]
            del reading.buffer[:limit]
            if not reading.buffer and self.state in ("live", "ended"):
                self.reading = None
            return items
        if self.state == "behind":
            return self._take_behind(limit)
        if self.state == "snapshot":
            self._feed.want(self)
        return []

    async def read(self, limit: int = DEFAULT_TAKE) -> list[Item]:
        """As `take`, but waits for the first item; an empty list says that it is closed."""
        while not (items := self.take(limit)) and not self.closed:
            await self._pause()
        return items

    async def next(self) -> Item | None:
        """Wait for one item; None says that the watcher is closed."""
        while not (items := self.take(1)) and not self.closed:
            # As `_pause`: this is where most who wait do so, and each frame costs all of them.
            waiter = self._begin_pause()
            try:
                await waiter.wait()
            finally:
                self._waiter = None
        return items[0] if items else None

    def __aiter__(self) -> AsyncIterator[Item]:
        """The items one by one, until the watcher is closed."""
        return self

    async def __anext__(self) -> Item:
        item = await self.next()
        if item is None:
            raise StopAsyncIteration
        return item

    def close(self) -> None:
        """Stop watching, without `Ended`. Closing twice does nothing."""
        if self.state == "live":
            self._feed.routes.discard(self, self.watched)
        self.state = "ended"
        self.pending = self.reading = self.late = None
        self._wake = None
        if self._waiter is not None:
            self._waiter.wake()
        self._feed.drop(self)

    def info(self) -> WatcherInfo:
        """How it is doing."""
        stream = self._feed.stream
        ready = 0 if self.reading is None else len(self.reading.buffer)
        if self.pending is not None:
            positions = self._positions()
            behind = len(positions)
            kept = sum(
                stream.bytes_from(position) - stream.bytes_from(position + 1)
                for position in positions
                if position >= stream.first
            )
        elif self.state in ("live", "ended"):
            behind = kept = 0
        elif self.cursor >= stream.floor:
            position = stream.behind(self.cursor)
            behind, kept = stream.next - position, stream.bytes_from(position)
        else:
            behind, kept = max(stream.head - self.cursor, 0), stream.bytes
        return WatcherInfo(
            id=self.id,
            label=self.label,
            pattern=self.pattern,
            subtree=isinstance(self.watched, Subtree),
            mode=self.mode,
            state=self.state,
            token=self.token,
            behind=behind + ready,
            bytes=kept,
            age=0.0 if self.late is None else max(self._feed.clock() - self.late, 0.0),
        )

    # --- what the hub does with it ---

    def note(self, position: int, change: Change, now: float) -> bool:
        """Have a change that concerns it pend; returns whether nothing did before. It is live."""
        pending = self.pending
        if pending is None:
            self.pending = [position] if self.mode == "every" else {slot_of(change): position}
            self.cursor = change.revision - 1
            self.late = now
            return True
        if isinstance(pending, list):
            if len(pending) < self.bound:
                pending.append(position)
                return False
        else:
            slot = slot_of(change)
            pending.pop(slot, None)  # in the order of the last change of each key
            if len(pending) < self.bound:
                pending[slot] = position
                return False
        self.fall_behind()
        return False

    def rouse(self) -> None:
        """Tell its owner that there is something to take."""
        if self._waiter is not None:
            self._waiter.wake()
        if self._wake is not None:
            try:
                self._wake()
            except Exception:  # noqa: BLE001  # somebody else's function, on the path of a commit
                _log.exception("The wake-up of watcher %d (%s) raised.", self.id, self.label)

    def go_live(self) -> None:
        """Be level with the stream, and have the hub note what comes."""
        self._feed.routes.add(self, self.watched)
        self.state = "live"
        self.resuming = False
        self.pending = self.late = None
        if self.reading is not None and not self.reading.buffer:
            self.reading = None

    def fall_behind(self) -> None:
        """Be a cursor only, until it has caught up."""
        if self.state == "live":
            self._feed.routes.discard(self, self.watched)
            if self.pending is None:
                self.cursor = self._feed.stream.head
            self.state = "behind"
            self.pending = None
            if self.late is None:
                self.late = self._feed.clock()

    def resnap(self, gap: Gap | None) -> None:
        """Begin a snapshot, behind a gap that its owner has to be told of first."""
        self.fall_behind()
        self.state = "snapshot"
        self.reading = Reading([] if gap is None else [gap], Scan(self.watched))
        self.late = self._feed.clock() if self.late is None else self.late

    def end(self, code: str, detail: str) -> None:
        """Have its owner take what is ready, then `Ended`, and no more."""
        if self.state == "ended":
            return
        items: list[Item] = []
        if self.reading is not None and self.state != "snapshot":
            items += self.reading.buffer
        if self.state == "live":
            stream = self._feed.stream
            positions = self._positions()
            if positions and positions[0] >= stream.first:
                items += [stream.entries[position] for position in positions]
                self.cursor = stream.head
            self.fall_behind()
        token = self._feed.stream.token(self.cursor) if self.state == "behind" else None
        self.state = "ended"
        self.reading = Reading([*items, Ended(token, code, detail)])
        self._feed.drop(self)
        self.rouse()

    # --- serving ---

    def _begin_pause(self) -> Waiter:
        if self._waiter is not None:
            raise RuntimeError("Two tasks are reading from one watcher.")
        self._waiter = waiter = self._feed.waiter()
        return waiter

    async def _pause(self) -> None:
        waiter = self._begin_pause()
        try:
            await waiter.wait()
        finally:
            self._waiter = None

    def _positions(self) -> Sequence[int]:
        pending = self.pending
        if pending is None:
            return ()
        return pending if isinstance(pending, list) else list(pending.values())

    def _take_pending(self, limit: int) -> list[Item]:
        pending = self.pending
        if pending is None:
            return []
        entries = self._feed.stream.entries
        positions = pending if isinstance(pending, list) else list(pending.values())
        if positions[0] not in entries:  # the stream no longer reaches back so far
            self.fall_behind()
            return self._take_behind(limit)
        taken: list[Item] = [entries[position] for position in positions[:limit]]
        if len(taken) == len(positions):
            self.pending = self.late = None
            return taken
        self.cursor = entries[positions[limit - 1]].change.revision
        self.late = entries[positions[limit]].at
        if isinstance(pending, list):
            del pending[:limit]
        else:
            for slot in list(pending)[:limit]:
                del pending[slot]
        return taken

    def _take_behind(self, limit: int) -> list[Item]:
        stream = self._feed.stream
        if self.cursor < stream.floor:
            self._feed.want(self)
            return []
        start = stream.behind(self.cursor)
        stop = min(stream.next, start + _LOOK)
        looked, found = gather(stream.between(start, stop), self.watched, self.mode, limit)
        if looked:
            self.cursor = stream.entries[start + looked - 1].change.revision
        if start + looked == stream.next:
            self.go_live()
        else:
            self.late = stream.entries[start + looked].at
            if not found:
                self._feed.want(self)  # others first, then it goes on
        return [*found]
