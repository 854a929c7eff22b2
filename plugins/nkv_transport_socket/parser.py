"""Parser: bytes of a connection in, requests out. It reads no socket and keeps no time.

Each request says by its first bytes what dialect it is of: `{` begins JSON, a letter begins a line,
anything else the length of a frame. A frame whose length begins like a letter is told by its fourth
byte, which is 0 for every sane length and in no text.
"""

import re
from typing import Final

from .messages import NO_ID, DialectName, Hostile, Incoming, Malformed
from .reading import read_json, read_line

_LENGTH: Final = 4  #: bytes of a frame's length
_BRACE: Final = ord("{")
_TEXT: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz{")

#: GET, PUT and TRACE are verbs of these dialects too; of HTTP they name a path or an address.
_HTTP: Final = re.compile(
    rb"(?:POST|HEAD|DELETE|OPTIONS|CONNECT|PATCH|PRI|PROPFIND|PROPPATCH|MKCOL|COPY|MOVE|LOCK|UNLOCK"
    rb"|REPORT|SEARCH)[ \r\n]"
    rb"|(?:GET|PUT|TRACE) (?:/|https?://)"
    rb"|(?:GET|PUT|TRACE) [^ \r\n]* HTTP/"
    rb"|(?i:host):"
)
_LOOK: Final = 4096  #: how far HTTP is looked for


class Parser:
    """Takes the bytes of one connection apart."""

    def __init__(self, limit: int) -> None:
        """`limit`: the most bytes of one line or frame."""
        self._limit = limit
        self._buffer = bytearray()
        self._searched = 0
        self._text = False  # whether so few bytes are text for certain
        self._taken = False  # whether a request was taken without its newline
        self._dead = False

    @property
    def pending(self) -> bool:
        """Whether a part of a request is waiting for the rest of it."""
        return bool(self._buffer)

    @property
    def doubtful(self) -> bool:
        """Whether what is waiting may be whole already: see `quiet`."""
        buffer = self._buffer
        if not buffer or buffer[0] not in _TEXT:
            return False
        if len(buffer) < _LENGTH:
            return b"\n" in buffer
        return buffer[3] != 0 and (
            buffer.startswith(b"SUB ") or (buffer[0] == _BRACE and buffer.endswith(b"}"))
        )

    def feed(self, data: bytes) -> None:
        """Take what the client has sent. After what was fatal it is thrown away."""
        if not self._dead:
            self._buffer += data

    def next(self) -> Incoming | None:
        """The next request, None where it is not whole yet."""
        buffer = self._buffer
        if self._taken and buffer:
            self._taken = False
            if buffer[0] == ord("\n"):
                del buffer[:1]  # that of a request that was taken without it
        if not buffer:
            return None
        if buffer[0] not in _TEXT:
            return self._frame()
        if len(buffer) < _LENGTH:
            return self._line() if self._text else None
        return self._line() if buffer[3] else self._frame()

    def quiet(self) -> Incoming | None:
        """The request that is whole if nothing follows it, which is how one client subscribes.

        To be called where `doubtful` says so, after nothing has come for a while, or at the end.
        """
        if not self.doubtful:
            return None
        if len(self._buffer) < _LENGTH:
            self._text = True
            return self.next()
        line = bytes(self._buffer)
        incoming = _read(line)
        if isinstance(incoming, Malformed):
            return None
        self._cut(len(line))
        self._taken = True
        return incoming

    def given_up(self) -> Malformed:
        """What to answer for a part of a request whose rest does not come."""
        framed = not self._buffer or self._buffer[0] not in _TEXT or self._buffer[3:4] == b"\0"
        dialect: DialectName = "framed" if framed else _dialect(self._buffer)
        return self._fatal(dialect, "half a request")

    def _line(self) -> Incoming | None:
        buffer = self._buffer
        end = buffer.find(b"\n", self._searched)
        if _HTTP.match(buffer, 0, _LOOK):
            return self._hostile()
        if max(end, 0) > self._limit or (end < 0 and len(buffer) > self._limit):
            return self._fatal(_dialect(buffer), "too long a line")
        if end < 0:
            self._searched = len(buffer)
            return None
        line = bytes(buffer[:end])
        self._cut(end + 1)
        return _read(line)

    def _frame(self) -> Incoming | None:
        buffer = self._buffer
        if len(buffer) < _LENGTH:
            return None
        length = int.from_bytes(buffer[:_LENGTH], "little")
        if length > self._limit:
            return self._fatal("framed", "too long a frame")
        if _HTTP.match(buffer, _LENGTH, _LENGTH + min(length, _LOOK)):
            return self._hostile()
        if len(buffer) < _LENGTH + length:
            return None
        line = bytes(buffer[_LENGTH : _LENGTH + length])
        self._cut(_LENGTH + length)
        return read_line("framed", line.removesuffix(b"\n"))

    def _cut(self, end: int) -> None:
        del self._buffer[:end]
        self._searched = 0
        self._text = False

    def _hostile(self) -> Hostile:
        self._die()
        return Hostile()

    def _fatal(self, dialect: DialectName, reason: str) -> Malformed:
        self._die()
        return Malformed(dialect, NO_ID, reason, fatal=True)

    def _die(self) -> None:
        self._dead = True
        self._cut(len(self._buffer))


def _dialect(line: bytes | bytearray) -> DialectName:
    return "json" if line[0] == _BRACE else "line"


def _read(line: bytes) -> Incoming:
    return read_json(line) if line[0] == _BRACE else read_line("line", line)
