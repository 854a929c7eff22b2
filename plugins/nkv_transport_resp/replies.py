"""Replies: outcomes as bytes, in RESP2 and RESP3 (https://redis.io/docs/latest/develop/reference/protocol-spec/).

A handler returns None, bytes, text, a whole number, a list, a dict, or one of the types here.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

from nkv_core.contracts.handlers import Reply
from nkv_core.errors import (
    Forbidden,
    NkvError,
    Overloaded,
    Stopping,
    StorageFailed,
    StorageFull,
    Unauthenticated,
)


class Simple(str):
    """A status such as `OK`."""

    __slots__ = ()


class Raw(bytes):
    """A reply that is encoded already."""

    __slots__ = ()


class Push(tuple[Any, ...]):
    """Out-of-band data: a push in RESP3, and an array in RESP2."""

    __slots__ = ()


class NullArray:
    """The reply of a transaction that was not carried out."""


class Refusal(NkvError):
    """An error whose text is just what Redis would say, its first word included."""

    code = "refused"
    status = 400


OK: Final = Simple("OK")
QUEUED: Final = Simple("QUEUED")
PONG: Final = Simple("PONG")
NULL_ARRAY: Final = NullArray()

SYNTAX: Final = "ERR syntax error"
NOT_A_NUMBER: Final = "ERR value is not an integer or out of range"
NO_AUTH: Final = "NOAUTH Authentication required."

#: How often these are sent: without being made each time.
_ENCODED: Final = {OK: b"+OK\r\n", QUEUED: b"+QUEUED\r\n", PONG: b"+PONG\r\n"}
_SMALL: Final = [b":%d\r\n" % number for number in range(1024)]


def encode(outcome: Any, protocol: int) -> bytes:  # noqa: PLR0912  # one branch for each type
    """An outcome as bytes."""
    kind = type(outcome)
    if kind is bytes:
        return b"$%d\r\n%b\r\n" % (len(outcome), outcome)
    if kind is Simple:
        return _ENCODED.get(outcome) or b"+%b\r\n" % outcome.encode()
    if outcome is None:
        return b"$-1\r\n" if protocol == 2 else b"_\r\n"
    if kind is int:
        return _SMALL[outcome] if 0 <= outcome < 1024 else b":%d\r\n" % outcome
    if kind is Raw:
        return bytes(outcome)
    if kind is str:
        encoded = outcome.encode()
        return b"$%d\r\n%b\r\n" % (len(encoded), encoded)
    if kind is list or kind is tuple:
        return _all(b"*%d\r\n" % len(outcome), outcome, protocol)
    if kind is dict:
        parts = [part for pair in outcome.items() for part in pair]
        head = b"*%d\r\n" % len(parts) if protocol == 2 else b"%%%d\r\n" % len(outcome)
        return _all(head, parts, protocol)
    if kind is set or kind is frozenset:
        return _all((b"*%d\r\n" if protocol == 2 else b"~%d\r\n") % len(outcome), outcome, protocol)
    if kind is Push:
        return _all((b"*%d\r\n" if protocol == 2 else b">%d\r\n") % len(outcome), outcome, protocol)
    if outcome is NULL_ARRAY:
        return b"*-1\r\n" if protocol == 2 else b"_\r\n"
    if kind is bool:
        return (b":%d\r\n" % outcome) if protocol == 2 else (b"#t\r\n" if outcome else b"#f\r\n")
    if kind is float:
        text = repr(outcome).encode()
        return b"$%d\r\n%b\r\n" % (len(text), text) if protocol == 2 else b",%b\r\n" % text
    if isinstance(outcome, NkvError):
        return encode_error(outcome)
    if kind is Reply:
        return encode(outcome.body, protocol)
    if (own := _OF_ANOTHER_GENERATION.get(kind.__name__)) is not None:
        return encode(own(outcome), protocol)
    return _all(b"", [str(outcome)], protocol)


_OF_ANOTHER_GENERATION: Final[dict[str, Callable[[Any], Any]]] = {
    "Simple": Simple,
    "Raw": Raw,
    "Push": Push,
    "NullArray": lambda _: NULL_ARRAY,
}


def _all(head: bytes, parts: Iterable[Any], protocol: int) -> bytes:
    return head + b"".join([encode(part, protocol) for part in parts])


def encode_error(error: NkvError) -> bytes:
    """An error, with the word in front that clients of Redis know where there is one."""
    return b"-%b\r\n" % text_of(error).translate(_ONE_LINE).encode(errors="surrogateescape")


_ONE_LINE: Final = {0x0D: " ", 0x0A: " "}


def text_of(error: NkvError) -> str:
    """What an error says."""
    if error.code == Refusal.code:  # perhaps of another generation
        return error.detail
    if isinstance(error, Unauthenticated):
        return NO_AUTH
    if isinstance(error, Forbidden):
        return f"NOPERM {error.detail}"
    if isinstance(error, StorageFull):
        return f"OOM {error.detail}"
    if isinstance(error, StorageFailed):
        return f"MISCONF {error.detail}"
    if isinstance(error, Stopping):
        return f"LOADING {error.detail}"
    if isinstance(error, Overloaded):
        return f"TRYAGAIN {error.detail}"
    return f"ERR {error.detail} ({error.code})"
