"""The paths `/v1/kv` and `/v1/batch`: records as resources, and several changes at once."""

from collections.abc import Awaitable, Mapping
from functools import partial
from typing import Any, Final

from nkv_core.contracts.handlers import Handlers, Reply, Request
from nkv_core.contracts.keyspace import DEFAULT_OPTIONS, Expect, Options, Put, Written
from nkv_core.errors import InvalidKey, NotFound, UnsupportedMediaType
from nkv_core.keys import EVERYTHING, Pattern
from nkv_core.loop import Pending
from nkv_core.operations import (
    batch_json,
    condition,
    delete,
    expiry,
    is_unchanged,
    limit_of,
    options_of,
    page_json,
    parse_batch,
    version_of,
)
from nkv_core.prompt import prompt_of
from nkv_core.records import Record
from nkv_core.times import format_time, format_timestamp

from .openapi import described
from .replies import BYTES, JSON

_ETAG: Final = {"ETag": "The record's version, in quotes."}
_RECORD: Final = {
    **_ETAG,
    "Nkv-Modified": "When it was written: RFC 3339 with `+` and the counter of its timestamp.",
    "Nkv-Expires": "When it expires, if it does (RFC 3339).",
}
_ACKNOWLEDGE: Final = {
    "acknowledge": "In a mesh, who must have it: `local`, `majority` or `all` nodes.",
    "deadline": "Seconds to wait for them.",
}
_CONDITIONS: Final = {
    "If-Match": "A version in quotes, or `*`: the record has it, or is there at all.",
    "If-None-Match": "`*`: there is no record.",
}


def register(handlers: Handlers) -> None:
    """Register all paths."""
    # No time limit of dispatch's own: the keyspace has one for each of these.
    handlers.add("/v1/kv/{key:path}", get_record, command="get", timeout=None)
    handlers.add("/v1/kv/{key:path}", put_record, ("PUT",), command="put", timeout=None)
    handlers.add("/v1/kv/{key:path}", delete_record, ("DELETE",), command="delete", timeout=None)
    handlers.add("/v1/kv/", no_key, ("GET", "PUT", "DELETE"), command="get", timeout=None)
    handlers.add("/v1/kv", list_records, command="list")
    handlers.add("/v1/batch", change_together, ("POST",), command="batch", timeout=None)


@described(
    headers={"If-None-Match": "A version in quotes: 304 if the record still has it."},
    answers={200: BYTES, 304: None, 404: None},
    answer_headers=_RECORD,
)
def get_record(request: Request) -> Any:
    """Read a value."""
    found = prompt_of(request.keyspace).get_now(request.params["key"])
    if found is None or isinstance(found, Record):
        return _record(request, found)
    return _record_later(request, found)


async def _record_later(request: Request, found: Awaitable[Record | None]) -> Reply:
    return _record(request, await found)


def _record(request: Request, record: Record | None) -> Reply:
    if record is None:
        raise NotFound
    version = version_of(record, request.keyspace.history)
    headers = _headers(record, version)
    have = request.headers.get("if-none-match")
    if have is not None and is_unchanged(have, version):
        return Reply(304, headers)
    headers["Content-Type"] = BYTES
    # A browser is not to make a page of what somebody stored.
    headers["X-Content-Type-Options"] = "nosniff"
    return Reply(200, headers, record.value)


@described(
    query={
        "ttl": "Seconds to live.",
        "expires": "When it expires (RFC 3339), instead of `ttl`.",
        **_ACKNOWLEDGE,
    },
    headers=_CONDITIONS,
    body=BYTES,
    answers={200: None, 201: None, 202: None, 412: None, 413: None},
    answer_headers=_RECORD,
)
def put_record(request: Request) -> Any:
    """Set a value: 201 where there was none before, 200 where there was."""
    params, headers = request.params, request.headers
    key, value = params["key"], request.body
    expires = expiry(params.get("ttl"), params.get("expires"))
    expect = condition(headers.get("if-match"), headers.get("if-none-match"))
    options = _options(request)
    if options is not DEFAULT_OPTIONS:
        return _put_with(request, key, value, expires, expect, options)
    written = prompt_of(request.keyspace).write_now(Put(key, value, expires, expect))
    if isinstance(written, Written):
        return _put(request, written)
    if isinstance(written, Pending):
        return written.map(partial(_put, request))
    return _put_later(request, written)


async def _put_with(  # noqa: PLR0917  # as the keyspace has them
    request: Request,
    key: str,
    value: bytes,
    expires: int | None,
    expect: Expect,
    options: Options,
) -> Reply:
    written = await request.keyspace.put(
        key, value, expires=expires, expect=expect, options=options
    )
    return _put(request, written)


async def _put_later(request: Request, written: Awaitable[Written]) -> Reply:
    return _put(request, await written)


def _put(request: Request, written: Written) -> Reply:
    status = 201 if written.previous is None else 200
    if written.record is None:
        return Reply(status)
    version = version_of(written.record, request.keyspace.history)
    return Reply(status, _headers(written.record, version))


@described(
    query=_ACKNOWLEDGE, headers=_CONDITIONS, answers={202: None, 204: None, 404: None, 412: None}
)
async def delete_record(request: Request) -> Reply:
    """Delete a record."""
    headers = request.headers
    expect = condition(headers.get("if-match"), headers.get("if-none-match"))
    await delete(request.keyspace, request.params["key"], expect=expect, options=_options(request))
    return Reply(204)


@described(answers={400: None})
def no_key(_: Request) -> Reply:
    """Refuse the empty key."""
    raise InvalidKey("The key is empty.")


@described(
    query={
        "pattern": "Which keys; all where it is missing.",
        "limit": "How many records at most; 1,000 where it is missing, never more than 10,000.",
        "after": "The key behind which to go on: `after` of the page before.",
    },
    answers={200: JSON},
)
async def list_records(request: Request) -> dict[str, Any]:
    """List records in key order, a page at a time."""
    params: Mapping[str, str] = request.params
    pattern = params.get("pattern")
    page = await request.keyspace.scan(
        EVERYTHING if pattern is None else Pattern(pattern),
        after=params.get("after"),
        limit=limit_of(params.get("limit")),
    )
    return page_json(page, request.keyspace.history)


@described(
    query=_ACKNOWLEDGE, body=JSON, answers={200: JSON, 202: None, 412: None, 413: None, 415: None}
)
async def change_together(request: Request) -> dict[str, Any]:
    """Carry out several changes, all or none."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON:
        raise UnsupportedMediaType(f"A batch is {JSON}.")
    operations, checks = parse_batch(request.body)
    results = await request.keyspace.batch(operations, checks, _options(request))
    return batch_json(results, request.keyspace.history)


def _options(request: Request) -> Options:
    if "acknowledge" not in request.params and "deadline" not in request.params:
        return DEFAULT_OPTIONS
    return options_of(request.params.get("acknowledge"), request.params.get("deadline"))


def _headers(record: Record, version: str) -> dict[str, str]:
    headers = {"ETag": f'"{version}"', "Nkv-Modified": format_timestamp(record.modified)}
    if record.expires is not None:
        headers["Nkv-Expires"] = format_time(record.expires)
    return headers
