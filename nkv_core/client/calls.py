"""Requests to a node and the reading of its replies, without any input or output of their own.

Both clients are thin shells around these: they send what a `Call` says, and give it the reply.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Generic, NoReturn, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from nkv_core.client.failures import problem, unexpected
from nkv_core.client.values import Check, Clear, Delete, Item, Operation, Put, Written
from nkv_core.errors import (
    BadRequest,
    InvalidExpiry,
    InvalidVersion,
    NotFound,
)
from nkv_core.keys import Pattern, check_key, check_prefix
from nkv_core.times import format_time, parse_time, parse_timestamp

T = TypeVar("T")

#: The node's own limit decides; this one only keeps a request line within reason.
MAX_KEY: Final = 8 * 1024

_JSON: Final = {"content-type": "application/json"}
_BYTES: Final = {"content-type": "application/octet-stream"}
#: From this size on, what a text costs in JSON is compared with its base64.
_LONG: Final = 64 * 1024


class Reply(msgspec.Struct, frozen=True):
    """What came back; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Call(msgspec.Struct, Generic[T], frozen=True):
    """One request, and how its reply is read."""

    method: str
    target: str  #: path and query, percent-encoded
    read: Callable[[Reply], T]  #: raises the error that the reply stands for
    headers: Mapping[str, str] = {}
    body: bytes | None = None

    @property
    def reads(self) -> bool:
        """Whether the request changes nothing."""
        return self.method == "GET"


class Page(msgspec.Struct, frozen=True):
    """Some records in key order; `after` continues behind them and is None at the end."""

    items: list[Item]
    after: str | None


# --- records --------------------------------------------------------------------------------------


def get(key: str) -> Call[Item | None]:
    """Read a record. Raises `InvalidKey`."""

    def read(reply: Reply) -> Item | None:
        if reply.status == 200:
            return _item_of(key, reply)
        _check_not_found(reply)
        return None

    return Call("GET", _path(key), read)


def put(
    key: str,
    value: bytes,
    *,
    ttl: float | None = None,
    expires: int | None = None,
    if_version: str | None = None,
    if_absent: bool = False,
) -> Call[Written]:
    """Set a value. Raises `InvalidKey`, `ConflictingConditions`, `InvalidVersion`."""
    asked = Put(key, value, ttl, expires, if_version, if_absent)
    query: dict[str, str] = {}
    if ttl is not None:
        query["ttl"] = _seconds(ttl)
    if expires is not None:
        query["expires"] = format_time(expires)
    headers = dict(_BYTES)
    if if_version is not None:
        headers["if-match"] = _quoted(if_version)
    if if_absent:
        headers["if-none-match"] = "*"

    def read(reply: Reply) -> Written:
        if reply.status in (200, 201):
            return Written(_version_of(reply), existed=reply.status == 200)
        return _refused(reply)

    return Call("PUT", _path(key, query), read, headers, bytes(asked.value))


def delete(key: str, *, if_version: str | None = None) -> Call[bool]:
    """Delete a record; says whether there was one. Raises `InvalidKey`, `InvalidVersion`."""
    headers = {} if if_version is None else {"if-match": _quoted(if_version)}

    def read(reply: Reply) -> bool:
        if reply.status in (200, 204):
            return True
        _check_not_found(reply)
        return False

    return Call("DELETE", _path(key), read, headers)


# --- pages ----------------------------------------------------------------------------------------


class _Row(msgspec.Struct):
    key: str
    version: str
    modified: str
    value: str | None = None
    value_base64: bytes | None = None
    expires: str | None = None

    def item(self) -> Item:
        value = self.value_base64 if self.value is None else self.value.encode()
        if value is None:
            raise BadRequest(f"{self.key!r} has no value.")
        expires = None if self.expires is None else parse_time(self.expires)
        return Item(self.key, value, self.version, parse_timestamp(self.modified), expires)


class _Rows(msgspec.Struct):
    records: list[_Row]
    after: str | None = None


_rows: Final = msgspec.json.Decoder(_Rows)


def scan(pattern: str, *, after: str | None, limit: int) -> Call[Page]:
    """Read one page of records. Raises `InvalidPattern`."""
    query = {"pattern": Pattern(pattern).text, "limit": str(limit)}
    if after is not None:
        query["after"] = after

    def read(reply: Reply) -> Page:
        if reply.status != 200:
            _refused(reply)
        try:
            rows = _rows.decode(reply.body)
            return Page([row.item() for row in rows.records], rows.after)
        except (msgspec.MsgspecError, BadRequest) as error:
            raise unexpected(f"The page of records cannot be read: {error}.") from None

    return Call("GET", "/v1/kv?" + urlencode(query), read)


# --- batches --------------------------------------------------------------------------------------


class _Result(msgspec.Struct):
    version: str | None = None
    existed: bool = False


class _Results(msgspec.Struct):
    results: list[_Result]


_results: Final = msgspec.json.Decoder(_Results)
_encoder: Final = msgspec.json.Encoder()


def batch(operations: Iterable[Operation], checks: Iterable[Check] = ()) -> Call[list[Written]]:
    """Carry out all operations, in order, if every condition holds; otherwise none.

    Raises `InvalidKey`, `InvalidVersion`, `InvalidExpiry`.
    """
    document = {
        "checks": [_check_field(check) for check in checks],
        "operations": [_operation_fields(operation) for operation in operations],
    }
    count = len(document["operations"])

    def read(reply: Reply) -> list[Written]:
        if reply.status != 200:
            _refused(reply)
        try:
            results = _results.decode(reply.body).results
        except msgspec.MsgspecError as error:
            raise unexpected(f"The answer to a batch cannot be read: {error}.") from None
        if len(results) != count:
            raise unexpected(f"{len(results)} results came for {count} operations.")
        return [Written(result.version, result.existed) for result in results]

    return Call("POST", "/v1/batch", read, _JSON, _encoder.encode(document))


def _operation_fields(operation: Operation) -> dict[str, Any]:
    if isinstance(operation, Clear):
        check_prefix(operation.prefix, MAX_KEY)
        return {"op": "clear", "prefix": operation.prefix}
    check_key(operation.key, MAX_KEY)
    fields: dict[str, Any] = {"op": type(operation).__name__.lower(), "key": operation.key}
    if isinstance(operation, Put):
        fields |= _value_field(operation.value)
        if operation.if_absent:
            fields["if_absent"] = True
    if operation.if_version is not None:
        fields["if_version"] = operation.if_version
    if not isinstance(operation, Delete):
        if operation.ttl is not None:
            fields["ttl"] = float(_seconds(operation.ttl))
        if operation.expires is not None:
            fields["expires"] = format_time(operation.expires)
    return fields


def _check_field(check: Check) -> dict[str, Any]:
    check_key(check.key, MAX_KEY)
    if check.version is None:
        return {"key": check.key, "absent": True}
    return {"key": check.key, "version": check.version}


def _value_field(value: bytes) -> dict[str, Any]:
    """A value as JSON carries it: as text where it is UTF-8, and not much longer so."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return {"value_base64": value}
    if len(value) >= _LONG and len(_encoder.encode(text)) > len(value) * 4 // 3:
        return {"value_base64": value}
    return {"value": text}


# --- the node -------------------------------------------------------------------------------------


def status() -> Call[dict[str, Any]]:
    """What the node says about itself."""

    def read(reply: Reply) -> dict[str, Any]:
        if reply.status != 200:
            _refused(reply)
        try:
            return msgspec.json.decode(reply.body, type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise unexpected(f"The status cannot be read: {error}.") from None

    return Call("GET", "/v1/status", read)


# --- parts ----------------------------------------------------------------------------------------


def _path(key: str, query: Mapping[str, str] | None = None) -> str:
    check_key(key, MAX_KEY)
    path = "/v1/kv/" + quote(key, safe="")
    return f"{path}?{urlencode(query)}" if query else path


def _quoted(version: str) -> str:
    if not version.isascii() or not version.isprintable() or '"' in version or not version:
        raise InvalidVersion(f"{version[:80]!r} is not a version.")
    return f'"{version}"'


def _seconds(ttl: float) -> str:
    if not 0 < ttl < float("inf"):
        raise InvalidExpiry(f"A time to live of {ttl} seconds is not a positive number.")
    return f"{ttl:.3f}".rstrip("0").rstrip(".") if ttl >= 0.001 else "0.001"


def _version_of(reply: Reply) -> str:
    tag = reply.headers.get("etag", "")
    if len(tag) < 3 or tag[0] != '"' or tag[-1] != '"':
        raise unexpected("The reply has no version: is this a node of nkv?")
    return tag[1:-1]


def _item_of(key: str, reply: Reply) -> Item:
    modified, expires = reply.headers.get("nkv-modified"), reply.headers.get("nkv-expires")
    version = _version_of(reply)
    try:
        return Item(
            key,
            reply.body,
            version,
            parse_timestamp(modified or ""),
            None if expires is None else parse_time(expires),
        )
    except BadRequest as error:
        raise unexpected(f"The reply has a header that cannot be read: {error.detail}") from None


def _check_not_found(reply: Reply) -> None:
    """Raise the error that the reply stands for, unless it is that there is no such key."""
    error = problem(reply.status, reply.body)
    if not isinstance(error, NotFound):
        raise error


def _refused(reply: Reply) -> NoReturn:
    raise problem(reply.status, reply.body)
