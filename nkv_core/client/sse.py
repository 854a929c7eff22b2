"""Server-Sent Events: from pieces of bytes, cut anywhere, to events of bounded size.

What the HTTP library has for this cannot be closed in the middle of a stream on trio.
"""

from typing import Final

import msgspec

from nkv_core.client.failures import unexpected

_BOM: Final = b"\xef\xbb\xbf"


class Event(msgspec.Struct, frozen=True, gc=False):
    """One event. One that has no data sets the id and nothing else."""

    name: str
    id: str  #: the last of this connection so far; empty where there was none
    data: bytes


class EventDecoder:
    """Takes the bytes of one connection. An event that is not complete at its end is none."""

    def __init__(self, limit: int) -> None:
        """`limit`: bytes of one event."""
        self._limit: Final = limit
        self._parts: list[bytes] = []  # of a line without its end
        self._waiting = 0  # bytes in these
        self._size = 0  # bytes of the lines of the event so far
        self._begun = False
        self._name = ""
        self._id = ""
        self._data: list[bytes] = []
        self._fields = False

    def feed(self, piece: bytes) -> list[Event]:
        """The events that are complete with these bytes. Raises where one has more than `limit`."""
        self._parts.append(piece)
        self._waiting += len(piece)
        events: list[Event] = []
        if b"\n" in piece or b"\r" in piece:
            for line in self._lines():
                self._size += len(line)
                if self._size > self._limit:
                    break
                if line:
                    self._field(line)
                else:
                    if self._fields:
                        events.append(self._event())
                    self._size = 0
        if self._size + self._waiting > self._limit:
            raise unexpected(f"An event is longer than the {self._limit} bytes that are read.")
        return events

    def _lines(self) -> list[bytes]:
        """The lines that are complete, without their ends."""
        text = b"".join(self._parts)
        held = b""
        if b"\r" in text:
            if text.endswith(b"\r"):  # a line feed may follow, which belongs to it
                text, held = text[:-1], b"\r"
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = text.split(b"\n")
        self._parts = [rest + held]
        self._waiting = len(self._parts[0])
        if lines and not self._begun:
            self._begun = True
            lines[0] = lines[0].removeprefix(_BOM)
        return lines

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._name = value.decode(errors="replace")
        elif name == b"id" and b"\0" not in value:
            self._id = value.decode(errors="replace")
        else:
            return  # a comment, a pause that the node proposes, or what is not known
        self._fields = True

    def _event(self) -> Event:
        event = Event(self._name or "message", self._id, b"\n".join(self._data))
        self._name, self._data, self._fields = "", [], False
        return event
