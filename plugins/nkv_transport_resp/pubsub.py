"""Channels: who subscribes to what, and what they are sent."""

from typing import TYPE_CHECKING, Any, Final

from .glob import Glob
from .replies import Push, encode

if TYPE_CHECKING:
    from .session import Session

KEYSPACE: Final = b"__keyspace@0__:"
KEYEVENT: Final = b"__keyevent@0__:"
_COMMON: Final = b"__key"


def concerns_keys(name: bytes, *, pattern: bool) -> bool:
    """Whether the changes of keys may be told on this channel, or on one that it matches."""
    if not pattern:
        return name.startswith((KEYSPACE, KEYEVENT))
    literal = Glob(name).literal
    return literal.startswith(_COMMON) or _COMMON.startswith(literal)


class Channels:
    """The subscriptions of all clients of a transport."""

    def __init__(self) -> None:
        self._channels: dict[bytes, dict[Session, None]] = {}
        self._patterns: dict[bytes, tuple[Glob, dict[Session, None]]] = {}

    def subscribe(self, session: "Session", name: bytes, *, pattern: bool) -> None:
        """Add a client to a channel or pattern."""
        if not pattern:
            self._channels.setdefault(name, {})[session] = None
            return
        found = self._patterns.get(name)
        if found is None:
            found = self._patterns[name] = (Glob(name), {})
        found[1][session] = None

    def unsubscribe(self, session: "Session", name: bytes, *, pattern: bool) -> None:
        """Take a client from a channel or pattern. Doing so twice does nothing."""
        if pattern:
            glob = self._patterns.get(name)
            if glob is not None and glob[1].pop(session, self) is None and not glob[1]:
                del self._patterns[name]
            return
        there = self._channels.get(name)
        if there is not None and there.pop(session, self) is None and not there:
            del self._channels[name]

    def channels(self) -> list[bytes]:
        """The channels that somebody subscribes to."""
        return list(self._channels)

    def subscribers(self, channel: bytes) -> int:
        """How many subscribe to just this channel."""
        return len(self._channels.get(channel, ()))

    @property
    def patterns(self) -> int:
        """How many patterns somebody subscribes to."""
        return len(self._patterns)

    @property
    def empty(self) -> bool:
        """Whether nobody subscribes to anything."""
        return not self._channels and not self._patterns

    def publish(self, channel: bytes, message: bytes, key: str | None = None) -> int:
        """Send a message; returns how many were sent it. With `key`, only those who may read it."""
        count = 0
        direct = self._channels.get(channel)
        if direct:
            count += _send(list(direct), Push((b"message", channel, message)), key)
        for name, (glob, sessions) in list(self._patterns.items()):
            if glob.matches(channel):
                told = Push((b"pmessage", name, channel, message))
                count += _send(list(sessions), told, key)
        return count


def _send(sessions: "list[Session]", told: Push, key: str | None) -> int:
    encoded: dict[int, bytes] = {}
    count = 0
    for session in sessions:
        if key is not None and not session.may_read(key):
            continue
        data = encoded.get(session.protocol)
        if data is None:
            data = encoded[session.protocol] = encode(told, session.protocol)
        session.push(data)
        count += 1
    return count


def confirm(session: "Session", kind: str, name: bytes | None) -> bytes:
    """What a client is told of a subscription that began or ended."""
    told: Any = Push((kind, name, len(session.channels) + len(session.patterns)))
    return encode(told, session.protocol)
