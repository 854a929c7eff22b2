"""Tracking: which keys clients keep copies of, so that they can be told when these are stale.

By default a client is told once of each key that it has read since; in broadcast mode of every key
with one of its prefixes. (https://redis.io/docs/latest/develop/reference/client-side-caching/)
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from nkv_core.records import Change

from .replies import Push, encode

if TYPE_CHECKING:
    from .session import Session

    FindSession = Callable[[int], Session | None]

#: Where a client that was named by `REDIRECT`, and speaks RESP2, is told.
CHANNEL: Final = b"__redis__:invalidate"
#: Revisions remembered of clients that do not want to be told of their own changes.
_REMEMBERED: Final = 65_536


class Tracking(msgspec.Struct):
    """How one client wants to be told."""

    broadcast: bool = False
    prefixes: tuple[bytes, ...] = ()
    opt_in: bool = False
    opt_out: bool = False
    no_loop: bool = False
    redirect: int = 0
    caching: bool | None = None  #: what `CLIENT CACHING` said of the next command

    @property
    def keeps(self) -> bool:
        """Whether what the next command reads is to be remembered."""
        if self.broadcast:
            return False
        if self.opt_in:
            return self.caching is True
        return not (self.opt_out and self.caching is False)


class Tracker:
    """All clients that are told of stale keys."""

    def __init__(self, most_keys: int, find: "FindSession") -> None:
        self._most_keys: Final = most_keys
        self._find: Final = find
        self._keys: OrderedDict[str, dict[Session, None]] = OrderedDict()
        self._all: dict[Session, None] = {}
        self._broadcast: dict[Session, None] = {}
        self._own: OrderedDict[int, Session] = OrderedDict()

    @property
    def empty(self) -> bool:
        """Whether nobody is told of anything."""
        return not self._all

    @property
    def keys(self) -> int:
        """How many keys are remembered."""
        return len(self._keys)

    @property
    def clients(self) -> int:
        """How many clients are told."""
        return len(self._all)

    def begin(self, session: "Session", tracking: Tracking) -> None:
        """Tell a client from now on."""
        self._all[session] = None
        self._broadcast.pop(session, None)
        if tracking.broadcast:
            self._broadcast[session] = None

    def end(self, session: "Session") -> None:
        """Tell a client no more. What it has read is forgotten when these keys change."""
        self._all.pop(session, None)
        self._broadcast.pop(session, None)

    def remember(self, session: "Session", keys: "list[str]") -> None:
        """Take note that a client is about to read these keys."""
        for key in keys:
            readers = self._keys.get(key)
            if readers is None:
                readers = self._keys[key] = {}
                if len(self._keys) > self._most_keys:
                    oldest, sessions = self._keys.popitem(last=False)
                    self._tell(oldest, sessions, None)
            readers[session] = None

    def own(self, session: "Session", revision: int) -> None:
        """Take note of who made a change who does not want to be told of it."""
        self._own[revision] = session
        if len(self._own) > _REMEMBERED:
            self._own.popitem(last=False)

    def changed(self, change: Change) -> None:
        """Tell whom a change concerns."""
        by = self._own.pop(change.revision, None)
        if change.kind == "clear":
            self._cleared(change.key)
            return
        readers = self._keys.pop(change.key, None)
        if readers:
            self._tell(change.key, readers, by)
        if self._broadcast:
            encoded = change.key.encode()
            for session in list(self._broadcast):
                tracking = session.tracking
                if (
                    tracking is not None
                    and session is not by
                    and encoded.startswith(tracking.prefixes or (b"",))
                    and session.may_read(change.key)
                ):
                    self._invalidate(session, tracking, [encoded])

    def flush(self) -> None:
        """Tell everybody that whatever they keep may be stale."""
        self._keys.clear()
        self._own.clear()
        for session in list(self._all):
            if session.tracking is not None:
                self._invalidate(session, session.tracking, None)

    def _cleared(self, prefix: str) -> None:
        if not prefix:
            self.flush()
            return
        for key in [key for key in self._keys if key.startswith(prefix)]:
            self._tell(key, self._keys.pop(key), None)
        encoded = prefix.encode()
        for session in list(self._broadcast):
            tracking = session.tracking
            if tracking is not None and any(
                each.startswith(encoded) or encoded.startswith(each)
                for each in tracking.prefixes or (b"",)
            ):
                self._invalidate(session, tracking, None)

    def _tell(self, key: str, readers: "dict[Session, None]", by: "Session | None") -> None:
        for session in readers:
            tracking = session.tracking
            if session in self._all and tracking is not None and not tracking.broadcast:
                if session is by:
                    continue
                self._invalidate(session, tracking, [key.encode()])

    def _invalidate(self, session: "Session", tracking: Tracking, keys: list[bytes] | None) -> None:
        if tracking.redirect:
            target = self._find(tracking.redirect)
            if target is None:
                return
            session = target
            if session.protocol == 2:
                if CHANNEL in session.channels:
                    session.push(encode(Push((b"message", CHANNEL, keys)), 2))
                return
        if session.protocol == 3:
            session.push(encode(Push((b"invalidate", keys)), 3))
