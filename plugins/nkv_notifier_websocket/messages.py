"""Messages: what clients and node say to each other on `/v1/ws`. Each is one JSON object.

A client sends requests: `{"op": ..., "id": ..., ...}`. The node sends replies with the `id` of the
request, and events with the `subscription` that they belong to. README.md has all of them.
"""

from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from nkv_core.announcements import announce, change_json, name_of
from nkv_core.contracts.keyspace import Expect
from nkv_core.contracts.watch import Changed, Hub, Item, Mode
from nkv_core.errors import BadRequest, NkvError
from nkv_core.operations import expectation, expiry
from nkv_core.tagged import tagged

#: A request's id, and a subscription's name, are the client's choice.
Id = Annotated[str, Meta(max_length=128)] | int
#: The form of `Changed.form` under which an event is kept, but for its subscription.
FORM: Final = "websocket-1"

_encode: Final = msgspec.json.Encoder().encode


# --- requests -------------------------------------------------------------------------------------


class Message(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="op"
):
    """The base of all requests."""

    id: Id | None = None


class Subscribe(Message, frozen=True, tag="subscribe"):
    """Watch: the same choices as `/v1/watch` has."""

    subscription: Id
    pattern: str = "*"
    mode: Mode = "every"
    since: str | None = None
    snapshot: bool = False


class Unsubscribe(Message, frozen=True, tag="unsubscribe"):
    """Watch no more."""

    subscription: Id


class Get(Message, frozen=True, tag="get"):
    """Read a record."""

    key: str


class _Write(Message, frozen=True):
    key: str
    if_version: str | None = None
    if_absent: bool = False
    if_present: bool = False

    def expect(self) -> Expect:
        """The condition. Raises `InvalidVersion`, `ConflictingConditions`."""
        return expectation(self.if_version, self.if_absent, self.if_present)


class Put(_Write, frozen=True, tag="put"):
    """Set a value."""

    value: str | UnsetType = UNSET
    value_base64: bytes | UnsetType = UNSET
    ttl: float | None = None
    expires: str | None = None

    def expiry(self) -> int | None:
        """When it expires. Raises `InvalidExpiry`, `ConflictingConditions`."""
        return expiry(None if self.ttl is None else f"{self.ttl:.9f}", self.expires)


class Delete(_Write, frozen=True, tag="delete"):
    """Delete a record."""


_decode: Final = tagged(msgspec.json, Subscribe, Unsubscribe, Get, Put, Delete)


class _Identified(msgspec.Struct, frozen=True):
    id: Id | None = None


_identified: Final = msgspec.json.Decoder(_Identified)


def parse(text: str | bytes) -> Message:
    """Read a request. Raises `BadRequest`, saying where it is wrong."""
    if isinstance(text, bytes):
        raise BadRequest("A request is a JSON object in a text message.")
    try:
        return _decode(text)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise BadRequest(f"The request cannot be read: {error}.") from None
    except RecursionError:
        raise BadRequest("The request cannot be read: it is nested too deeply.") from None


def id_of(text: str | bytes) -> Id | None:
    """The id of a request that cannot be read, where at least that can."""
    try:
        return _identified.decode(text).id
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


# --- replies and events ---------------------------------------------------------------------------


def result(of: Id | None, outcome: Any) -> str:
    """The reply to a request that was carried out."""
    return _encode({"id": of, "result": outcome}).decode()


def failure(of: Id | None, error: NkvError) -> str:
    """The reply to a request that was refused or failed."""
    told = {"code": error.code, "status": error.status, "detail": error.detail}
    return _encode({"id": of, "error": told}).decode()


def prefix(subscription: Id) -> str:
    """How every event of a subscription begins."""
    return '{"subscription":' + _encode(subscription).decode()


def event(item: Item, hub: Hub) -> str:
    """The event that tells of an item, behind its prefix."""
    if isinstance(item, Changed):
        return item.form(FORM, _event_of_change)
    return _event(*announce(item, hub.token.history))


def heartbeat(token: str) -> str:
    """The event that says how far a subscription has come, behind its prefix."""
    return _event("heartbeat", token, b"{}")


def _event_of_change(changed: Changed) -> str:
    token = changed.token
    # Not by `announce`, which would keep the JSON a second time beside the event.
    data = _encode(change_json(changed.change, changed.history))
    return _event(name_of(changed.change), None if token is None else str(token), data)


def _event(name: str, token: str | None, data: bytes) -> str:
    quoted = "null" if token is None else f'"{token}"'
    return f',"event":"{name}","token":{quoted},"data":{data.decode()}}}'
