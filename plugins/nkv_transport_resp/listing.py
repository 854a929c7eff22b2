"""Commands that go through many keys: KEYS, SCAN, RANDOMKEY, DBSIZE.

They read pages of the keyspace in key order, and others have a turn between these.
"""

import random
import re
import secrets
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from nkv_core.contracts.keyspace import Keyspace
from nkv_core.errors import InvalidPattern, ValueTooLarge
from nkv_core.keys import EVERYTHING, Pattern

from .arguments import count_of
from .glob import Glob
from .replies import SYNTAX, Refusal

if TYPE_CHECKING:
    from .session import Call

_PAGE: Final = 500
_MOST_AT_ONCE: Final = 10_000
#: Scans that were begun and may be gone on with. The one that lies idle longest is forgotten.
_MOST_CURSORS: Final = 100_000
_NUMBER: Final = re.compile(rb"[0-9]{1,20}")
#: Up to so many keys, each is as likely as the others to be the random one.
_FEW: Final = 1000
_PRINTABLE: Final = (0x20, 0x7E)


class Cursors:
    """Where each scan has come to. A cursor is a number, since clients take it for one."""

    def __init__(self) -> None:
        self._keys: OrderedDict[int, str] = OrderedDict()
        self._last = secrets.randbits(48)

    def keep(self, key: str) -> int:
        """A cursor that stands behind this key."""
        self._last += 1
        self._keys[self._last] = key
        if len(self._keys) > _MOST_CURSORS:
            self._keys.popitem(last=False)
        return self._last

    def find(self, cursor: int) -> str | None:
        """The key that it stands behind; None for 0. Raises `Refusal` where it is forgotten."""
        if cursor == 0:
            return None
        key = self._keys.get(cursor)
        if key is None:
            raise Refusal("ERR this cursor is not known any more: begin again with 0")
        self._keys.move_to_end(cursor)
        return key


class Range:
    """The part of the keyspace in which the keys lie that match."""

    def __init__(self, keyspace: Keyspace, glob: Glob) -> None:
        self._keyspace = keyspace
        self._glob = glob
        self._literal = _text(glob.literal)
        self._pattern = _levels_of(self._literal)

    async def page(self, after: str | None, limit: int) -> tuple[list[str], str | None]:
        """Keys that match, of `limit` keys that are looked at; and where to go on, if anywhere."""
        found: list[str] = []
        if self._glob.exact:
            record = None if not self._literal else await self._keyspace.get(self._literal)
            return ([] if record is None or after is not None else [record.key]), None
        if after is None and self._literal:
            # Pages begin behind a key, and the first that may match is the literal itself.
            if self._glob.matches(self._glob.literal) and _valid(self._literal):
                record = await self._keyspace.get(self._literal)
                found = [] if record is None else [record.key]
            after = self._literal if _valid(self._literal) else None
        page = await self._keyspace.scan(self._pattern, after=after, limit=limit)
        for record in page.records:
            if record.key.startswith(self._literal):
                if self._glob.matches(record.key.encode()):
                    found.append(record.key)
            elif record.key > self._literal:
                return found, None
        return found, page.after


def _text(literal: bytes) -> str:
    """As much of a pattern's beginning as is text."""
    return literal.decode(errors="ignore") if _is_text(literal) else ""


def _is_text(literal: bytes) -> bool:
    try:
        literal.decode()
    except UnicodeDecodeError:
        return False
    return True


def _valid(key: str) -> bool:
    try:
        Pattern(key)
    except InvalidPattern:
        return False
    return True


def _levels_of(literal: str) -> Pattern:
    """What bounds a scan, and the right to it: the whole levels in what keys begin with."""
    levels, dot, _ = literal.rpartition(".")
    if dot:
        try:
            return Pattern(f"{levels}.*")
        except InvalidPattern:
            pass
    return EVERYTHING


async def keys(call: "Call", words: list[bytes]) -> list[str]:
    """`KEYS pattern`."""
    room = call.session.shared.settings.max_output_bytes // 2
    place = Range(call.keyspace, Glob(words[1]))
    found: list[str] = []
    after: str | None = None
    while True:
        some, after = await place.page(after, _PAGE)
        found += some
        room -= sum(len(key) + 16 for key in some)
        if room < 0:
            raise ValueTooLarge("The keys found are more than one reply can carry: use SCAN.")
        if after is None:
            return found


async def scan(call: "Call", words: list[bytes]) -> list[Any]:
    """`SCAN cursor [MATCH pattern] [COUNT number] [TYPE type]`."""
    if not _NUMBER.fullmatch(words[1]):
        raise Refusal("ERR invalid cursor")
    glob, count, strings = Glob(b"*"), 10, True
    options = iter(words[2:])
    for option in options:
        value = next(options, None)
        if value is None:
            raise Refusal(SYNTAX)
        match option.upper():
            case b"MATCH":
                glob = Glob(value)
            case b"COUNT":
                count = min(count_of(value), _MOST_AT_ONCE)
            case b"TYPE":
                strings = value.lower() == b"string"
            case _:
                raise Refusal(SYNTAX)
    cursors = call.session.shared.cursors
    after = cursors.find(int(words[1]))
    found, after = await Range(call.keyspace, glob).page(after, count)
    cursor = 0 if after is None else cursors.keep(after)
    return [str(cursor), found if strings else []]


async def dbsize(call: "Call", _: list[bytes]) -> int:
    """`DBSIZE`."""
    return await call.keyspace.count()


async def randomkey(call: "Call", _words: list[bytes]) -> str | None:
    """`RANDOMKEY`: among more than a thousand keys some are likelier than others."""
    keyspace = call.keyspace
    page = await keyspace.scan(limit=_FEW)
    if page.after is not None:
        after = ""
        for _ in range(secrets.randbelow(8) + 1):
            begin = after + chr(random.randint(*_PRINTABLE))  # noqa: S311  # no secret
            if begin in (".", "..") or len(begin.encode()) > 500:
                break
            following = await keyspace.scan(after=begin, limit=_FEW)
            if not following.records:
                break
            page = following
            after = following.records[0].key[: len(begin)]
    return random.choice(page.records).key if page.records else None  # noqa: S311  # no secret
