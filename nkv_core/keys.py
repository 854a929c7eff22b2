"""Keys, their levels, and patterns over them. Pure functions; nothing here touches a storage.

A key is UTF-8 text of 1 to `MAX_KEY_BYTES` bytes without control characters, and neither `.` nor
`..`. Levels are separated by `.`. In a key `*` is a plain character; in a pattern it is a wildcard:

- `a.b` is exactly `a.b`;
- `a.*` is everything below `a`, at any depth, but not `a` itself;
- `*` in the middle is one level: `a.*.c` is `a.x.c` but not `a.x.y.c`;
- `*` alone is everything.

Keys are ordered by their UTF-8 bytes, which is the order of their code points.
"""

import re
from typing import Final

from nkv_core.errors import InvalidKey, InvalidPattern

MAX_KEY_BYTES: Final = 512
SEPARATOR: Final = "."
WILDCARD: Final = "*"

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def check_key(key: str, max_bytes: int = MAX_KEY_BYTES) -> bytes:
    """Return the key as UTF-8 bytes.

    Raises `InvalidKey` where the key is empty, longer than `max_bytes`, holds a control character
    or a lone surrogate, or is `.` or `..`.
    """
    if not key:
        raise InvalidKey("The key is empty.")
    try:
        encoded = key.encode()
    except UnicodeEncodeError:
        raise InvalidKey("The key is not valid UTF-8.") from None
    if len(encoded) > max_bytes:
        raise InvalidKey(f"The key has {len(encoded)} bytes; the limit is {max_bytes}.")
    # Printable ASCII, which nearly every key is, is recognised several times faster.
    if not (key.isascii() and key.isprintable()) and _CONTROL.search(key):
        raise InvalidKey("The key has a control character.")
    if key in (".", ".."):
        raise InvalidKey(f"{key!r} cannot be a key.")
    return encoded


def check_prefix(prefix: str, max_bytes: int = MAX_KEY_BYTES) -> bytes:
    """Return a prefix of keys as bytes; the empty one is that of all keys. Raises `InvalidKey`."""
    if prefix in ("", ".", ".."):
        return prefix.encode()
    return check_key(prefix, max_bytes)


def prefix_range(prefix: bytes) -> tuple[bytes, bytes | None]:
    """Return `(start, stop)`: exactly the keys with this prefix lie in `start <= key < stop`.

    `stop` is None where there is no upper end (the empty prefix).
    """
    stripped = prefix.rstrip(b"\xff")
    if not stripped:
        return prefix, None
    return prefix, stripped[:-1] + bytes((stripped[-1] + 1,))


def is_below(key: str, ancestor: str) -> bool:
    """Whether `key` lies below `ancestor`, at any depth. A key is not below itself."""
    return key.startswith(ancestor + SEPARATOR)


class Pattern:
    """A compiled pattern. Two patterns are equal where their texts are."""

    __slots__ = ("_regex", "exact", "prefix", "text")

    def __init__(self, text: str) -> None:
        """Compile `text`. Raises `InvalidPattern` where it is not a valid key or pattern."""
        try:
            check_key(text)
        except InvalidKey as error:
            raise InvalidPattern(error.detail.replace("key", "pattern")) from None
        self.text: Final = text
        levels = text.split(SEPARATOR)
        wild = [index for index, level in enumerate(levels) if level == WILDCARD]
        #: Whether the pattern has no wildcard, and so stands for one key.
        self.exact: Final = not wild
        #: What every key that matches begins with; it bounds a scan.
        self.prefix: Final = (
            text if not wild else "".join(level + SEPARATOR for level in levels[: wild[0]])
        )
        self._regex = None if not wild or wild == [len(levels) - 1] else _compile(levels)

    def matches(self, key: str) -> bool:
        """Whether the key is one that the pattern stands for."""
        if self.exact:
            return key == self.text
        if self._regex is None:
            return key.startswith(self.prefix) and len(key) > len(self.prefix)
        return self._regex.fullmatch(key) is not None

    def overlaps(self, prefix: str) -> bool:
        """Whether a key that begins with `prefix` could match: what a cleared prefix may concern.

        It may say yes where no such key exists, never no where one does.
        """
        return self.prefix.startswith(prefix) or (not self.exact and prefix.startswith(self.prefix))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"


def _compile(levels: list[str]) -> re.Pattern[str]:
    parts = ["[^.]*" if level == WILDCARD else re.escape(level) for level in levels]
    if levels[-1] == WILDCARD:
        parts[-1] = ".+"
    return re.compile(re.escape(SEPARATOR).join(parts), re.DOTALL)


EVERYTHING: Final = Pattern(WILDCARD)
