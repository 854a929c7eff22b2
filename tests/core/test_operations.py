"""Operations: parsing and writing what all dialects share."""

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nkv_core import operations
from nkv_core.contracts.keyspace import (
    Check,
    Clear,
    Delete,
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
    InvalidVersion,
    NotFound,
    NotText,
)
from nkv_core.records import Record, Version, timestamp_at
from nkv_core.times import format_timestamp, parse_time, parse_timestamp

HISTORY = "0123456789abcdef"
NOW = 1_000_000
RECORD = Record("a.b", b"text", 7, timestamp_at(1_767_225_600_250, 3), 9, 1_767_225_601_000)
IN_JSON = {
    "key": "a.b",
    "value": "text",
    "version": f"{HISTORY}-7",
    "modified": "2026-01-01T00:00:00.250Z+3",
    "expires": "2026-01-01T00:00:01.000Z",
}


class Holding:
    """A keyspace with one record, or none."""

    def __init__(self, record):
        self.record = record

    async def get(self, key, options):
        return self.record

    async def delete(self, key, *, expect, cause, options):
        self.asked = (key, expect, cause)
        return Written(8 if self.record else None, None, self.record)


@pytest.mark.anyio
async def test_a_record_that_is_not_there_is_not_found():
    assert await operations.get(Holding(RECORD), "a.b") is RECORD
    assert await operations.delete(Holding(RECORD), "a.b") is RECORD
    with pytest.raises(NotFound):
        await operations.get(Holding(None), "a.b")
    with pytest.raises(NotFound):
        await operations.delete(Holding(None), "a.b")


@pytest.mark.anyio
async def test_deleting_passes_on_condition_and_cause():
    keyspace = Holding(RECORD)
    await operations.delete(keyspace, "a.b", expect=Presence.PRESENT, cause="rm")
    assert keyspace.asked == ("a.b", Presence.PRESENT, "rm")


def test_a_value_that_is_not_utf8_is_no_text():
    assert operations.text_of(RECORD) == "text"
    with pytest.raises(NotText):
        operations.text_of(Record("k", b"\xff", 1, 1, 1))


# --- expiry ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ttl", "expires"),
    [("1", NOW + 1000), ("0.5", NOW + 500), ("60", NOW + 60_000), ("0.0001", NOW + 1)],
)
def test_a_time_to_live_becomes_an_expiry(ttl, expires):
    assert operations.expiry(ttl, now=NOW) == expires


def test_an_expiry_is_a_time_and_none_without_either():
    assert operations.expiry(None, "1970-01-01T00:00:01Z") == 1000
    assert operations.expiry(None, now=NOW) is None
    with pytest.raises(ConflictingConditions):
        operations.expiry("1", "1970-01-01T00:00:01Z")


@pytest.mark.parametrize(
    "ttl",
    ["", "0", "0.0", "-1", "+1", "1e3", " 1", "1.", ".5", "inf", "nan", "x", "\u0661", "9" * 12],
)
def test_what_is_no_time_to_live_is_refused(ttl):
    with pytest.raises(InvalidExpiry):
        operations.expiry(ttl, now=NOW)


@pytest.mark.parametrize("expires", ["", "tomorrow", "2026-01-01", "1969-12-31T23:59:59Z"])
def test_what_is_no_expiry_is_refused(expires):
    with pytest.raises(InvalidExpiry):
        operations.expiry(None, expires)


# --- conditions -----------------------------------------------------------------------------------

VERSION = f"{HISTORY}-7"


def test_conditions_of_headers():
    assert operations.condition(None, None) is None
    assert operations.condition(f'"{VERSION}"', None) == Version(HISTORY, 7)
    assert operations.condition(" * ", None) is Presence.PRESENT
    assert operations.condition(None, "*") is Presence.ABSENT


@pytest.mark.parametrize(
    ("if_match", "if_none_match", "error"),
    [
        ("*", "*", ConflictingConditions),
        (None, f'"{VERSION}"', BadRequest),
        (VERSION, None, BadRequest),
        ("", None, BadRequest),
        ('"', None, BadRequest),
        (f'W/"{VERSION}"', None, BadRequest),
        (f'"{VERSION}", "{VERSION}"', None, BadRequest),
        ('""', None, InvalidVersion),
        ('"other"', None, InvalidVersion),
    ],
)
def test_conditions_that_cannot_be_are_refused(if_match, if_none_match, error):
    with pytest.raises(error):
        operations.condition(if_match, if_none_match)


@pytest.mark.parametrize(
    ("sent", "unchanged"),
    [
        ("*", True),
        (f'"{VERSION}"', True),
        (f'W/"{VERSION}"', True),
        (f'"x", "{VERSION}"', True),
        ('"x"', False),
        (VERSION, False),
        ("", False),
    ],
)
def test_a_reader_who_has_the_version_already_is_known(sent, unchanged):
    assert operations.is_unchanged(sent, VERSION) is unchanged


# --- batches --------------------------------------------------------------------------------------


def parse(*all_operations, checks=None):
    document = {"operations": list(all_operations)}
    if checks is not None:
        document["checks"] = checks
    return operations.parse_batch(msgspec.json.encode(document), now=NOW)


def test_a_batch_of_everything():
    asked, checks = parse(
        {"op": "put", "key": "a", "value": "text"},
        {"op": "put", "key": "b", "value_base64": "/w==", "ttl": 1.5, "if_absent": True},
        {"op": "put", "key": "c", "value": "", "expires": "1970-01-01T00:00:01Z"},
        {"op": "delete", "key": "d", "if_version": VERSION},
        {"op": "touch", "key": "e", "ttl": 2, "if_present": True},
        {"op": "touch", "key": "f"},
        {"op": "clear", "prefix": "g."},
        checks=[
            {"key": "h", "version": VERSION},
            {"key": "i", "absent": True},
            {"key": "j", "present": True},
        ],
    )
    assert asked == [
        Put("a", b"text"),
        Put("b", b"\xff", NOW + 1500, Presence.ABSENT),
        Put("c", b"", 1000),
        Delete("d", Version(HISTORY, 7)),
        Touch("e", NOW + 2000, Presence.PRESENT),
        Touch("f", None),
        Clear("g."),
    ]
    assert checks == [
        Check("h", Version(HISTORY, 7)),
        Check("i", Presence.ABSENT),
        Check("j", Presence.PRESENT),
    ]


@pytest.mark.parametrize(
    ("operation", "error"),
    [
        ({"op": "put", "key": "a"}, BadRequest),
        ({"op": "put", "key": "a", "value": "x", "value_base64": "eA=="}, BadRequest),
        ({"op": "put", "key": "a", "value": None}, BadRequest),
        ({"op": "put", "key": "a", "value": 1}, BadRequest),
        ({"op": "put", "key": "a", "value_base64": "?"}, BadRequest),
        ({"op": "put", "value": "x"}, BadRequest),
        ({"op": "put", "key": 1, "value": "x"}, BadRequest),
        ({"op": "put", "key": "a", "value": "x", "ttl": "1"}, BadRequest),
        ({"op": "put", "key": "a", "value": "x", "ttl": 0}, InvalidExpiry),
        ({"op": "put", "key": "a", "value": "x", "ttl": -1}, InvalidExpiry),
        ({"op": "put", "key": "a", "value": "x", "ttl": 1e300}, InvalidExpiry),
        ({"op": "put", "key": "a", "value": "x", "expires": "soon"}, InvalidExpiry),
        (
            {"op": "put", "key": "a", "value": "x", "ttl": 1, "expires": "1970-01-01T00:00:01Z"},
            ConflictingConditions,
        ),
        (
            {"op": "put", "key": "a", "value": "x", "if_absent": True, "if_version": VERSION},
            ConflictingConditions,
        ),
        ({"op": "delete", "key": "a", "if_version": "x"}, InvalidVersion),
        ({"op": "delete", "key": "a", "value": "x"}, BadRequest),
        ({"op": "clear"}, BadRequest),
        ({"op": "get", "key": "a"}, BadRequest),
        ({"key": "a"}, BadRequest),
        ({"op": "delete", "key": "a", "if_versoin": VERSION}, BadRequest),
    ],
)
def test_an_operation_that_cannot_be_is_refused(operation, error):
    with pytest.raises(error):
        parse({"op": "delete", "key": "fine"}, operation)


@pytest.mark.parametrize(
    "check", [{"key": "a"}, {"version": VERSION}, {"key": "a", "absent": True, "present": True}]
)
def test_a_check_that_cannot_be_is_refused(check):
    with pytest.raises(BadRequest):
        parse({"op": "delete", "key": "fine"}, checks=[check])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"operations": []}',
        b'{"operations": [], "more": 1}',
        b"\xff",
        b'{"operations": [{"op": "put", "key": "\xff", "value": ""}]}',
        b"[" * 100_000,
        b'{"operations": ' + b"[" * 100_000,
    ],
)
def test_a_body_that_is_no_batch_is_refused(body):
    with pytest.raises(BadRequest):
        operations.parse_batch(body)


@given(st.binary(max_size=200))
def test_no_bytes_make_the_parser_fail_otherwise(body):
    with contextlib.suppress(BadRequest):
        operations.parse_batch(body)


def test_the_answer_to_a_batch_says_what_each_operation_did():
    results = [Written(7, RECORD, None), Written(8, None, RECORD), Written(None, None, None)]
    assert operations.batch_json(results, HISTORY) == {
        "results": [
            {"version": VERSION, "existed": False},
            {"version": None, "existed": True},
            {"version": None, "existed": False},
        ]
    }


# --- JSON -----------------------------------------------------------------------------------------


def test_a_record_in_json():
    assert operations.record_json(RECORD, HISTORY) == IN_JSON
    binary = Record("k", b"\xff", 1, 0, 1)
    fields = operations.record_json(binary, HISTORY)
    assert fields["value_base64"] == "/w=="
    assert "value" not in fields
    assert "expires" not in fields


def test_what_was_there_before_is_told_where_asked():
    written = Written(8, None, RECORD)
    assert operations.written_json(written, HISTORY, previous=True)["previous"] == IN_JSON
    fresh = Written(7, RECORD, None)
    assert operations.written_json(fresh, HISTORY, previous=True)["previous"] is None
    assert "previous" not in operations.written_json(written, HISTORY)


@given(
    key=st.text(st.characters(exclude_categories=["C"]), min_size=1),
    value=st.binary(),
    revision=st.integers(1, 2**63 - 1),
    modified=st.integers(0, 2**47).flatmap(
        lambda ms: st.integers(0, 2**16 - 1).map(lambda counter: timestamp_at(ms, counter))
    ),
    expires=st.none() | st.integers(1, 2**47),
)
def test_a_record_comes_back_from_json_as_it_was(key, value, revision, modified, expires):
    record = Record(key, value, revision, modified, 9, expires)
    sent = msgspec.json.encode(operations.record_json(record, HISTORY))
    received, history = operations.record_from(msgspec.json.decode(sent), origin=9)
    assert (received, history) == (record, HISTORY)


@pytest.mark.parametrize(
    "change",
    [
        {"key": None},
        {"value": None},
        {"value_base64": "/w=="},
        {"version": "x"},
        {"modified": "x"},
        {"modified": "2026-01-01T00:00:00Z+70000"},
        {"expires": "x"},
    ],
)
def test_what_is_no_record_is_refused(change):
    with pytest.raises(BadRequest):
        operations.record_from({**IN_JSON, **change})
    with pytest.raises(BadRequest):
        operations.record_from([])


def test_a_page_in_json():
    page = operations.page_json(Page([RECORD], "a.b"), HISTORY)
    assert page == {"records": [IN_JSON], "after": "a.b"}


@pytest.mark.parametrize(("text", "limit"), [(None, 1000), ("1", 1), ("99999999", 10_000)])
def test_limits_of_pages_have_a_bound(text, limit):
    assert operations.limit_of(text) == limit


@pytest.mark.parametrize("text", ["", "0", "-1", "x", "1.5", "9" * 30, "\u0661"])
def test_what_is_no_limit_is_refused(text):
    with pytest.raises(BadRequest):
        operations.limit_of(text)


# --- times ----------------------------------------------------------------------------------------


def test_timestamps_have_their_counter_with_them():
    assert format_timestamp(timestamp_at(0, 0)) == "1970-01-01T00:00:00.000Z+0"
    assert parse_timestamp("1970-01-01T00:00:00.001Z+5") == timestamp_at(1, 5)
    assert parse_timestamp("1970-01-01T00:00:00.001Z") == timestamp_at(1, 0)
    assert parse_time("1970-01-01T01:00:00+01:00") == 0
    for text in ("1970-01-01T00:00:00Z+", "1970-01-01T00:00:00Z+-1", "x"):
        with pytest.raises(BadRequest):
            parse_timestamp(text)
