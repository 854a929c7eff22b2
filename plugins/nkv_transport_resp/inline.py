r"""Inline: a line of words, as a person types them.

The quoting is that of Redis' `sdssplitargs`: in double quotes `\xHH`, `\n`, `\r`, `\t`, `\a`, `\b`
and a backslash before anything else; in single quotes `\'` alone. A closing quote is followed by a
space or nothing.
"""

from typing import Final

_SPACE: Final = b" \t\n\r\v\f\0"
_ESCAPED: Final = {0x6E: 0x0A, 0x72: 0x0D, 0x74: 0x09, 0x62: 0x08, 0x61: 0x07}
_HEXADECIMAL: Final = b"0123456789abcdefABCDEF"
_DOUBLE, _SINGLE, _BACKSLASH = b"\"'\\"


def split_line(line: bytes) -> list[bytes] | None:
    """The words of a line, or None where quotes are not balanced."""
    words: list[bytes] = []
    place = 0
    while True:
        while place < len(line) and line[place] in _SPACE:
            place += 1
        if place >= len(line):
            return words
        found = _word(line, place)
        if found is None:
            return None
        word, place = found
        words.append(word)


def _word(line: bytes, place: int) -> tuple[bytes, int] | None:
    """The word that begins here, and the place behind it."""
    word = bytearray()
    while place < len(line):
        character = line[place]
        if character in _SPACE:
            break
        if character in (_DOUBLE, _SINGLE):
            found = (_double if character == _DOUBLE else _single)(line, place + 1, word)
            if found is None or (found < len(line) and line[found] not in _SPACE):
                return None
            return bytes(word), found
        word.append(character)
        place += 1
    return bytes(word), place


def _double(line: bytes, place: int, word: bytearray) -> int | None:
    """Read up to the closing quote; returns the place behind it."""
    while place < len(line):
        character = line[place]
        if character == _DOUBLE:
            return place + 1
        if character == _BACKSLASH and place + 1 < len(line):
            digits = line[place + 2 : place + 4]
            if (
                line[place + 1] == 0x78
                and len(digits) == 2
                and all(d in _HEXADECIMAL for d in digits)
            ):
                word.append(int(digits, 16))
                place += 4
                continue
            place += 1
            character = _ESCAPED.get(line[place], line[place])
        word.append(character)
        place += 1
    return None


def _single(line: bytes, place: int, word: bytearray) -> int | None:
    while place < len(line):
        character = line[place]
        if character == _SINGLE:
            return place + 1
        if character == _BACKSLASH and line[place + 1 : place + 2] == b"'":
            place += 1
            character = _SINGLE
        word.append(character)
        place += 1
    return None
