"""Events: what a change of the keyspace is called in Redis' keyspace notifications."""

from typing import Final

from nkv_core.records import Change

from .strings import KEEPS_EXPIRY

#: By the cause of a change, where that is a command of this transport.
_OF_PUT: Final = {
    "append": "append",
    "setrange": "setrange",
    "incr": "incrby",
    "decr": "incrby",
    "incrby": "incrby",
    "decrby": "incrby",
    "rename": "rename_to",
    "renamenx": "rename_to",
}
#: Puts that keep the expiry that was there, or have none to begin with.
_KEEPING: Final = frozenset((*_OF_PUT, KEEPS_EXPIRY))


def events_of(change: Change) -> tuple[str, ...]:
    """The events that a change is told as. Of a clear there are none, as in Redis."""
    if change.kind == "put":
        event = _OF_PUT.get(change.cause, "set")
        if change.expires is None or change.cause in _KEEPING:
            return (event,)
        return (event, "expire")
    if change.kind == "touch":
        return ("persist",) if change.expires is None else ("expire",)
    if change.kind == "delete":
        if change.cause == "expire":
            return ("expired",)
        return ("rename_from",) if change.cause in ("rename", "renamenx") else ("del",)
    return ()
