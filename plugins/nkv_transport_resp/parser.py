"""Parser: commands out of what a client sends. Without sockets and without time.

Redis' protocol has two forms of a command: an array of bulk strings, which clients send, and a line
of words, for people. hiredis reads the first, and much else, so that it is given only what has that
form beyond doubt: whole commands with lengths of a few digits and values without line ends. All the
rest (half commands, values with line ends, lines, nonsense) goes the long way, which follows
`processMultibulkBuffer` and `processInlineBuffer` of Redis in what it takes and what it answers.
"""

import re
import secrets
from itertools import chain, islice
from typing import Any, Final

import hiredis

from .inline import split_line

Command = list[bytes]

#: Whole commands that may be given to hiredis. It makes room for as many elements as are announced,
#: so nothing in them, not even a value, may announce many.
_PLAIN: Final = re.compile(
    rb"(?:\*[1-9][0-9]{0,3}+\r\n(?:\$(?:0|[1-9][0-9]{0,6}+)\r\n"
    rb"[^\r*~>%|]*+(?:[*~>%|](?![0-9]{5})[^\r*~>%|]*+)*+\r\n)++)*+"
)
#: Comes behind what hiredis is given, so that it can be seen whether it has read all of that.
_MARK: Final = secrets.token_hex(8).encode()
_MARK_LINE: Final = b"+" + _MARK + b"\r\n"
_NUMBER: Final = re.compile(rb"[+-]?[0-9]{1,19}")
#: Of one line: a command typed by a person, or the header of an array or a string.
_LINE_BYTES: Final = 64 * 1024
#: Bytes that are worth another look by hiredis.
_WORTH_IT: Final = 64


class Hostile(Exception):
    """What the client sends is no command, and there is no telling where the next one begins."""


class Parser:
    """Reads the commands of one client."""

    __slots__ = (
        "_arguments",
        "_buffer",
        "_bulk",
        "_left",
        "_max_arguments",
        "_max_bulk",
        "_max_query",
        "_place",
        "_reader",
        "_size",
    )

    def __init__(self, max_arguments: int, max_bulk: int, max_query: int) -> None:
        self._max_arguments: Final = max_arguments
        self._max_bulk: Final = max_bulk
        self._max_query: Final = max_query
        self._reader: Any = None  # a hiredis.Reader, without anything in it
        self._buffer = bytearray()
        self._place = 0  # of what was not looked at yet
        self._arguments: Command = []  # of the command that is not whole
        self._left = 0  # how many it still lacks
        self._bulk: int | None = None  # length of the next one, once it is known
        self._size = 0  # bytes of those that are there

    @property
    def waiting(self) -> int:
        """Bytes that are held of what is not whole."""
        return len(self._buffer) - self._place + self._size

    def feed(self, data: bytes) -> tuple[list[Command], str | None]:
        """Take what has come; returns whole commands, and why nothing more can be read, if so.

        An empty command asks for nothing and is left out.
        """
        commands: list[Command] = []
        if not self._buffer and not self._left:
            data = self._plain(data, commands)
            if not data:
                return commands, None
        self._buffer += data
        try:
            command = self._next()
            if command is not None and len(self._buffer) - self._place >= _WORTH_IT:
                # What was half there is whole now; what comes behind it may be plain.
                if command:
                    commands.append(command)
                data = bytes(memoryview(self._buffer)[self._place :])
                self._place = 0
                self._buffer = bytearray(self._plain(data, commands))
                command = self._next()
            while command is not None:
                if command:
                    commands.append(command)
                command = self._next()
        except Hostile as error:
            return commands, str(error)
        if self._place:
            del self._buffer[: self._place]
            self._place = 0
        return commands, None

    def _plain(self, data: bytes, commands: list[Command]) -> bytes:
        """Read what is plain; returns what is left."""
        found = _PLAIN.match(data)
        end = 0 if found is None else found.end()
        if not end:
            return data
        reader = self._reader
        if reader is None:
            reader = self._reader = hiredis.Reader()
        begin = len(commands)
        if self._read(reader, data, end, commands):
            return data[end:] if end < len(data) else b""
        # The lengths say otherwise: a value has what looks like the beginning of the next one.
        self._reader = None
        del commands[begin:]
        return data

    def _read(self, reader: Any, data: bytes, end: int, commands: list[Command]) -> bool:
        """Read commands with hiredis; whether it found just these, and nothing was left over."""
        begin = len(commands)
        gets = reader.gets
        try:
            reader.feed(data, 0, end)
            while (command := gets()) is not False:
                commands.append(command)
            reader.feed(_MARK_LINE)
            if gets() != _MARK:
                return False  # it has become part of a command that was not whole
            words = list(chain.from_iterable(islice(commands, begin, None)))
            b"".join(words)  # nothing but strings can be joined
        except (hiredis.HiredisError, TypeError):
            return False
        return data.count(b"\r\n", 0, end) == len(commands) - begin + 2 * len(words)

    # --- the long way -----------------------------------------------------------------------------

    def _next(self) -> Command | None:
        """The next command, or None where it is not whole. Raises `Hostile`."""
        if not self._left:
            buffer, place = self._buffer, self._place
            if place >= len(buffer):
                return None
            if buffer[place] != 0x2A:  # *
                return self._line_of_words()
            line = self._line("too big mbulk count string")
            if line is None:
                return None
            count = _number(line[1:])
            if count is None or count > self._max_arguments:
                raise Hostile("Protocol error: invalid multibulk length")
            if count <= 0:
                return []
            self._left, self._arguments, self._size = count, [], 0
        while self._left:
            if not self._argument():
                return None
        arguments, self._arguments, self._size = self._arguments, [], 0
        return arguments

    def _argument(self) -> bool:
        """Read one more argument; whether it was whole."""
        if self._bulk is None:
            line = self._line("too big bulk count string")
            if line is None:
                return False
            if line[:1] != b"$":
                got = line[:1].decode("latin-1") or "\\r"
                raise Hostile(f"Protocol error: expected '$', got '{got}'")
            length = _number(line[1:])
            if length is None or not 0 <= length <= self._max_bulk:
                raise Hostile("Protocol error: invalid bulk length")
            if self._size + length > self._max_query:
                raise Hostile("Protocol error: the command is too large")
            self._bulk = length
        end = self._place + self._bulk
        if len(self._buffer) < end + 2:
            return False
        self._arguments.append(bytes(memoryview(self._buffer)[self._place : end]))
        self._size += self._bulk
        self._place = end + 2  # of the line end, as Redis does, only that it is there matters
        self._bulk = None
        self._left -= 1
        return True

    def _line(self, too_big: str) -> bytes | None:
        """The next line without its end, or None where it is not whole."""
        end = self._buffer.find(b"\r", self._place, self._place + _LINE_BYTES)
        if end < 0:
            if len(self._buffer) - self._place > _LINE_BYTES:
                raise Hostile(f"Protocol error: {too_big}")
            return None
        if end + 1 >= len(self._buffer):
            return None
        line = bytes(memoryview(self._buffer)[self._place : end])
        self._place = end + 2
        return line

    def _line_of_words(self) -> Command | None:
        end = self._buffer.find(b"\n", self._place, self._place + _LINE_BYTES)
        if end < 0:
            if len(self._buffer) - self._place > _LINE_BYTES:
                raise Hostile("Protocol error: too big inline request")
            return None
        line = bytes(memoryview(self._buffer)[self._place : end])
        self._place = end + 1
        words = split_line(line.removesuffix(b"\r"))
        if words is None:
            raise Hostile("Protocol error: unbalanced quotes in request")
        return words


def _number(text: bytes) -> int | None:
    return int(text) if _NUMBER.fullmatch(text) else None
