"""Announcements: how changes are told in JSON, the same over every protocol that carries it.

An announcement has a name (`put`, `delete`, `expire`, `touch`, `clear`, `gap`, `snapshot-end`,
`end`), a watch token where one can resume behind it, and a JSON object. That of a change is made
once, however many are told of it.
"""

from typing import Any, Final, NamedTuple

import msgspec

from nkv_core.auth import GuardedKeyspace
from nkv_core.contracts.handlers import Request
from nkv_core.contracts.watch import Changed, Ended, Gap, Hub, Item, SnapshotEnd, SnapshotRecord
from nkv_core.operations import record_json, value_json
from nkv_core.records import Change, Version
from nkv_core.times import format_time, format_timestamp

#: The form of `Changed.form` under which the JSON of a change is kept.
FORM: Final = "announcement-1"

_encode: Final = msgspec.json.Encoder().encode


class Announcement(NamedTuple):
    """What is told of one item of a watch. `data` is a JSON object."""

    name: str
    token: str | None
    data: bytes


def announce(item: Item, history: str) -> Announcement:
    """What to tell of an item; `history` is that of the hub, for the versions in a snapshot."""
    token = None if item.token is None else str(item.token)
    match item:
        case Changed():
            return Announcement(name_of(item.change), token, item.form(FORM, _encoded))
        case SnapshotRecord(record):
            return Announcement("put", None, _encode(record_json(record, history)))
        case SnapshotEnd():
            return Announcement("snapshot-end", token, _encode({"token": token}))
        case Gap(after, upto, resync):
            lost = {"after": str(after), "upto": str(upto), "snapshot_follows": resync}
            return Announcement("gap", token, _encode(lost))
        case Ended(_, code, detail):
            return Announcement("end", token, _encode({"code": code, "detail": detail}))


def name_of(change: Change) -> str:
    """What a change is called: its kind, except that a record that expired is told as `expire`."""
    return "expire" if change.kind == "delete" and change.cause == "expire" else change.kind


def change_json(change: Change, history: str | None) -> dict[str, Any]:
    """A change for JSON. Within a snapshot the history is None, and there are no versions."""
    fields: dict[str, Any] = {"prefix" if change.kind == "clear" else "key": change.key}
    if change.value is not None:
        fields.update(value_json(change.value))
    if history is not None:
        fields["version"] = str(Version(history, change.revision))
        if change.previous is not None:
            fields["previous"] = str(Version(history, change.previous))
    fields["modified"] = format_timestamp(change.modified)
    if change.expires is not None:
        fields["expires"] = format_time(change.expires)
    fields["cause"] = change.cause
    return fields


def hub_of(request: Request) -> Hub:
    """The watch hub, as far as the one who asks may watch: it raises `Forbidden` for the rest."""
    keyspace, hub = request.keyspace, request.node.hub
    return keyspace.guard(hub) if isinstance(keyspace, GuardedKeyspace) else hub


def _encoded(changed: Changed) -> bytes:
    return _encode(change_json(changed.change, changed.history))
