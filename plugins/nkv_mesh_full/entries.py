"""Entries: changes, records and deletions as they are sent."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from nkv_core.contracts.keyspace import Foreign
from nkv_core.contracts.watch import Changed
from nkv_core.errors import BadRequest
from nkv_core.records import Change, RangeTombstone, Record, Tombstone, timestamp_at

#: Kind, key, timestamp, origin; and of a record its value and, if it has one, its expiry.
_RECORD: Final = 0
_TOMBSTONE: Final = 1
_CLEAR: Final = 2
#: Under this name a change that was packed is kept for all who send it.
_FORM: Final = "mesh.full 1"

_encode: Final = msgspec.msgpack.Encoder().encode


class _Packed(msgspec.Struct, frozen=True, array_like=True):
    """The form of an entry, for decoding strictly."""

    kind: int
    key: str
    modified: int
    origin: int
    value: bytes | None = None
    expires: int | None = None


_decoder: Final = msgspec.msgpack.Decoder(_Packed)


def pack(entry: Foreign) -> bytes:
    """A record, tombstone or range tombstone as bytes. Revisions are each node's own: left out."""
    if isinstance(entry, Record):
        fields: list[Any] = [
            _RECORD, entry.key, entry.modified, entry.origin, entry.value
        ]  # fmt: skip
        if entry.expires is not None:
            fields.append(entry.expires)
        return _encode(fields)
    if isinstance(entry, Tombstone):
        return _encode([_TOMBSTONE, entry.key, entry.modified, entry.origin])
    return _encode([_CLEAR, entry.prefix, entry.modified, entry.origin])


def unpack(packed: msgspec.Raw, latest: int) -> Foreign:
    """The reverse of `pack`. Raises `BadRequest` where it is malformed, or dated after `latest`
    (milliseconds since 1970).
    """
    try:
        one = _decoder.decode(packed)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadRequest(f"An entry cannot be read: {error}.") from None
    if one.modified > timestamp_at(latest):
        raise BadRequest("An entry is dated too far ahead of this node's clock.")
    if one.kind == _RECORD and one.value is not None:
        return Record(one.key, one.value, 0, one.modified, one.origin, one.expires)
    if one.kind == _TOMBSTONE:
        return Tombstone(one.key, 0, one.modified, one.origin)
    if one.kind == _CLEAR:
        return RangeTombstone(one.key, 0, one.modified, one.origin)
    raise BadRequest("An entry is of no known kind.")


def unpack_all(packed: Sequence[msgspec.Raw], latest: int) -> list[Foreign]:
    """`unpack` of each."""
    return [unpack(one, latest) for one in packed]


def form_of(changed: Changed) -> bytes:
    """A change as bytes, packed once for all who are sent it."""
    return changed.form(_FORM, _pack_change)


def _pack_change(changed: Changed) -> bytes:
    return pack(foreign(changed.change))


def foreign(change: Change) -> Foreign:
    """A change as another node is to have it."""
    if change.kind == "clear":
        return RangeTombstone(change.key, 0, change.modified, change.origin)
    if change.kind == "delete" or change.value is None:
        return Tombstone(change.key, 0, change.modified, change.origin)
    return Record(change.key, change.value, 0, change.modified, change.origin, change.expires)
