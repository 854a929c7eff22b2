"""The bodies of requests, replies and announcements. Nothing here knows of connections."""

from typing import Annotated, Any, Final, Literal

import msgspec

from nkv_core.errors import NkvError

Verb = Literal["get", "put", "delete", "subscribe"]
VERBS: Final[tuple[Verb, ...]] = ("get", "put", "delete", "subscribe")

#: What a reply is called. That to `Subscribe` is called `Put`: so its clients know it.
_FORMS: Final[dict[Verb, str]] = {
    "get": "Get",
    "put": "Base",
    "delete": "Base",
    "subscribe": "Put",
}
_MAX_ID: Final = 2**64
_NOT_FOUND: Final = 404

HELLO: Final = b'{"msg_type":"Hello"}'
CLOSE: Final = b'{"msg_type":"Close"}'

Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]


class _Json(msgspec.Struct):
    type: str
    id: int
    key: str
    value: list[Byte] | None = None


class _OnlyId(msgspec.Struct):
    id: int = 0


class Call(msgspec.Struct, frozen=True):
    """A request that can be carried out."""

    verb: Verb
    id: int
    key: str
    value: bytes = b""


class Malformed(msgspec.Struct, frozen=True):
    """A request that cannot be. The id is 0 where it cannot be read."""

    verb: Verb
    id: int
    reason: str


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(_Json).decode
_decode_id: Final = msgspec.json.Decoder(_OnlyId).decode


def read_request(verb: Verb, body: bytes) -> Call | Malformed:
    """Read what came on the subject of a verb."""
    fields = _decoded(_decode, body)
    if fields is None or not 0 <= fields.id < _MAX_ID:
        return Malformed(verb, id_of(body), "the body is not a request in JSON")
    if fields.type.lower() != verb:
        return Malformed(verb, fields.id, f"a {fields.type[:40]!r} on the subject of another")
    if (verb == "put") != (fields.value is not None):
        return Malformed(verb, fields.id, "a value goes with Put, and with nothing else")
    return Call(verb, fields.id, fields.key, bytes(fields.value or ()))


def id_of(body: bytes) -> int:
    """The id of a request, 0 where it cannot be read."""
    only = _decoded(_decode_id, body)
    return only.id if only is not None and 0 <= only.id < _MAX_ID else 0


def done(verb: Verb, name: int, data: bytes = b"") -> bytes:
    """The reply to a request that was carried out."""
    return _reply(verb, name, 200, "No Error", data)


def failed(verb: Verb, name: int, error: NkvError) -> bytes:
    """The reply to one that was not."""
    message = "Not Found" if error.status == _NOT_FOUND else error.detail
    return _reply(verb, name, error.status, message, b"")


def update(value: bytes) -> bytes:
    """What is told of a new value."""
    return _encode({"msg_type": {"Update": {"value": list(value)}}})


def subject_of(key: str) -> str:
    """Where changes of a key are told."""
    return f"pub-{key}"


def _reply(verb: Verb, name: int, status: int, message: str, data: bytes) -> bytes:
    form = _FORMS[verb]
    fields: dict[str, Any] = {"id": name, "status": status, "message": message}
    if form != "Base":
        fields["data"] = list(data)
    return _encode({form: fields})


def _decoded(decode: Any, body: bytes) -> Any:
    """What `decode` makes of the body, None where it cannot."""
    try:
        return decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
