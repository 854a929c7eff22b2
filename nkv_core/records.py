"""What is stored and what is told: records, tombstones, changes, versions, watch tokens, time.

Times come in two kinds. A *timestamp* is hybrid logical time: 48 bits of milliseconds since 1970
and a 16-bit counter, in one integer; it orders writes across nodes, ties going to the greater node
id. An *expiry* is plain milliseconds since 1970.
"""

import secrets
import struct
import time
from collections.abc import Callable
from typing import Final, Literal

import msgspec

from nkv_core.errors import InvalidToken, InvalidVersion, StorageFailed

Kind = Literal["put", "delete", "touch", "clear"]

COUNTER_BITS: Final = 16
_TOKEN_FORM: Final = "1"  # noqa: S105  # no secret: the form of a watch token

_HEADER: Final = struct.Struct(">BQQQ")
_EXPIRES: Final = struct.Struct(">Q")
_HAS_EXPIRY: Final = 0x01
_TOMBSTONE: Final = 0x02


# `gc=False` is for these leaves alone: they hold text, bytes and numbers, never another object.
class Record(msgspec.Struct, frozen=True, gc=False):
    """One key with its value, as committed."""

    key: str
    value: bytes
    revision: int  #: order of commit in this history, from 1
    modified: int  #: timestamp of the write
    origin: int  #: id of the node where it was written
    expires: int | None = None  #: milliseconds since 1970

    def expired(self, now: int) -> bool:
        """Whether the record is past its expiry at `now` (milliseconds since 1970)."""
        return self.expires is not None and self.expires <= now

    def newer_than(self, other: "Record | Tombstone") -> bool:
        """Whether this write came after the other, by timestamp and then node id."""
        return (self.modified, self.origin) > (other.modified, other.origin)


class Tombstone(msgspec.Struct, frozen=True, gc=False):
    """What a delete leaves for a while, so that an older copy elsewhere cannot bring it back."""

    key: str
    revision: int
    modified: int
    origin: int

    def newer_than(self, other: "Record | Tombstone") -> bool:
        """Whether this delete came after the other, by timestamp and then node id."""
        return (self.modified, self.origin) > (other.modified, other.origin)


class RangeTombstone(msgspec.Struct, frozen=True, gc=False):
    """What a clear leaves: every record that begins with `prefix` and is not newer is gone."""

    prefix: str
    revision: int
    modified: int
    origin: int

    def hides(self, record: Record | Tombstone) -> bool:
        """Whether the record lies in the range and is not newer than the clear."""
        return (record.modified, record.origin) <= (
            self.modified,
            self.origin,
        ) and record.key.startswith(self.prefix)


class Change(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One committed mutation. Watchers, meshes and metrics all read these, and nothing else.

    A clear ends the records below its prefix that are not newer than itself, by timestamp and then
    node id. Of a clear made on this node that is all of them; one that was replicated may leave
    some.
    """

    kind: Kind
    cause: str  #: the operation's name, `expire`, `replicated` or `merged`
    key: str  #: for a clear, the prefix
    revision: int
    modified: int  #: timestamp
    origin: int
    value: bytes | None = None  #: of a put and a touch
    previous: int | None = None  #: revision of the record that was there before
    expires: int | None = None  #: of a put and a touch


def pack_record(record: Record) -> bytes:
    """Pack a record but its key: flags, revision, timestamp, origin, expiry if any, value."""
    if record.expires is None:
        return _HEADER.pack(0, record.revision, record.modified, record.origin) + record.value
    header = _HEADER.pack(_HAS_EXPIRY, record.revision, record.modified, record.origin)
    return header + _EXPIRES.pack(record.expires) + record.value


def unpack_record(key: str, packed: bytes) -> Record:
    """The reverse of `pack_record`. Raises `StorageFailed` where the bytes are none of ours."""
    try:
        flags, revision, modified, origin = _HEADER.unpack_from(packed)
        if flags == 0:
            return Record(key, packed[_HEADER.size :], revision, modified, origin)
        if flags == _HAS_EXPIRY:
            (expires,) = _EXPIRES.unpack_from(packed, _HEADER.size)
            value = packed[_HEADER.size + _EXPIRES.size :]
            return Record(key, value, revision, modified, origin, expires)
    except struct.error:
        pass
    raise StorageFailed(f"The stored record of {key!r} is damaged.")


def pack_tombstone(tombstone: Tombstone | RangeTombstone) -> bytes:
    """Pack all of a tombstone but its key or prefix."""
    return _HEADER.pack(_TOMBSTONE, tombstone.revision, tombstone.modified, tombstone.origin)


def unpack_tombstone(key: str, packed: bytes) -> Tombstone:
    """The reverse of `pack_tombstone` for a single key. Raises `StorageFailed`."""
    return Tombstone(key, *_tombstone_fields(key, packed))


def unpack_range_tombstone(prefix: str, packed: bytes) -> RangeTombstone:
    """The reverse of `pack_tombstone` for a prefix. Raises `StorageFailed`."""
    return RangeTombstone(prefix, *_tombstone_fields(prefix, packed))


def _tombstone_fields(key: str, packed: bytes) -> tuple[int, int, int]:
    if len(packed) != _HEADER.size or packed[0] != _TOMBSTONE:
        raise StorageFailed(f"The stored tombstone of {key!r} is damaged.")
    _, revision, modified, origin = _HEADER.unpack(packed)
    return revision, modified, origin


_change_encoder: Final = msgspec.msgpack.Encoder()
_change_decoder: Final = msgspec.msgpack.Decoder(list[Change])


def pack_changes(changes: list[Change]) -> bytes:
    """Pack changes for the change log (msgpack, one array for each change)."""
    return _change_encoder.encode(changes)


def unpack_changes(packed: bytes) -> list[Change]:
    """The reverse of `pack_changes`. Raises `StorageFailed` where the bytes are none of ours."""
    try:
        return _change_decoder.decode(packed)
    except msgspec.MsgspecError as error:
        raise StorageFailed(f"The stored change log is damaged: {error}.") from None


# --- versions and tokens --------------------------------------------------------------------------


def new_history() -> str:
    """A fresh history id: 64 random bits in hexadecimal."""
    return secrets.token_hex(8)


class Version(msgspec.Struct, frozen=True, gc=False):
    """Which write of which history a record is: the ETag, and what `--if-version` takes."""

    history: str
    revision: int

    def __str__(self) -> str:
        return f"{self.history}-{self.revision}"

    @classmethod
    def parse(cls, text: str) -> "Version":
        """Read what `str` gives. Raises `InvalidVersion`."""
        history, _, revision = text.rpartition("-")
        if not _is_history(history) or not _is_number(revision):
            raise InvalidVersion(f"{text[:80]!r} is not a version.")
        return cls(history, int(revision))


class Token(msgspec.Struct, frozen=True, gc=False):
    """A place in the change stream: everything up to and with `revision` has been seen."""

    history: str
    revision: int

    def __str__(self) -> str:
        return f"{_TOKEN_FORM}.{self.history}.{self.revision}"

    @classmethod
    def parse(cls, text: str) -> "Token":
        """Read what `str` gives. Raises `InvalidToken`, for a form of a later nkv too."""
        form, _, rest = text.partition(".")
        history, _, revision = rest.partition(".")
        if form != _TOKEN_FORM or not _is_history(history) or not _is_number(revision):
            raise InvalidToken(f"{text[:80]!r} is not a watch token of this node.")
        return cls(history, int(revision))


def _is_history(text: str) -> bool:
    return len(text) == 16 and all(character in "0123456789abcdef" for character in text)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 19


# --- time -----------------------------------------------------------------------------------------


def wall_clock() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def milliseconds_of(timestamp: int) -> int:
    """The milliseconds since 1970 in a timestamp."""
    return timestamp >> COUNTER_BITS


def counter_of(timestamp: int) -> int:
    """The logical counter in a timestamp."""
    return timestamp & ((1 << COUNTER_BITS) - 1)


def timestamp_at(milliseconds: int, counter: int = 0) -> int:
    """The timestamp of these milliseconds since 1970 and this counter."""
    return (milliseconds << COUNTER_BITS) | counter


class HybridClock:
    """Hybrid logical time: never behind the wall clock, never repeating, past all that was seen.

    Source of the algorithm: Kulkarni et al., "Logical Physical Clocks", 2014. Not thread-safe: the
    keyspace that owns it uses it from the one thread that commits.
    """

    __slots__ = ("_last", "_wall")

    def __init__(self, wall: Callable[[], int] = wall_clock, last: int = 0) -> None:
        """`wall` gives milliseconds since 1970; `last` is the greatest timestamp known so far."""
        self._wall = wall
        self._last = last

    @property
    def last(self) -> int:
        """The greatest timestamp given or observed so far."""
        return self._last

    def now(self) -> int:
        """A timestamp greater than every one given or observed before."""
        now = self._wall() << COUNTER_BITS
        self._last = now = now if now > self._last else self._last + 1
        return now

    def observe(self, timestamp: int) -> None:
        """Take note of a timestamp from elsewhere."""
        self._last = max(self._last, timestamp)
