"""Message: what is POSTed for one item of the watch."""

import hashlib
import hmac

import msgspec

from nkv_core.announcements import announce
from nkv_core.contracts.watch import Changed, Gap


class Message(msgspec.Struct, frozen=True):
    """One POST, the same at every attempt.

    `id` is what a receiver knows repetitions by: the token of a change, and of a gap both its ends.
    """

    id: str
    event: str
    token: str
    key: str  #: the prefix of a clear; empty for a gap
    body: bytes

    def headers(self, secret: bytes | None) -> dict[str, str]:
        """The header fields; with a secret also the signature over the body."""
        fields = {
            "Content-Type": "application/json",
            "Idempotency-Key": self.id,
            "Nkv-Event": self.event,
            "Nkv-Token": self.token,
        }
        if secret is not None:
            digest = hmac.new(secret, self.body, hashlib.sha256).hexdigest()
            fields["Nkv-Signature"] = f"sha256={digest}"
        return fields


def message_of(item: Changed | Gap, history: str) -> Message:
    """The message for a change or a gap that no snapshot follows."""
    told = announce(item, history)
    token = told.token or ""
    known_by = f"{item.after}..{item.upto}" if isinstance(item, Gap) else token
    body = b'{"event":"%s","token":"%s","data":%s}' % (
        told.name.encode(),
        token.encode(),
        told.data,
    )
    key = "" if isinstance(item, Gap) else item.change.key
    return Message(known_by, told.name, token, key, body)
