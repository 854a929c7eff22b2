"""Commands on values. Each is a function of a view and the words of the command."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from nkv_core.contracts.keyspace import View
from nkv_core.errors import InvalidExpiry

from .arguments import LEAST, MOST, expiry_of, invalid_expire, key_of, number_of, wrong_arity
from .replies import NOT_A_NUMBER, OK, SYNTAX, Refusal

Words = Sequence[bytes]

#: Where the value of an option says when something expires: in seconds?, from now on?
_EXPIRIES: Final = {
    b"EX": (True, True),
    b"PX": (False, True),
    b"EXAT": (True, False),
    b"PXAT": (False, False),
}
#: The cause of a `SET` that leaves the expiry as it is, which subscribers are not told of.
KEEPS_EXPIRY: Final = "set-keepttl"


class SetOptions(NamedTuple):
    """The options of `SET`."""

    absent: bool = False
    present: bool = False
    get: bool = False
    keep: bool = False
    expires: int | None = None


def get(view: View, words: Words) -> bytes | None:
    """`GET key`."""
    record = view.get(key_of(words[1]))
    return None if record is None else record.value


def set_(view: View, words: Words) -> Any:
    """`SET key value [NX | XX] [GET] [EX s | PX ms | EXAT s | PXAT ms | KEEPTTL]`."""
    options = _set_options(words, view.now)
    key = key_of(words[1])
    before = view.get(key) if options != _PLAIN else None
    found = None if before is None else before.value
    if (options.absent and before is not None) or (options.present and before is None):
        return found if options.get else None
    if options.keep:
        expires = None if before is None else before.expires
        _put(view, key, words[2], expires, KEEPS_EXPIRY)
    else:
        _put(view, key, words[2], options.expires, "set")
    return found if options.get else OK


_PLAIN: Final = SetOptions()


def _set_options(words: Words, now: int) -> SetOptions:
    absent = present = get_ = keep = False
    expires: int | None = None
    rest = iter(words[3:])
    expiry: tuple[bytes, bytes] | None = None
    for word in rest:
        option = word.upper()
        if option == b"NX" and not present:
            absent = True
        elif option == b"XX" and not absent:
            present = True
        elif option == b"GET":
            get_ = True
        elif option == b"KEEPTTL" and expiry is None:
            keep = True
        elif option in _EXPIRIES and not keep and (expiry is None or expiry[0] == option):
            value = next(rest, None)
            if value is None:
                raise Refusal(SYNTAX)
            expiry = option, value
        else:
            raise Refusal(SYNTAX)
    if expiry is not None:
        option, value = expiry
        seconds, relative = _EXPIRIES[option]
        expires = positive_expiry(value, seconds, now if relative else None, "set")
    return SetOptions(absent, present, get_, keep, expires)


def positive_expiry(word: bytes, seconds: bool, since: int | None, command: str) -> int:
    """An expiry that must be above 0 as it is given."""
    at = expiry_of(word, seconds=seconds, since=since, command=command)
    if number_of(word) <= 0:
        raise invalid_expire(command)
    return at


def _put(view: View, key: str, value: bytes, expires: int | None, cause: str) -> None:
    try:
        view.put(key, value, expires=expires, cause=cause)
    except InvalidExpiry:
        raise invalid_expire(cause) from None


def setnx(view: View, words: Words) -> int:
    """`SETNX key value`."""
    key = key_of(words[1])
    if view.get(key) is not None:
        return 0
    view.put(key, words[2], cause="setnx")
    return 1


def setex(view: View, words: Words) -> Any:
    """`SETEX key seconds value`."""
    return _set_for(view, words, "setex", seconds=True)


def psetex(view: View, words: Words) -> Any:
    """`PSETEX key milliseconds value`."""
    return _set_for(view, words, "psetex", seconds=False)


def _set_for(view: View, words: Words, command: str, *, seconds: bool) -> Any:
    expires = positive_expiry(words[2], seconds, view.now, command)
    _put(view, key_of(words[1]), words[3], expires, command)
    return OK


def getset(view: View, words: Words) -> bytes | None:
    """`GETSET key value`."""
    return _value(view.put(key_of(words[1]), words[2], cause="getset").previous)


def getdel(view: View, words: Words) -> bytes | None:
    """`GETDEL key`."""
    key = key_of(words[1])
    before = view.get(key)
    if before is None:
        return None
    view.delete(key, cause="getdel")
    return before.value


def getex(view: View, words: Words) -> bytes | None:
    """`GETEX key [EX s | PX ms | EXAT s | PXAT ms | PERSIST]`."""
    option = words[2].upper() if len(words) > 2 else b""
    if option not in ({2: (b"",), 3: (b"PERSIST",), 4: _EXPIRIES}.get(len(words), ())):
        raise Refusal(SYNTAX)
    key = key_of(words[1])
    before = view.get(key)
    if before is None:
        return None
    persist, expires = option == b"PERSIST", None
    if option in _EXPIRIES:
        seconds, relative = _EXPIRIES[option]
        expires = positive_expiry(words[3], seconds, view.now if relative else None, "getex")
    if expires is not None and expires <= view.now:
        view.delete(key, cause="getex")
    elif expires is not None or (persist and before.expires is not None):
        try:
            view.touch(key, expires, cause="getex")
        except InvalidExpiry:
            raise invalid_expire("getex") from None
    return before.value


def mget(view: View, words: Words) -> list[bytes | None]:
    """`MGET key [key ...]`."""
    return [_value(view.get(key_of(word))) for word in words[1:]]


def mset(view: View, words: Words) -> Any:
    """`MSET key value [key value ...]`."""
    for key, value in _pairs(words, "mset"):
        view.put(key, value, cause="mset")
    return OK


def msetnx(view: View, words: Words) -> int:
    """`MSETNX key value [key value ...]`: all of them, if none is there."""
    pairs = _pairs(words, "msetnx")
    if any(view.get(key) is not None for key, _ in pairs):
        return 0
    for key, value in pairs:
        view.put(key, value, cause="msetnx")
    return 1


def _pairs(words: Words, command: str) -> list[tuple[str, bytes]]:
    if len(words) % 2 == 0:
        raise wrong_arity(command)
    return [(key_of(key), value) for key, value in zip(words[1::2], words[2::2], strict=True)]


def incr(view: View, words: Words) -> int:
    """`INCR key`."""
    return _add(view, words, 1, "incr")


def decr(view: View, words: Words) -> int:
    """`DECR key`."""
    return _add(view, words, -1, "decr")


def incrby(view: View, words: Words) -> int:
    """`INCRBY key number`."""
    return _add(view, words, number_of(words[2]), "incrby")


def decrby(view: View, words: Words) -> int:
    """`DECRBY key number`."""
    number = number_of(words[2])
    if number == LEAST:
        raise Refusal("ERR decrement would overflow")
    return _add(view, words, -number, "decrby")


def _add(view: View, words: Words, number: int, cause: str) -> int:
    key = key_of(words[1])
    before = view.get(key)
    value = 0 if before is None else number_of(before.value, NOT_A_NUMBER)
    value += number
    if not LEAST <= value <= MOST:
        raise Refusal("ERR increment or decrement would overflow")
    view.put(key, b"%d" % value, expires=None if before is None else before.expires, cause=cause)
    return value


def append(view: View, words: Words) -> int:
    """`APPEND key value`."""
    key = key_of(words[1])
    before = view.get(key)
    value = words[2] if before is None else before.value + words[2]
    view.put(key, value, expires=None if before is None else before.expires, cause="append")
    return len(value)


def strlen(view: View, words: Words) -> int:
    """`STRLEN key`."""
    return len(_value(view.get(key_of(words[1]))) or b"")


def getrange(view: View, words: Words) -> bytes:
    """`GETRANGE key start end`: both included, from the end where negative."""
    start, end = number_of(words[2]), number_of(words[3])
    value = _value(view.get(key_of(words[1]))) or b""
    if start < 0 and end < 0 and start > end:
        return b""
    length = len(value)
    start = max(start + length if start < 0 else start, 0)
    end = min(max(end + length if end < 0 else end, 0), length - 1)
    return value[start : end + 1] if start <= end else b""


def setrange(view: View, words: Words) -> int:
    """`SETRANGE key offset value`."""
    offset, piece = number_of(words[2]), words[3]
    if offset < 0:
        raise Refusal("ERR offset is out of range")
    key = key_of(words[1])
    before = view.get(key)
    value = b"" if before is None else before.value
    if not piece:
        return len(value)
    if offset + len(piece) > 512 * 1024 * 1024:
        raise Refusal("ERR string exceeds maximum allowed size (proto-max-bulk-len)")
    value = value[:offset].ljust(offset, b"\0") + piece + value[offset + len(piece) :]
    view.put(key, value, expires=None if before is None else before.expires, cause="setrange")
    return len(value)


def _value(record: Any) -> bytes | None:
    return None if record is None else record.value
