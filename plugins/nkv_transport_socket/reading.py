"""Reading one request: a line, the line in a frame, or an object of JSON."""

import binascii
import re
from typing import Annotated, Any, Final

import msgspec

from .messages import NO_ID, Call, DialectName, Incoming, Malformed

#: How many fields each verb has, itself counted.
_FIELDS: Final = {"AUTH": 2, "PUT": 5}
_USUAL: Final = 4
#: What the line dialect does not have.
_FRAMED_ONLY: Final = frozenset(("TRACE", "HEALTH", "VERSION"))
_JSON_VERBS: Final = {
    "Put": "PUT",
    "Get": "GET",
    "Delete": "DEL",
    "Subscribe": "SUB",
    "Unsubscribe": "UNSUB",
}
_VERB: Final = re.compile(rb"[A-Z]{1,16}")
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]")
#: Of an id or a client's name; they are sent back, and kept.
_MAX_NAME: Final = 1024

Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]


class _Json(msgspec.Struct):
    type: str
    id: str = NO_ID
    key: str | None = None
    client_uuid: str | None = None
    value: list[Byte] | None = None
    token: str | None = None


class _OnlyId(msgspec.Struct):
    id: str = NO_ID


_decode: Final = msgspec.json.Decoder(_Json).decode
_decode_id: Final = msgspec.json.Decoder(_OnlyId).decode


def read_line(dialect: DialectName, line: bytes) -> Incoming:
    """Read a request of the line or the framed dialect, without its newline."""
    fields = line.split(b" ", 4)
    name = _name(fields[1]) if len(fields) > 1 else None
    if not _VERB.fullmatch(fields[0]):
        return Malformed(dialect, name or NO_ID, "no verb")
    verb = fields[0].decode()
    if verb == "AUTH":
        return _read_auth(dialect, line)
    if name is None:
        return Malformed(dialect, NO_ID, "no request id")
    if len(fields) != _FIELDS.get(verb, _USUAL):
        return Malformed(dialect, name, f"{len(fields)} fields for {verb}")
    if dialect == "line" and verb in _FRAMED_ONLY:
        return Malformed(dialect, name, f"{verb} is of the framed dialect")
    client = _name(fields[2])
    if client is None:
        return Malformed(dialect, name, "no client id")
    try:
        key = fields[3].decode()
        value = binascii.a2b_base64(fields[4], strict_mode=True) if verb == "PUT" else b""
    except UnicodeDecodeError:
        return Malformed(dialect, name, "a key that is not UTF-8")
    except binascii.Error:
        return Malformed(dialect, name, "bad base64")
    return Call(dialect, verb, name, client, key, value)


def _read_auth(dialect: DialectName, line: bytes) -> Incoming:
    # A token is not told of, nor taken for the id of a request, whatever is wrong with the line.
    fields = line.split(b" ")
    token = _name(fields[1]) if len(fields) == _FIELDS["AUTH"] else None
    if token is None:
        return Malformed(dialect, NO_ID, "no token")
    return Call(dialect, "AUTH", NO_ID, token=token)


def read_json(line: bytes) -> Incoming:
    """Read a request of the JSON dialect."""
    fields = _decoded(_decode, line)
    if fields is None:
        only = _decoded(_decode_id, line)
        return Malformed("json", NO_ID if only is None else only.id[:_MAX_NAME], "bad JSON")
    name = fields.id
    if len(name) > _MAX_NAME:
        return Malformed("json", NO_ID, "the id is too long")
    if fields.type == "Auth":
        if not fields.token:
            return Malformed("json", name, "no token")
        return Call("json", "AUTH", name, token=fields.token)
    verb = _JSON_VERBS.get(fields.type)
    if verb is None or fields.key is None or fields.client_uuid is None:
        return Malformed("json", name, "an unknown type, or no key or client_uuid")
    if len(fields.client_uuid) > _MAX_NAME or (verb == "PUT") != (fields.value is not None):
        return Malformed("json", name, "a value with Put, and with nothing else")
    return Call("json", verb, name, fields.client_uuid, fields.key, bytes(fields.value or ()))


def _decoded(decode: Any, line: bytes) -> Any:
    """What `decode` makes of the line, None where it cannot."""
    try:
        return decode(line)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def _name(field: bytes) -> str | None:
    """An id as text; None where it is empty or cannot be sent back."""
    if not field or len(field) > _MAX_NAME:
        return None
    try:
        name = field.decode()
    except UnicodeDecodeError:
        return None
    return None if _CONTROL.search(name) else name
