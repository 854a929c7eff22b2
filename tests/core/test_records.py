"""Packed forms, versions, tokens and time."""

from contextlib import suppress

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nkv_core.errors import InvalidToken, InvalidVersion, StorageFailed
from nkv_core.records import (
    Change,
    HybridClock,
    RangeTombstone,
    Record,
    Token,
    Tombstone,
    Version,
    counter_of,
    milliseconds_of,
    new_history,
    pack_changes,
    pack_record,
    pack_tombstone,
    timestamp_at,
    unpack_changes,
    unpack_range_tombstone,
    unpack_record,
    unpack_tombstone,
)

number = st.integers(0, 2**64 - 1)
text = st.text(max_size=20)
expiry = st.none() | st.integers(1, 2**47)
records = st.builds(Record, text, st.binary(max_size=50), number, number, number, expiry)
tombstones = st.builds(Tombstone, text, number, number, number)
changes = st.builds(
    Change,
    st.sampled_from(["put", "delete", "touch", "clear"]),
    st.sampled_from(["put", "expire", "replicated"]),
    text,
    number,
    number,
    number,
    st.none() | st.binary(max_size=50),
    st.none() | number,
    expiry,
)


@given(records)
def test_a_record_is_unpacked_as_it_was_packed(record):
    assert unpack_record(record.key, pack_record(record)) == record


@given(tombstones)
def test_a_tombstone_is_unpacked_as_it_was_packed(tombstone):
    packed = pack_tombstone(tombstone)
    assert unpack_tombstone(tombstone.key, packed) == tombstone
    clear = RangeTombstone(tombstone.key, tombstone.revision, tombstone.modified, tombstone.origin)
    assert unpack_range_tombstone(clear.prefix, pack_tombstone(clear)) == clear


@given(st.lists(changes, max_size=5))
def test_changes_are_unpacked_as_they_were_packed(some):
    assert unpack_changes(pack_changes(some)) == some


@given(records, st.integers(0, 40))
def test_what_is_cut_short_is_refused_or_a_shorter_value(record, length):
    packed = pack_record(record)
    assume(length < len(packed))
    header = len(packed) - len(record.value)
    if length < header:
        with pytest.raises(StorageFailed):
            unpack_record(record.key, packed[:length])
    else:
        assert unpack_record(record.key, packed[:length]).value == record.value[: length - header]


@given(st.binary(max_size=60))
def test_rubbish_is_refused_as_damaged_or_read_but_never_crashes(packed):
    for unpack in (
        lambda: unpack_record("k", packed),
        lambda: unpack_tombstone("k", packed),
        lambda: unpack_changes(packed),
    ):
        with suppress(StorageFailed):
            unpack()


@given(tombstones, records)
def test_records_and_tombstones_are_never_taken_for_each_other(tombstone, record):
    with pytest.raises(StorageFailed):
        unpack_record("k", pack_tombstone(tombstone))
    with pytest.raises(StorageFailed):
        unpack_tombstone("k", pack_record(record))


@given(records, records)
def test_of_two_writes_at_most_one_is_newer(one, other):
    assert not (one.newer_than(other) and other.newer_than(one))
    same = (one.modified, one.origin) == (other.modified, other.origin)
    assert one.newer_than(other) or other.newer_than(one) or same
    assert not one.newer_than(one)


@given(records, tombstones)
def test_a_clear_hides_what_is_not_newer_and_has_the_prefix(record, tombstone):
    clear = RangeTombstone(tombstone.key[:1], 1, tombstone.modified, tombstone.origin)
    older = (record.modified, record.origin) <= (clear.modified, clear.origin)
    assert clear.hides(record) == (older and record.key.startswith(clear.prefix))


@given(number, number)
def test_a_record_has_expired_from_its_expiry_on(expires, now):
    assert Record("k", b"", 1, 1, 1, expires).expired(now) == (now >= expires)
    assert not Record("k", b"", 1, 1, 1).expired(now)


# --- versions and tokens --------------------------------------------------------------------------

revision = st.integers(0, 10**19 - 1)


@given(revision)
def test_versions_and_tokens_are_read_as_they_are_written(number):
    history = new_history()
    assert Version.parse(str(Version(history, number))) == Version(history, number)
    assert Token.parse(str(Token(history, number))) == Token(history, number)


@pytest.mark.parametrize(
    "rubbish",
    [
        "",
        "-",
        "1",
        "0123456789abcdef",
        "0123456789abcdef-",
        "0123456789abcde-1",
        "0123456789ABCDEF-1",
        "0123456789abcdef--1",
        "0123456789abcdef-1 ",
        "0123456789abcdef-\u0661",
        "0123456789abcdef-" + "1" * 20,
    ],
)
def test_what_is_no_version_is_refused(rubbish):
    with pytest.raises(InvalidVersion):
        Version.parse(rubbish)


@pytest.mark.parametrize(
    "rubbish",
    [
        "",
        "..",
        "1",
        "1.0123456789abcdef",
        "2.0123456789abcdef.1",
        "1.0123456789abcdef.x",
        "1.0123456789abcdef.-1",
        "1.0123456789abcdef.1.2",
        "1.0123456789abcdeg.1",
        "1.0123456789abcdef." + "1" * 20,
    ],
)
def test_what_is_no_token_or_of_a_later_form_is_refused(rubbish):
    with pytest.raises(InvalidToken):
        Token.parse(rubbish)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(anything):
    with suppress(InvalidVersion):
        assert Version.parse(anything).revision >= 0
    with suppress(InvalidToken):
        assert Token.parse(anything).revision >= 0


def test_histories_differ():
    assert len({new_history() for _ in range(100)}) == 100


# --- time -----------------------------------------------------------------------------------------


@given(st.integers(0, 2**47), st.integers(0, 2**16 - 1))
def test_a_timestamp_holds_milliseconds_and_a_counter(milliseconds, counter):
    timestamp = timestamp_at(milliseconds, counter)
    assert (milliseconds_of(timestamp), counter_of(timestamp)) == (milliseconds, counter)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("now"), st.integers(0, 1000)),
            st.tuples(st.just("observe"), st.integers(0, timestamp_at(1000))),
        ),
        max_size=50,
    ),
    st.integers(0, timestamp_at(1000)),
)
def test_hybrid_time_always_grows_and_is_never_behind(steps, last):
    wall = [0]
    clock = HybridClock(lambda: wall[0], last)
    seen = last
    for kind, value in steps:
        if kind == "observe":
            clock.observe(value)
            seen = max(seen, value)
        else:
            wall[0] = value  # it may well be set back
            given_now = clock.now()
            assert given_now > seen
            assert given_now >= timestamp_at(value)
            seen = given_now
        assert clock.last == seen


def test_more_writes_in_a_millisecond_than_the_counter_holds_go_on_into_the_next():
    clock = HybridClock(lambda: 5)
    stamps = [clock.now() for _ in range(2**16 + 2)]
    assert stamps == sorted(set(stamps))
    assert milliseconds_of(stamps[-1]) == 6
