"""Replies: what handlers return and raise, as status, header fields and bytes."""

import logging
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec

from nkv_core.contracts.handlers import ErrorForm, Reply, Request, Route
from nkv_core.errors import HandlerFailed, MethodNotAllowed, NkvError

from .nkvd_errors import nkvd_error

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
BYTES: Final = "application/octet-stream"

RawHeaders = list[tuple[bytes, bytes]]

_encode: Final = msgspec.json.Encoder().encode
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
#: Say how a message ends: the server's to write.
_FRAMING: Final = frozenset((b"connection", b"content-length", b"keep-alive", b"transfer-encoding"))
#: So many header fields, and names of such, are remembered as good, and no more: handlers choose
#: them. Most come with every reply.
_REMEMBERED: Final = 256
_SHORT: Final = 64
_names: Final[dict[str, bytes]] = {}
_fields: Final[dict[tuple[str, str], tuple[bytes, bytes]]] = {}

_log: Final = logging.getLogger("nkv.plugin.nkv_transport_http")


class Answer(msgspec.Struct, frozen=True):
    """A whole response."""

    status: int
    headers: RawHeaders
    body: bytes


def answer(outcome: Any) -> Answer:
    """The response for what a handler returned.

    Raises `TypeError` or `ValueError` where that is nothing that can be sent.
    """
    if isinstance(outcome, Reply):
        status, body = outcome.status, outcome.body
        headers = raw_headers(outcome.headers)
        kind: str | None = BYTES if body else None
        if not isinstance(body, bytes):
            kind, body = JSON, _encode(body)
        # As nearly all write it, which spares a look at each field.
        if kind is not None and not ("Content-Type" in outcome.headers or _has_type(headers)):
            headers.append((b"content-type", kind.encode()))
        if not 200 <= status <= 599:
            raise ValueError(f"{status} is no status of a reply.")
        if status in (204, 304):
            return Answer(status, headers, b"")
    elif isinstance(outcome, bytes):
        status, headers, body = 200, [(b"content-type", BYTES.encode())], outcome
    else:
        status, headers, body = 200, [(b"content-type", JSON.encode())], _encode(outcome)
    headers.append((b"content-length", b"%d" % len(body)))
    return Answer(status, headers, body)


def raw_headers(headers: Mapping[str, str]) -> RawHeaders:
    """Header fields as bytes.

    Raises `ValueError` where one would begin another, or where it is the server's to write.
    """
    return [_fields.get(field) or _raw_field(field) for field in headers.items()]


def _raw_field(field: tuple[str, str]) -> tuple[bytes, bytes]:
    name, value = field
    if not (value.isascii() and value.isprintable()) and not _VALUE.fullmatch(value):
        raise ValueError(f"{value!r} of {name} is no value of a header field.")
    raw = _names.get(name) or _raw_name(name), value.encode("latin-1")
    if len(value) <= _SHORT:
        if len(_fields) >= _REMEMBERED:
            _fields.clear()
        _fields[field] = raw
    return raw


def _raw_name(name: str) -> bytes:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a header field.")
    raw = name.lower().encode()
    if raw in _FRAMING:
        raise ValueError(f"The server writes {name} by itself.")
    if len(_names) < _REMEMBERED:
        _names[name] = raw
    return raw


def _has_type(headers: RawHeaders) -> bool:
    return any(name == b"content-type" for name, _ in headers)


def problem(_: Request, error: NkvError) -> Reply:
    """The answer to an error as RFC 9457 has it."""
    status = error.status
    document = {
        "title": HTTPStatus(status).phrase if status in _STATUSES else "Error",
        "status": status,
        "code": error.code,
        "detail": error.detail,
    }
    return Reply(status, {"Content-Type": PROBLEM, **error_headers(error)}, _encode(document))


_STATUSES: Final = frozenset(HTTPStatus)


def error_headers(error: NkvError) -> dict[str, str]:
    """The header fields that HTTP asks for with an error."""
    if isinstance(error, MethodNotAllowed):
        return {"Allow": ", ".join(error.allowed)}
    if error.status == HTTPStatus.UNAUTHORIZED:
        return {"WWW-Authenticate": "Bearer"}
    if error.status == HTTPStatus.SERVICE_UNAVAILABLE:
        return {"Retry-After": "1"}
    return {}


def form_for(path: str, route: Route | None) -> ErrorForm:
    """In what form errors of a path are answered."""
    if route is not None:
        return route.errors or problem
    return problem if path == "/v1" or path.startswith("/v1/") else nkvd_error


def error_answer(request: Request, error: NkvError, route: Route | None) -> Answer:
    """The response for an error, in the form that its path has for it."""
    try:
        return answer(form_for(request.path, route)(request, error))
    except Exception:  # noqa: BLE001  # a form may be a plugin's own
        _log.exception("The error %s could not be put into its form.", error.code)
        return answer(problem(request, HandlerFailed()))
