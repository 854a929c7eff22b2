"""Commands about channels."""

from typing import TYPE_CHECKING, Any

from .arguments import name_of
from .glob import Glob
from .pubsub import concerns_keys, confirm
from .replies import Raw, Refusal

if TYPE_CHECKING:
    from .session import Call


def subscribe(call: "Call", words: list[bytes]) -> Raw:
    """`SUBSCRIBE channel [channel ...]`."""
    return _subscribe(call, words[1:], pattern=False)


def psubscribe(call: "Call", words: list[bytes]) -> Raw:
    """`PSUBSCRIBE pattern [pattern ...]`."""
    return _subscribe(call, words[1:], pattern=True)


def unsubscribe(call: "Call", words: list[bytes]) -> Raw:
    """`UNSUBSCRIBE [channel ...]`."""
    return _unsubscribe(call, words[1:], pattern=False)


def punsubscribe(call: "Call", words: list[bytes]) -> Raw:
    """`PUNSUBSCRIBE [pattern ...]`."""
    return _unsubscribe(call, words[1:], pattern=True)


def _subscribe(call: "Call", names: list[bytes], *, pattern: bool) -> Raw:
    session = call.session
    shared = session.shared
    there = session.patterns if pattern else session.channels
    kind = "psubscribe" if pattern else "subscribe"
    session.identity = call.identity
    new = {name for name in names if name not in there}
    if len(session.channels) + len(session.patterns) + len(new) > shared.settings.max_subscriptions:
        raise Refusal(f"ERR a client may have {shared.settings.max_subscriptions} subscriptions")
    if any(concerns_keys(name, pattern=pattern) for name in names):
        shared.follower.follow()
    told = []
    for name in names:
        there[name] = None
        shared.channels.subscribe(session, name, pattern=pattern)
        told.append(confirm(session, kind, name))
    return Raw(b"".join(told))


def _unsubscribe(call: "Call", names: list[bytes], *, pattern: bool) -> Raw:
    session = call.session
    there = session.patterns if pattern else session.channels
    kind = "punsubscribe" if pattern else "unsubscribe"
    told = []
    for name in names or list(there):
        there.pop(name, None)
        session.shared.channels.unsubscribe(session, name, pattern=pattern)
        told.append(confirm(session, kind, name))
    session.shared.follow_if_needed()
    return Raw(b"".join(told) or confirm(session, kind, None))


def publish(call: "Call", words: list[bytes]) -> int:
    """`PUBLISH channel message`: how many were sent it."""
    return call.session.shared.channels.publish(words[1], words[2])


def pubsub(call: "Call", words: list[bytes]) -> Any:
    """`PUBSUB CHANNELS [pattern] | NUMSUB [channel ...] | NUMPAT`."""
    channels = call.session.shared.channels
    what = words[1].upper()
    if what == b"CHANNELS" and len(words) <= 3:
        glob = Glob(words[2] if len(words) == 3 else b"*")
        return [name for name in channels.channels() if glob.matches(name)]
    if what == b"NUMSUB":
        return [each for name in words[2:] for each in (name, channels.subscribers(name))]
    if what == b"NUMPAT" and len(words) == 2:
        return channels.patterns
    raise Refusal(f"ERR unknown subcommand '{name_of(words[1])}'. Try PUBSUB HELP.")
