"""Watch hub: the one reader of a keyspace's changes, from which all watchers are served.

The hub is told of every commit on the event loop. It looks up who is concerned, notes a position
for each, and calls the wake-ups of those who had nothing to take before. It keeps no change for
anybody in particular, so that a watcher that does not read costs nothing but its place.
"""

import heapq
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from typing import Final

from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus

from nkv_core.contracts.context import Measurement
from nkv_core.contracts.keyspace import Keyspace
from nkv_core.contracts.watch import Gap, Mode, Wake, WatcherInfo, WatchSettings
from nkv_core.errors import InvalidToken, Overloaded, Stopping
from nkv_core.keys import Pattern
from nkv_core.keyspace.catch_up import CatchUp
from nkv_core.keyspace.routing import selector
from nkv_core.keyspace.stream import Stream
from nkv_core.keyspace.watcher import Feed, HubWatcher, Reading
from nkv_core.records import Change, Token

_log = logging.getLogger("nkv.watch")


class WatchHub:
    """Implements `contracts.watch.Hub`. Used on the event loop only."""

    def __init__(
        self,
        keyspace: Keyspace,
        settings: WatchSettings | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings: Final = settings or WatchSettings()
        self._keyspace = keyspace
        self._stream: Final = Stream(self._settings.ring_bytes)
        self._reader: Final = CatchUp(self._settings, keyspace)
        self._feed: Final = Feed(self._stream, clock, self._reader.want, self._forget)
        self._reader.feed = self._feed
        self._watchers: Final[set[HubWatcher]] = set()
        self._numbers: Final = count(1)
        self._closed = False
        self._told = 0
        self._woken = 0
        self._stream.begin(keyspace.token)
        self._off = keyspace.tail(self._publish)

    @property
    def token(self) -> Token:
        """The place behind the last change that was told."""
        return self._stream.token()

    # --- watchers ---

    def watch(
        self,
        pattern: Pattern | str,
        *,
        subtree: bool = False,
        mode: Mode = "every",
        since: Token | None = None,
        snapshot: bool = False,
        resync: bool | None = None,
        wake: Wake | None = None,
        label: str = "",
        pending: int | None = None,
    ) -> HubWatcher:
        """Watch the keys that match `pattern`: see `contracts.watch.Hub`."""
        if self._closed:
            raise Stopping("The node is stopping: watch another one, or try again.")
        if len(self._watchers) >= self._settings.max_watchers:
            raise Overloaded(f"There are {len(self._watchers)} watchers already.")
        stream = self._stream
        known = since is not None and since.history == stream.history
        if since is not None and known and since.revision > stream.head:
            raise InvalidToken(f"The token is ahead of this history, at {stream.head} now.")
        watcher = HubWatcher(
            self._feed,
            next(self._numbers),
            selector(Pattern(pattern) if isinstance(pattern, str) else pattern, subtree=subtree),
            mode,
            cursor=stream.head if since is None else since.revision,
            bound=max(pending or self._settings.pending, 1),
            resync=True if resync is None and (snapshot or mode == "latest") else resync,
            wake=wake,
            label=label,
        )
        self._watchers.add(watcher)
        if since is None:
            if snapshot:
                watcher.resnap(None)
            else:
                watcher.go_live()
                return watcher
        elif known:
            watcher.resuming = True
        else:
            self._strand(watcher, since)
        watcher.late = self._feed.clock()
        self._reader.want(watcher)
        return watcher

    def watchers(self, limit: int = 1000) -> list[WatcherInfo]:
        """At most `limit` watchers, those that have had something to take for longest first."""
        now = self._feed.clock()
        first = heapq.nsmallest(
            limit,
            self._watchers,
            key=lambda each: (now if each.late is None else each.late, each.id),
        )
        return [watcher.info() for watcher in first]

    # --- the keyspace ---

    def attach(self, keyspace: Keyspace) -> None:
        """Go on with another keyspace.

        Where it has the same history, watchers miss nothing; where it has another, they are told of
        a gap and get a snapshot.
        """
        if self._closed:
            raise Stopping("The node is stopping.")
        self._off()
        self._keyspace = keyspace
        self._reader.begin_anew(keyspace)
        self._rebase(keyspace.token)
        self._off = keyspace.tail(self._publish)

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Read for watchers that are behind, or want a snapshot, until cancelled; then close."""
        try:
            await self._reader.run(task_status.started)
        finally:
            self.close()

    def close(self) -> None:
        """End every watcher in good order, with its token. Closing twice does nothing."""
        if self._closed:
            return
        self._closed = True
        self._off()
        for watcher in list(self._watchers):
            watcher.end(Stopping.code, "The node is stopping: go on from the token.")

    # --- for people ---

    def measurements(self) -> list[Measurement]:
        """What `/metrics` shows of the hub."""
        states = Counter((watcher.mode, watcher.state) for watcher in self._watchers)
        late = [watcher.late for watcher in self._watchers if watcher.late is not None]
        age = max(self._feed.clock() - min(late), 0.0) if late else 0.0
        return [
            Measurement(
                "nkv_watchers",
                "gauge",
                "Watchers by mode and state.",
                [({"mode": mode, "state": state}, n) for (mode, state), n in states.items()],
            ),
            _single("nkv_watch_changes_total", "Changes that the hub was told of.", self._told),
            _single("nkv_watch_wakes_total", "Wake-ups of watchers.", self._woken),
            _single("nkv_watch_gaps_total", "Gaps told to watchers.", self._reader.gaps),
            _single("nkv_watch_pages_total", "Pages read for watchers.", self._reader.pages),
            Measurement(
                "nkv_watch_stream_bytes",
                "gauge",
                "Recent changes kept in memory for all watchers.",
                [({}, self._stream.bytes)],
            ),
            Measurement(
                "nkv_watch_oldest_seconds",
                "gauge",
                "How long the watcher that is farthest behind has had something to take.",
                [({}, age)],
            ),
        ]

    # --- within ---

    def _publish(self, changes: Sequence[Change]) -> None:
        """Note a commit for those whom it concerns, then wake them. It must not raise."""
        stream, routes = self._stream, self._feed.routes
        if self._keyspace.history != stream.history:
            self._reader.begin_anew(self._keyspace)
            self._rebase(Token(self._keyspace.history, changes[0].revision - 1))
        now = self._feed.clock()
        woken: list[HubWatcher] = []
        for change in changes:
            if change.revision <= stream.head:
                continue  # committed before the hub was attached
            position = stream.append(change, now)
            if not self._watchers:
                continue
            if change.kind == "clear":
                concerned = routes.overlapping(change.key)
            else:
                concerned = routes.matching(change.key)
            for watcher in concerned:
                if watcher.note(position, change, now):
                    woken.append(watcher)  # noqa: PERF401  # mostly one, or none
        self._told += len(changes)
        self._woken += len(woken)
        self._reader.arrived()
        # Only now: what a wake-up does, closing watchers and taking too, meets a finished state.
        for watcher in woken:
            watcher.rouse()

    def _rebase(self, token: Token) -> None:
        """Go on behind this token, whatever the stream had before."""
        stream = self._stream
        if token == stream.token():
            return
        if token.history == stream.history and token.revision > stream.head:
            for watcher in self._watchers:  # what came between is in the log
                watcher.fall_behind()
                self._reader.want(watcher)
            stream.begin(token)
            return
        _log.warning("The history of the store is now %s.", token.history)
        places = [
            (watcher, watcher.token or stream.token(watcher.cursor)) for watcher in self._watchers
        ]
        for watcher, _ in places:
            watcher.fall_behind()
        stream.begin(token)
        for watcher, place in places:
            self._strand(watcher, place)
            self._reader.want(watcher)

    def _strand(self, watcher: HubWatcher, after: Token) -> None:
        """Tell a watcher that its place is of another history."""
        self._reader.gaps += 1
        upto = self._stream.token()
        if watcher.resync is False:
            watcher.cursor = upto.revision
            watcher.state = "behind"
            watcher.reading = Reading([Gap(after, upto, resync=False)])
        else:
            watcher.resnap(Gap(after, upto, resync=True))

    def _forget(self, watcher: HubWatcher) -> None:
        self._watchers.discard(watcher)
        self._reader.drop(watcher)


def _single(name: str, text: str, value: float) -> Measurement:
    return Measurement(name, "counter", text, [({}, value)])
