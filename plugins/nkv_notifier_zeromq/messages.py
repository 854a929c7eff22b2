"""Messages: what is published for one item of the stream.

Three frames: the topic, a JSON object about the message, and the JSON object that every protocol
carries for this item. ZeroMQ filters by the beginning of the topic, which is the key. What concerns
more than one key has the topic `CONTROL`, which is no key's beginning.
"""

from typing import Final

import msgspec

from nkv_core.announcements import announce
from nkv_core.contracts.watch import Changed, Gap
from nkv_core.records import Token

#: Topic of clears, gaps and heartbeats.
CONTROL: Final = b"\x00"

Frames = tuple[bytes, bytes, bytes]

_encode: Final = msgspec.json.Encoder().encode


class About(msgspec.Struct, frozen=True):
    """The second frame."""

    event: str
    token: str  #: where a watch over another protocol goes on behind this
    publisher: str  #: another one may have been told of what this one was not
    sequence: int  #: of this publisher, from 1; a heartbeat has that of the message before it


class Sequence:
    """The messages of one publisher, in order."""

    def __init__(self, publisher: str) -> None:
        self.publisher: Final = publisher
        self.last = 0

    def of(self, item: Changed | Gap, history: str) -> Frames:
        """The next message."""
        told = announce(item, history)
        one_key = isinstance(item, Changed) and item.change.kind != "clear"
        topic = item.change.key.encode() if isinstance(item, Changed) and one_key else CONTROL
        self.last += 1
        return topic, self._about(told.name, told.token or ""), told.data

    def heartbeat(self, token: Token) -> Frames:
        """A message that only says how far the stream is; it has no number of its own."""
        return CONTROL, self._about("heartbeat", str(token)), b"{}"

    def _about(self, event: str, token: str) -> bytes:
        return _encode(About(event, token, self.publisher, self.last))
