"""Commands on keys. Each is a function of a view and the words of the command."""

from collections.abc import Sequence
from typing import Any, Final

from nkv_core.contracts.keyspace import View
from nkv_core.errors import InvalidExpiry

from .arguments import expiry_of, invalid_expire, key_of
from .replies import OK, SYNTAX, Refusal, Simple

Words = Sequence[bytes]

_NONE: Final = Simple("none")
_STRING: Final = Simple("string")


def delete(view: View, words: Words) -> int:
    """`DEL key [key ...]`."""
    return _delete(view, words, "del")


def unlink(view: View, words: Words) -> int:
    """`UNLINK key [key ...]`."""
    return _delete(view, words, "unlink")


def _delete(view: View, words: Words, cause: str) -> int:
    return sum(view.delete(key_of(word), cause=cause).previous is not None for word in words[1:])


def exists(view: View, words: Words) -> int:
    """`EXISTS key [key ...]`: how many of them, each as often as it is named."""
    return sum(view.get(key_of(word)) is not None for word in words[1:])


def type_(view: View, words: Words) -> Simple:
    """`TYPE key`."""
    return _NONE if view.get(key_of(words[1])) is None else _STRING


def ttl(view: View, words: Words) -> int:
    """`TTL key`: seconds, -1 without an expiry, -2 where there is no record."""
    left = pttl(view, words)
    return left if left < 0 else (left + 500) // 1000


def pttl(view: View, words: Words) -> int:
    """`PTTL key`: the same in milliseconds."""
    at = pexpiretime(view, words)
    return at if at < 0 else max(at - view.now, 0)


def expiretime(view: View, words: Words) -> int:
    """`EXPIRETIME key`: when, in seconds since 1970."""
    at = pexpiretime(view, words)
    return at if at < 0 else (at + 500) // 1000


def pexpiretime(view: View, words: Words) -> int:
    """`PEXPIRETIME key`: the same in milliseconds."""
    record = view.get(key_of(words[1]))
    if record is None:
        return -2
    return -1 if record.expires is None else record.expires


def expire(view: View, words: Words) -> int:
    """`EXPIRE key seconds [NX | XX] [GT | LT]`."""
    return _expire(view, words, "expire", seconds=True, relative=True)


def pexpire(view: View, words: Words) -> int:
    """`PEXPIRE key milliseconds [NX | XX] [GT | LT]`."""
    return _expire(view, words, "pexpire", seconds=False, relative=True)


def expireat(view: View, words: Words) -> int:
    """`EXPIREAT key seconds [NX | XX] [GT | LT]`: seconds since 1970."""
    return _expire(view, words, "expireat", seconds=True, relative=False)


def pexpireat(view: View, words: Words) -> int:
    """`PEXPIREAT key milliseconds [NX | XX] [GT | LT]`: milliseconds since 1970."""
    return _expire(view, words, "pexpireat", seconds=False, relative=False)


def _expire(view: View, words: Words, command: str, *, seconds: bool, relative: bool) -> int:
    options = _expire_options(words)
    since = view.now if relative else None
    at = expiry_of(words[2], seconds=seconds, since=since, command=command)
    key = key_of(words[1])
    record = view.get(key)
    if record is None:
        return 0
    before = record.expires
    if (
        (b"NX" in options and before is not None)
        or (b"XX" in options and before is None)
        or (b"GT" in options and (before is None or at <= before))
        or (b"LT" in options and before is not None and at >= before)
    ):
        return 0
    if at <= view.now:
        view.delete(key, cause="del")  # nothing has expired by itself
        return 1
    try:
        view.touch(key, at, cause=command)
    except InvalidExpiry:
        raise invalid_expire(command) from None
    return 1


def _expire_options(words: Words) -> set[bytes]:
    options: set[bytes] = set()
    for word in words[3:]:
        if word.upper() not in (b"NX", b"XX", b"GT", b"LT"):
            raise Refusal(f"ERR Unsupported option {word.decode(errors='replace')}")
        options.add(word.upper())
    if b"NX" in options and len(options) > 1:
        raise Refusal("ERR NX and XX, GT or LT options at the same time are not compatible")
    if {b"GT", b"LT"} <= options:
        raise Refusal("ERR GT and LT options at the same time are not compatible")
    return options


def persist(view: View, words: Words) -> int:
    """`PERSIST key`."""
    key = key_of(words[1])
    record = view.get(key)
    if record is None or record.expires is None:
        return 0
    view.touch(key, None, cause="persist")
    return 1


def rename(view: View, words: Words) -> Any:
    """`RENAME key new`: both at once, the expiry included."""
    _rename(view, words, "rename", only_new=False)
    return OK


def renamenx(view: View, words: Words) -> int:
    """`RENAMENX key new`: the same where `new` is not there yet."""
    return _rename(view, words, "renamenx", only_new=True)


def _rename(view: View, words: Words, cause: str, *, only_new: bool) -> int:
    old, new = key_of(words[1]), key_of(words[2])
    record = view.get(old)
    if record is None:
        raise Refusal("ERR no such key")
    if old == new:
        return 0
    if only_new and view.get(new) is not None:
        return 0
    view.delete(old, cause=cause)
    view.put(new, record.value, expires=record.expires, cause=cause)
    return 1


def flushdb(view: View, words: Words) -> Any:
    """`FLUSHDB [ASYNC | SYNC]`."""
    if len(words) > 2 or (len(words) == 2 and words[1].upper() not in (b"ASYNC", b"SYNC")):
        raise Refusal(SYNTAX)
    view.clear(cause="flushdb")
    return OK
