"""What the dialects of all transports share: conditions, times to live, batches, pages, JSON.

A record in JSON is `{"key", "value" | "value_base64", "version", "modified", "expires"?}`: the
value as text where it is UTF-8, and in base64 otherwise.
"""

import base64
import re
from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from nkv_core.contracts.keyspace import (
    DEFAULT_OPTIONS,
    Check,
    Clear,
    Delete,
    Expect,
    Keyspace,
    Operation,
    Options,
    Page,
    Presence,
    Put,
    Touch,
    Written,
)
from nkv_core.errors import (
    BadRequest,
    ConflictingConditions,
    InvalidExpiry,
    NotFound,
    NotText,
)
from nkv_core.records import Record, Version, wall_clock
from nkv_core.times import format_time, format_timestamp, parse_time, parse_timestamp

#: A thousand years: what is further off cannot have been meant, nor be written as a date for long.
MAX_TTL: Final = 31_557_600_000.0
MAX_DEADLINE: Final = 3600.0
DEFAULT_LIMIT: Final = 1000
MAX_LIMIT: Final = 10_000

_SECONDS: Final = re.compile(r"\d{1,12}(\.\d{1,9})?", re.ASCII)
_NUMBER: Final = re.compile(r"\d{1,9}", re.ASCII)


# --- single records -------------------------------------------------------------------------------


async def get(keyspace: Keyspace, key: str, options: Options = DEFAULT_OPTIONS) -> Record:
    """The record of a key. Raises `NotFound`, and what the keyspace raises."""
    record = await keyspace.get(key, options)
    if record is None:
        raise NotFound
    return record


async def delete(
    keyspace: Keyspace,
    key: str,
    *,
    expect: Expect = None,
    cause: str = "delete",
    options: Options = DEFAULT_OPTIONS,
) -> Record:
    """Delete a record that is there, and return it. Raises `NotFound` where there is none."""
    written = await keyspace.delete(key, expect=expect, cause=cause, options=options)
    if written.previous is None:
        raise NotFound
    return written.previous


def text_of(record: Record) -> str:
    """The value as text. Raises `NotText` where it is not UTF-8."""
    try:
        return record.value.decode()
    except UnicodeDecodeError:
        raise NotText from None


def version_of(record: Record, history: str) -> str:
    """The version of a record, as clients are given it."""
    return str(Version(history, record.revision))


# --- expiry ---------------------------------------------------------------------------------------


def expiry(ttl: str | None, expires: str | None = None, *, now: int | None = None) -> int | None:
    """When a record expires that has `ttl` seconds to live, or expires at an RFC 3339 time.

    In milliseconds since 1970; None where neither is given. Raises `InvalidExpiry`, and
    `ConflictingConditions` where both are.
    """
    if ttl is None:
        return None if expires is None else _expiry_at(expires)
    if expires is not None:
        raise ConflictingConditions("Give the time to live or the expiry, not both.")
    if not _SECONDS.fullmatch(ttl):
        raise InvalidExpiry(f"{ttl[:40]!r} is not a positive number of seconds.")
    return _expiry_after(float(ttl), now)


def _expiry_after(seconds: float, now: int | None) -> int:
    if not 0 < seconds <= MAX_TTL:
        raise InvalidExpiry(f"A time to live of {seconds:g} s is not above 0 and below 1000 years.")
    # At least one millisecond, so that nothing is born dead.
    return (wall_clock() if now is None else now) + max(1, round(seconds * 1000))


def _expiry_at(text: str) -> int:
    try:
        expires = parse_time(text)
    except BadRequest as error:
        raise InvalidExpiry(error.detail) from None
    if expires <= 0:
        raise InvalidExpiry(f"{text[:40]!r} lies before 1970.")
    return expires


# --- options --------------------------------------------------------------------------------------


def options_of(acknowledge: str | None, deadline: str | None) -> Options:
    """How a write is to be carried out: by how many nodes of a mesh it is to be acknowledged
    (`local`, `majority`, `all`), and within how many seconds. Raises `BadRequest`.
    """
    if acknowledge is None and deadline is None:
        return DEFAULT_OPTIONS
    if acknowledge not in (None, "local", "majority", "all"):
        raise BadRequest(f"acknowledge is local, majority or all, not {acknowledge[:40]!r}.")
    seconds = None
    if deadline is not None:
        if not _SECONDS.fullmatch(deadline) or not 0 < float(deadline) <= MAX_DEADLINE:
            raise BadRequest(
                f"The deadline {deadline[:40]!r} is not a number of seconds above 0 and up to"
                f" {MAX_DEADLINE:g}."
            )
        seconds = float(deadline)
    return Options(deadline=seconds, acknowledge=acknowledge)  # type: ignore[arg-type]


# --- conditions -----------------------------------------------------------------------------------


def condition(if_match: str | None, if_none_match: str | None) -> Expect:
    """What a write expects, from `If-Match: "VERSION"` or `*`, or `If-None-Match: *`.

    Raises `InvalidVersion`, `ConflictingConditions` where both are given, and `BadRequest` where a
    condition is of a form that writes do not take.
    """
    if if_match is not None and if_none_match is not None:
        raise ConflictingConditions("If-Match and If-None-Match exclude each other.")
    if if_none_match is not None:
        if if_none_match.strip() != "*":
            raise BadRequest("A write takes If-None-Match: * only.")
        return Presence.ABSENT
    if if_match is None:
        return None
    tag = if_match.strip()
    if tag == "*":
        return Presence.PRESENT
    if len(tag) < 2 or tag[0] != '"' or tag[-1] != '"' or '"' in tag[1:-1]:
        raise BadRequest('If-Match takes one version, as "VERSION", or *.')
    return Version.parse(tag[1:-1])


def is_unchanged(if_none_match: str, version: str) -> bool:
    """Whether a reader who sends this `If-None-Match` has this version already."""
    tags = (tag.strip().removeprefix("W/") for tag in if_none_match.split(","))
    return any(tag in ("*", f'"{version}"') for tag in tags)


def expectation(if_version: str | None, if_absent: bool, if_present: bool) -> Expect:
    """What a write expects, from conditions of which one at most may be given.

    Raises `InvalidVersion` and `ConflictingConditions`.
    """
    if (if_version is not None) + if_absent + if_present > 1:
        raise ConflictingConditions("Of if_version, if_absent and if_present only one can hold.")
    if if_version is not None:
        return Version.parse(if_version)
    if if_absent:
        return Presence.ABSENT
    return Presence.PRESENT if if_present else None


# --- batches --------------------------------------------------------------------------------------


class _Fields(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What all operations on one key have."""

    key: str
    if_version: str | None = None
    if_absent: bool = False
    if_present: bool = False

    def expect(self) -> Expect:
        return expectation(self.if_version, self.if_absent, self.if_present)


class _Lasting(_Fields, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What those have besides that set when a record expires."""

    ttl: float | None = None
    expires: str | None = None

    def expiry(self, now: int | None) -> int | None:
        if self.ttl is None:
            return None if self.expires is None else _expiry_at(self.expires)
        if self.expires is not None:
            raise ConflictingConditions("Give the time to live or the expiry, not both.")
        return _expiry_after(self.ttl, now)


class _Put(
    _Lasting, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="op", tag="put"
):
    value: str | UnsetType = UNSET
    value_base64: bytes | UnsetType = UNSET

    def operation(self, now: int | None) -> Operation:
        value = value_from(self.key, self.value, self.value_base64)
        return Put(self.key, value, self.expiry(now), self.expect())


class _Delete(
    _Fields, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="op", tag="delete"
):
    def operation(self, _: int | None) -> Operation:
        return Delete(self.key, self.expect())


class _Touch(
    _Lasting, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="op", tag="touch"
):
    def operation(self, now: int | None) -> Operation:
        return Touch(self.key, self.expiry(now), self.expect())


class _Clear(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    kw_only=True,
    tag_field="op",
    tag="clear",
):
    prefix: str

    def operation(self, _: int | None) -> Operation:
        return Clear(self.prefix)


class _Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    key: str
    version: str | None = None
    absent: bool = False
    present: bool = False

    def check(self) -> Check:
        expect = expectation(self.version, self.absent, self.present)
        if expect is None:
            raise BadRequest(f"The check of {self.key[:200]!r} needs version, absent or present.")
        return Check(self.key, expect)


class _Batch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    operations: Annotated[list[_Put | _Delete | _Touch | _Clear], Meta(min_length=1)]
    checks: list[_Check] = []


_batches: Final = msgspec.json.Decoder(_Batch)


def parse_batch(body: bytes, *, now: int | None = None) -> tuple[list[Operation], list[Check]]:
    """Read a batch from JSON.

    `{"checks": [{"key", "version" | "absent": true | "present": true}], "operations": [...]}` with
    operations `{"op": "put", "key", "value" | "value_base64", "ttl" | "expires"}`, `delete` and
    `touch` likewise without a value, each with at most one of `if_version`, `if_absent` and
    `if_present`, and `{"op": "clear", "prefix"}`. `ttl` is a number of seconds, `expires` an
    RFC 3339 time; a touch with neither makes a record last for ever.

    Raises `BadRequest` and its kin, saying where. Keys are checked by the keyspace.
    """
    try:
        batch = _batches.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadRequest(f"The batch cannot be read: {error}.") from None
    except RecursionError:
        raise BadRequest("The batch cannot be read: it is nested too deeply.") from None
    return (
        [each.operation(now) for each in batch.operations],
        [each.check() for each in batch.checks],
    )


def batch_json(results: Sequence[Written], history: str) -> dict[str, Any]:
    """The answer to a batch: what each operation did."""
    return {"results": [written_json(written, history) for written in results]}


# --- JSON -----------------------------------------------------------------------------------------


def value_json(value: bytes) -> dict[str, str]:
    """A value as JSON carries it."""
    try:
        return {"value": value.decode()}
    except UnicodeDecodeError:
        return {"value_base64": base64.b64encode(value).decode()}


def value_from(key: str, value: str | UnsetType, value_base64: bytes | UnsetType) -> bytes:
    """The reverse of `value_json`, base64 decoded. Raises `BadRequest` unless it is just one."""
    if isinstance(value, UnsetType) == isinstance(value_base64, UnsetType):
        raise BadRequest(f"{key[:200]!r} needs either value or value_base64.")
    return value.encode() if isinstance(value, str) else bytes(value_base64)  # type: ignore[arg-type]


def record_json(record: Record, history: str) -> dict[str, Any]:
    """A record for JSON."""
    fields: dict[str, Any] = {
        "key": record.key,
        **value_json(record.value),
        "version": version_of(record, history),
        "modified": format_timestamp(record.modified),
    }
    if record.expires is not None:
        fields["expires"] = format_time(record.expires)
    return fields


class _Row(msgspec.Struct, frozen=True):
    key: str
    version: str
    modified: str
    value: str | UnsetType = UNSET
    value_base64: bytes | UnsetType = UNSET
    expires: str | None = None


def record_from(fields: Any, origin: int = 0) -> tuple[Record, str]:
    """The reverse of `record_json`: the record, and its history. The origin is not in the JSON.

    Raises `BadRequest`, or `InvalidVersion`, where something is missing or malformed.
    """
    try:
        row = msgspec.convert(fields, _Row)
    except msgspec.ValidationError as error:
        raise BadRequest(f"This is no record: {error}.") from None
    version = Version.parse(row.version)
    record = Record(
        key=row.key,
        value=value_from(row.key, row.value, row.value_base64),
        revision=version.revision,
        modified=parse_timestamp(row.modified),
        origin=origin,
        expires=None if row.expires is None else parse_time(row.expires),
    )
    return record, version.history


def written_json(written: Written, history: str, *, previous: bool = False) -> dict[str, Any]:
    """What an operation did: the record's version now, whether there was one before, and, where
    `previous` asks for it, that one.
    """
    fields: dict[str, Any] = {
        "version": None if written.record is None else version_of(written.record, history),
        "existed": written.previous is not None,
    }
    if previous:
        before = written.previous
        fields["previous"] = None if before is None else record_json(before, history)
    return fields


# --- pages ----------------------------------------------------------------------------------------


def limit_of(text: str | None, default: int = DEFAULT_LIMIT, most: int = MAX_LIMIT) -> int:
    """How many records a page may have, at most `most`. Raises `BadRequest`."""
    if text is None:
        return default
    if not _NUMBER.fullmatch(text) or int(text) == 0:
        raise BadRequest(f"The limit {text[:40]!r} is not a whole number from 1 on.")
    return min(int(text), most)


def page_json(page: Page, history: str) -> dict[str, Any]:
    """A page for JSON; `after` is None where nothing follows."""
    return {
        "records": [record_json(record, history) for record in page.records],
        "after": page.after,
    }
