"""Message: what is published for one item of the watch.

A key is the end of its subject as it stands, so that the way back is to take the prefix away.
"""

from typing import Final, NamedTuple

import msgspec

from nkv_core.announcements import announce, change_json
from nkv_core.contracts.watch import Changed, Gap
from nkv_core.nats_link import is_subject

_encode: Final = msgspec.json.Encoder().encode


class Message(NamedTuple):
    """One message. `headers` has `Nats-Msg-Id`, by which streams know repetitions."""

    subject: str
    payload: bytes
    headers: dict[str, str]


def message_of(item: Changed | Gap, prefix: str, history: str) -> Message | None:
    """The message for a change or a gap; None where its key cannot be in a subject."""
    subject = subject_of(item, prefix)
    if subject is None:
        return None
    told = announce(item, history)
    token = told.token or ""
    known_by = f"{item.after}..{item.upto}" if isinstance(item, Gap) else token
    headers = {"Nkv-Event": told.name, "Nkv-Token": token, "Nats-Msg-Id": known_by}
    return Message(subject, told.data, headers)


def without_value(item: Changed, message: Message) -> Message:
    """The message for a change whose value is more than the server takes."""
    change = item.change
    fields = change_json(msgspec.structs.replace(change, value=None), item.history)
    fields["value_left_out"] = len(change.value or b"")
    return message._replace(payload=_encode(fields))


def subject_of(item: Changed | Gap, prefix: str) -> str | None:
    """Where an item is published; None where the key cannot be in a subject."""
    if isinstance(item, Gap):
        return f"{prefix}.gap"
    if item.change.kind == "clear":
        return f"{prefix}.clear"
    key = item.change.key
    return f"{prefix}.key.{key}" if is_subject(key) else None


def key_of(subject: str, prefix: str) -> str:
    """The reverse of `subject_of` for the change of a key."""
    return subject.removeprefix(f"{prefix}.key.")
