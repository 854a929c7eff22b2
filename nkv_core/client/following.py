"""A watch without input or output: where it is, what it asks for, when it tries again.

A shell sends what `target` says, tells what came of it (`opened`, `event`, `lost`), and hands out
what `take` gives. A place in the stream is kept over every connection that is lost.
"""

import logging
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Final, get_args
from urllib.parse import urlencode

from nkv_core.client.changes import (
    KINDS,
    Gap,
    Mode,
    SnapshotEnd,
    SnapshotStart,
    WatchItem,
    read_change,
    read_end,
    read_gap,
)
from nkv_core.client.failures import UNEXPECTED
from nkv_core.errors import BadRequest, InvalidToken, NkvError
from nkv_core.keys import Pattern

#: Told of the error when a connection is lost, and of None once there is one again.
OnLink = Callable[[NkvError | None], None]

#: Seconds without a byte behind which a connection counts as lost. A node sends something, if only
#: a comment, every 15 seconds.
DEFAULT_SILENCE: Final = 40.0

_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 5.0
#: Refusals that may pass with time, besides those of a node that cannot.
_PASSING: Final = frozenset({408, 425, 429})
_NOT_FOUND: Final = 404
_FAILURES: Final = 500
_NOT_IMPLEMENTED: Final = 501

log: Final = logging.getLogger("nkv.client")


class Following:
    """One watch."""

    def __init__(
        self,
        pattern: str,
        *,
        since: str | None,
        mode: Mode,
        snapshot: bool,
        subtree: bool,
        timeout: float,
        patience: float | None,
        on_link: OnLink | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`patience`: seconds without a connection behind which it is over; None for as long as it
        takes, except that the first is then to come about within `timeout`.

        Raises `InvalidPattern`, and `BadRequest` for a mode that there is not.
        """
        if mode not in get_args(Mode):
            raise BadRequest(f"{mode!r} is not a mode: {', '.join(get_args(Mode))}.")
        query = {"pattern": Pattern(pattern).text, "mode": mode}
        if subtree:
            query["subtree"] = "1"
        if snapshot:
            query["snapshot"] = "1"
        self._query: Final = query
        self._snapshot: Final = snapshot
        self._timeout: Final = timeout
        self._patience: Final = patience
        self._on_link: Final = on_link
        self._clock: Final = clock
        #: Where the next connection resumes: behind what was told last.
        self.token = since
        #: Where somebody else could: behind what was taken last.
        self.place = since
        #: Why there is no connection, or why the watch is over.
        self.failure: NkvError | None = None
        #: Whether the watch is over because of `failure`.
        self.failed = False
        self._ready: Final[deque[WatchItem]] = deque()
        self._inside = False  # a snapshot is being told
        self._opened_once = False
        self._gap_told = False  # of the place that was given up
        self._open = False
        self._down_since: float | None = None
        self._told_down = False
        self._attempt = 0
        self._unknown: set[str] = set()

    @property
    def live(self) -> bool:
        """Whether there is a connection."""
        return self._open

    @property
    def down_for(self) -> float:
        """Seconds since the connection was lost, or first asked for; 0 while there is one."""
        return 0.0 if self._down_since is None else self._clock() - self._down_since

    def target(self) -> str:
        """Path and query of the next connection."""
        if self._down_since is None and not self._open:
            self._down_since = self._clock()
        query = self._query if self.token is None else {**self._query, "since": self.token}
        return "/v1/watch?" + urlencode(query)

    def take(self) -> WatchItem | None:
        """What is to be told next, if anything is. Raises the error of a watch that is over."""
        if self._ready:
            item = self._ready.popleft()
            self.place = item.token or self.place
            return item
        self.check()
        return None

    def check(self) -> None:
        """Raise the error of a watch that is over."""
        if self.failed and self.failure is not None:
            raise self.failure

    # --- what happens to the connection -----------------------------------------------------------

    def opened(self) -> None:
        """The node has accepted the watch."""
        self._inside = self.token is None and self._snapshot
        if self._inside:
            self._ready.append(SnapshotStart())
        elif self.token is None and self._opened_once and not self._gap_told:
            # There was no token yet when the connection was lost: what happened since is unknown.
            self._ready.append(Gap(None, None, resync=False))
        self._open = self._opened_once = True
        self._gap_told = False
        self._down_since = self.failure = None
        told, self._told_down = self._told_down, False
        if told and self._on_link is not None:
            self._on_link(None)

    def event(self, name: str, token: str, data: bytes) -> None:
        """The node has told something; `token` is the last of this connection, or empty.

        Raises where the node has ended the watch, or tells what cannot be understood.
        """
        self._attempt = 0
        kind = next((kind for kind in KINDS if kind == name), None)
        if kind is not None:
            place = None if self._inside or not token else token
            self._ready.append(read_change(kind, data, place))
            self._move(place)
        elif name == "snapshot-end":
            self._inside = False
            self._ready.append(SnapshotEnd(token))
            self._move(token)
        elif name == "gap":
            gap = read_gap(data, token)
            self._ready.append(gap)
            self._move(gap.token)
            if gap.resync:
                self._inside = True
                self._ready.append(SnapshotStart())
        elif name == "end":
            self._move(None if self._inside else token)
            raise read_end(data)
        elif name == "message":  # a place without anything to tell
            self._move(None if self._inside else token)
            self.place = self.place if self._ready else self.token
        elif name not in self._unknown and len(self._unknown) < 100:
            self._unknown.add(name)
            log.warning("the node tells of %r, which this client does not know", name[:40])

    def dropped(self) -> None:
        """The connection was given up from this side, and the next one may be made at once."""
        if self._open:
            self._open = False
            self._down_since = self._clock()

    def lost(self, error: NkvError) -> float:
        """There is no connection, because of `error`: returns the seconds until the next attempt.

        Where it will not pass or patience has run out, the watch is over.
        """
        was_open = self._open
        self.dropped()
        self.failure = error
        if isinstance(error, InvalidToken) and self._opened_once:
            # The node has lost, or never had, the history that led here: begin anew.
            self._ready.append(Gap(self.token, None, resync=self._snapshot))
            self.token = None
            self._gap_told = True
        elif (
            (was_open and error.code == UNEXPECTED)
            or not self._may_pass(error)
            or (self._out_of_patience())
        ):
            self.failed = True
            return 0.0
        told, self._told_down = self._told_down, True
        if not told and self._on_link is not None:
            self._on_link(error)
        longest = min(_FIRST_PAUSE * 2**self._attempt, _LONGEST_PAUSE)
        self._attempt = min(self._attempt + 1, 16)
        # Those that were cut off together come back one by one.
        return random.uniform(longest / 2, longest)  # noqa: S311  # no secret

    def _may_pass(self, error: NkvError) -> bool:
        status = error.status
        if status == _NOT_FOUND:  # whoever tells of changes may be about to be loaded again
            return self._opened_once
        return status in _PASSING or (status >= _FAILURES and status != _NOT_IMPLEMENTED)

    def _out_of_patience(self) -> bool:
        limit = self._patience
        if limit is None and not self._opened_once:
            limit = self._timeout
        return limit is not None and self.down_for >= limit

    def _move(self, token: str | None) -> None:
        if token:
            self.token = token
