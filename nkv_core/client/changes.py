"""What a watch tells, and how it is read from what the node sends."""

from typing import Final, Literal

import msgspec

from nkv_core.client.failures import unexpected, with_code
from nkv_core.errors import BadRequest, NkvError
from nkv_core.times import parse_time, parse_timestamp

Kind = Literal["put", "delete", "expire", "touch", "clear"]
Mode = Literal["every", "latest"]

KINDS: Final[tuple[Kind, ...]] = ("put", "delete", "expire", "touch", "clear")


class Changed(msgspec.Struct, frozen=True, gc=False):
    """A change, or a record of a snapshot, which is told as a put.

    A clear ends every record whose key begins with `key` and that is not newer.
    """

    kind: Kind
    key: str  #: for a clear, the prefix
    value: bytes | None  #: of a put and a touch
    version: str | None  #: None for a change within a snapshot
    previous: str | None  #: version of the record that was there before
    modified: int  #: timestamp of the write (`records.milliseconds_of` gives its time)
    expires: int | None  #: milliseconds since 1970
    cause: str | None  #: None for a record of a snapshot
    token: str | None  #: where to resume behind it; None within a snapshot


class SnapshotStart(msgspec.Struct, frozen=True):
    """A snapshot begins: what is told up to its end replaces all that was told before.

    One that was cut off begins again, with another of these.
    """

    token: None = None


class SnapshotEnd(msgspec.Struct, frozen=True):
    """All that was told since the snapshot began is the store at `token`."""

    token: str


class Gap(msgspec.Struct, frozen=True):
    """Changes behind `after`, up to and with `upto`, are lost; None where the place is not known.

    With `resync` a snapshot follows, which begins with `SnapshotStart`.
    """

    after: str | None
    upto: str | None
    resync: bool
    token: str | None = None  #: where to resume; None where a snapshot follows


WatchItem = Changed | SnapshotStart | SnapshotEnd | Gap


class _Told(msgspec.Struct):
    modified: str
    key: str | None = None
    prefix: str | None = None
    value: str | None = None
    value_base64: bytes | None = None
    version: str | None = None
    previous: str | None = None
    expires: str | None = None
    cause: str | None = None


class _Lost(msgspec.Struct):
    after: str
    upto: str
    snapshot_follows: bool = False


class _End(msgspec.Struct):
    code: str
    detail: str = ""


_told: Final = msgspec.json.Decoder(_Told)
_lost: Final = msgspec.json.Decoder(_Lost)
_end: Final = msgspec.json.Decoder(_End)


def read_change(kind: Kind, data: bytes, token: str | None) -> Changed:
    """Read a change. Raises the error of a reply that no node gives."""
    try:
        told = _told.decode(data)
        key = told.prefix if kind == "clear" else told.key
        if key is None:
            raise BadRequest("it has no key")
        value = told.value_base64 if told.value is None else told.value.encode()
        if value is None and kind in ("put", "touch"):
            raise BadRequest("it has no value")
        return Changed(
            kind,
            key,
            value,
            told.version,
            told.previous,
            parse_timestamp(told.modified),
            None if told.expires is None else parse_time(told.expires),
            told.cause,
            token,
        )
    except (msgspec.MsgspecError, BadRequest) as error:
        raise unexpected(f"A change cannot be read: {error}.") from None


def read_gap(data: bytes, token: str | None) -> Gap:
    """Read a gap. Raises as `read_change`."""
    try:
        lost = _lost.decode(data)
    except msgspec.MsgspecError as error:
        raise unexpected(f"A gap cannot be read: {error}.") from None
    resync = lost.snapshot_follows
    return Gap(lost.after, lost.upto, resync, None if resync else token)


def read_end(data: bytes) -> NkvError:
    """Why the node has ended the watch. Raises as `read_change`."""
    try:
        end = _end.decode(data)
    except msgspec.MsgspecError as error:
        raise unexpected(f"The end of a watch cannot be read: {error}.") from None
    return with_code(end.code, 503, end.detail or "The node has ended the watch.")
