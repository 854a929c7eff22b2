"""Frames: items of a watch as the bytes of Server-Sent Events.

An event is `id` (the token, where there is one), `event` and one line of `data`, which is JSON.
"""

from typing import Final

import msgspec

from nkv_core.announcements import announce, change_json, name_of
from nkv_core.contracts.watch import Changed, Hub, Item
from nkv_core.records import Token

#: The form of `Changed.form` under which the frame of a change is kept, for all who are told of it.
FORM: Final = "sse-1"

_encode: Final = msgspec.json.Encoder().encode


def frame(item: Item, hub: Hub) -> bytes:
    """The event that tells of an item."""
    if isinstance(item, Changed):
        return item.form(FORM, _frame_of_change)
    name, token, data = announce(item, hub.token.history)
    return _frame(name, token, data)


def frame_of_place(token: Token) -> bytes:
    """What sets the id to resume from, and is no event: there is no data in it."""
    return b"id: %b\n\n" % str(token).encode()


def _frame_of_change(changed: Changed) -> bytes:
    token = changed.token
    # Not by `announce`, which would keep the JSON a second time beside the frame.
    data = _encode(change_json(changed.change, changed.history))
    return _frame(name_of(changed.change), None if token is None else str(token), data)


def _frame(name: str, token: str | None, data: bytes) -> bytes:
    head = "" if token is None else f"id: {token}\n"
    return b"%bevent: %b\ndata: %b\n\n" % (head.encode(), name.encode(), data)
