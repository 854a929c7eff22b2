"""The paths of the Flask dialect: `GET /kv` and `PUT /kv`.

Answers are byte for byte what Python's `json.dumps` prints by default, and a newline.
"""

import json
from collections.abc import Mapping
from typing import Any, Final, Never
from urllib.parse import parse_qsl

from nkv_core.contracts.handlers import Handlers, Reply, Request
from nkv_core.errors import BadRequest, NkvError, NotFound, UnsupportedMediaType
from nkv_core.operations import get, text_of

PATH: Final = "/kv"
#: The largest value that a node takes by default, every byte of it written as an escape.
_MAX_BODY: Final = 8 * 1024 * 1024

_JSON: Final = "application/json"
_FORM: Final = "application/x-www-form-urlencoded"
_HEADERS: Final = {"Content-Type": _JSON}
_NO_KEY: Final = {"status_code": 404, "error": "Key Doesn't exist"}
_MISSING: Final = "Missing required parameter in the JSON body or the post body or the query string"


class MissingParameter(BadRequest):
    """A parameter that the dialect needs is neither in the body nor in the query."""

    def __init__(self, name: str) -> None:
        super().__init__(f"The parameter {name} is missing.")
        self.name: Final = name


class NoSuchKey(NotFound):
    """The key that was asked for does not exist, which the dialect has a form of its own for."""


def register(handlers: Handlers) -> None:
    """Register both."""
    for method, handler, command in (("GET", read, "get"), ("PUT", write, "put")):
        handlers.add(
            PATH,
            handler,
            (method,),
            command=command,
            errors=error_form,
            timeout=None,
            max_body=_MAX_BODY,
        )


async def read(request: Request) -> Reply:
    """The value of a key."""
    fields = _fields(request)
    try:
        record = await get(request.keyspace, _text(fields, "key"))
    except NotFound:
        raise NoSuchKey from None
    return _reply({"value": text_of(record)})


async def write(request: Request) -> Reply:
    """Set a value."""
    fields = _fields(request)
    key, value = _text(fields, "key"), _text(fields, "value")
    try:
        encoded = value.encode()
    except UnicodeEncodeError:
        raise BadRequest("The value is not valid Unicode.") from None
    await request.keyspace.put(key, encoded)
    return _reply({key: value})


def error_form(_: Request, error: NkvError) -> Reply:
    """The answer to an error, in the dialect's forms."""
    if isinstance(error, NoSuchKey):
        return _reply(_NO_KEY, 404)
    if isinstance(error, MissingParameter):
        return _reply({"message": {error.name: _MISSING}}, error.status)
    return _reply({"message": error.detail}, error.status)


def _reply(answer: Any, status: int = 200) -> Reply:
    return Reply(status, _HEADERS, json.dumps(answer).encode() + b"\n")


# --- parameters -----------------------------------------------------------------------------------


def _fields(request: Request) -> Mapping[str, Any]:
    """All parameters; those of the body go before those of the query."""
    return {**request.params, **_body_fields(request)} if request.body else request.params


def _body_fields(request: Request) -> Mapping[str, Any]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == _FORM:
        try:
            pairs = parse_qsl(request.body.decode(), keep_blank_values=True, errors="strict")
        except ValueError:
            raise BadRequest("The form is not valid UTF-8.") from None
        return dict(reversed(pairs))
    if kind and kind != _JSON:
        raise UnsupportedMediaType(f"{kind[:100]} is taken as neither {_JSON} nor {_FORM}.")
    try:
        fields = json.loads(request.body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise BadRequest("The body is not valid JSON.") from None
    if not isinstance(fields, dict):
        raise BadRequest("The body is not a JSON object.")
    return fields


def _refuse_constant(_: str) -> Never:
    raise ValueError("JSON has no such number.")


def _text(fields: Mapping[str, Any], name: str) -> str:
    """A parameter as text, numbers as Python prints them. Raises `BadRequest`."""
    value = fields.get(name)
    if value is None:
        raise MissingParameter(name)
    if isinstance(value, bool | int | float):
        return str(value)
    if not isinstance(value, str):
        raise BadRequest(f"The parameter {name} is neither text nor a number.")
    return value
