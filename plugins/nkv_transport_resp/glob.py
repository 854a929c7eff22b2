"""Glob: Redis' patterns, over bytes.

`*` is anything, `?` one byte, `[abc]`, `[a-c]` and `[^a]` one byte of these, and a backslash takes
the next byte for itself. The rules are those of Redis' `stringmatchlen`, also where a bracket is
not closed or a range is the wrong way round. A pattern becomes a regular expression; runs of `*`
become one, and of what a `*` has matched nothing is tried again once what follows it was found, so
that matching takes no more than pattern times key.
"""

import re
from functools import lru_cache
from typing import Final

_MAGIC: Final = re.compile(rb"[*?\[\\]")


class Glob:
    """A compiled pattern."""

    __slots__ = ("_regex", "literal", "pattern")

    def __init__(self, pattern: bytes) -> None:
        self.pattern: Final = pattern
        found = _MAGIC.search(pattern)
        #: What all that matches begins with.
        self.literal: Final = pattern if found is None else pattern[: found.start()]
        self._regex: Final = _compile(pattern)

    @property
    def exact(self) -> bool:
        """Whether it matches just its own text."""
        return self.literal == self.pattern

    def matches(self, text: bytes) -> bool:
        """Whether the pattern matches all of the text."""
        return self._regex.fullmatch(text) is not None


@lru_cache(maxsize=256)
def _compile(pattern: bytes) -> re.Pattern[bytes]:
    segments: list[list[bytes]] = [[]]
    place = 0
    while place < len(pattern):
        character = pattern[place : place + 1]
        if character == b"*":
            if segments[-1] or len(segments) == 1:
                segments.append([])
            place += 1
            continue
        if character == b"?":
            segments[-1].append(b".")
        elif character == b"[":
            place = _bracket(pattern, place + 1, segments[-1])
            continue
        else:
            if character == b"\\" and place + 1 < len(pattern):
                place += 1
                character = pattern[place : place + 1]
            segments[-1].append(re.escape(character))
        place += 1
    texts = [b"".join(segment) for segment in segments]
    if len(texts) == 1:
        return re.compile(texts[0], re.DOTALL)
    first, *middle, last = texts
    # Each piece at its first place behind the one before: an atomic group does not look for others.
    found = b"".join(b"(?>.*?" + piece + b")" for piece in middle)
    return re.compile(first + found + b".*" + last, re.DOTALL)


def _bracket(pattern: bytes, place: int, pieces: list[bytes]) -> int:
    """Read what follows `[`; returns the place behind the `]`, or the end where there is none."""
    negated = pattern[place : place + 1] == b"^"
    place += negated
    members: set[int] = set()
    while place < len(pattern):
        character = pattern[place]
        if character == 0x5C and place + 1 < len(pattern):
            place += 1
            members.add(pattern[place])
        elif character == 0x5D:
            place += 1
            break
        elif place + 2 < len(pattern) and pattern[place + 1] == 0x2D:
            low, high = sorted((character, pattern[place + 2]))
            members.update(range(low, high + 1))
            place += 2
        else:
            members.add(character)
        place += 1
    if negated:
        members = set(range(256)) - members
    if not members:
        pieces.append(b"(?!)")
    else:
        pieces.append(b"[" + b"".join(b"\\x%02x" % member for member in sorted(members)) + b"]")
    return place
