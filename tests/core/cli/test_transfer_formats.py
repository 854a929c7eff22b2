"""Reading and writing the files of import and export."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nkv_core.cli.formats import (
    Entry,
    Lines,
    Skipped,
    csv_reader,
    format_of,
    read_json_lines,
    write_json_line,
)
from nkv_core.client import Item
from nkv_core.errors import InvalidKey
from nkv_core.keys import check_key

LIMIT = 1024


def lines_of(data, limit=LIMIT):
    return Lines(io.BytesIO(data), limit)


def read(data, limit=LIMIT, first=1):
    return list(read_json_lines(lines_of(data, limit), first))


def read_rows(data, *, delimiter=",", header=False, limit=LIMIT, first=1):
    return list(csv_reader(delimiter, header=header, limit=limit)(lines_of(data, limit), first))


def is_key(text):
    try:
        check_key(text)
    except InvalidKey:
        return False
    return True


keys = st.text(min_size=1, max_size=40).filter(is_key)
expiries = st.none() | st.integers(0, 253_402_300_799_999)


class Trickle(io.BytesIO):
    """Gives what was put in piece by piece, as a pipe does."""

    def __init__(self, pieces):
        super().__init__()
        self.pieces = list(pieces)

    def read1(self, size=-1):
        return self.pieces.pop(0) if self.pieces else b""


# --- lines ----------------------------------------------------------------------------------------


@given(st.binary(max_size=200), st.integers(1, 20), st.integers(1, 40))
def test_lines_are_the_same_however_the_bytes_arrive(data, size, limit):
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    expected = data.split(b"\n")
    if not expected[-1]:
        expected.pop()
    expected = [None if len(line) > limit else line for line in expected]
    if expected and expected[0] is not None:
        expected[0] = expected[0].removeprefix(b"\xef\xbb\xbf")
    expected = [line if line is None else line.removesuffix(b"\r") for line in expected]
    assert list(Lines(Trickle(pieces), limit)) == expected


def test_a_line_without_end_is_not_kept():
    lines = Lines(Trickle([b"x" * 1000] * 1000 + [b"\nnext\n"]), 2000)
    assert next(lines) is None
    assert len(lines._rest) <= 2000
    assert next(lines) == b"next"
    assert lines.number == 2


def test_it_is_known_whether_a_line_is_at_hand():
    lines = Lines(Trickle([b"one\ntwo\nthr", b"ee\n"]), LIMIT)
    assert next(lines) == b"one"
    assert lines.at_hand
    assert next(lines) == b"two"
    assert not lines.at_hand
    assert next(lines) == b"three"


# --- JSON Lines -----------------------------------------------------------------------------------


def test_text_bytes_and_expiry_are_read():
    data = (
        b'{"key":"a","value":"1"}\n{"key":"b","value_base64":"/wA="}\n'
        b'{"key":"c","value":"","expires":"2030-01-02T03:04:05.006Z"}\n'
    )
    assert read(data) == [
        Entry(1, "a", b"1"),
        Entry(2, "b", b"\xff\x00"),
        Entry(3, "c", b"", 1893553445006),
    ]


def test_line_ends_of_windows_empty_lines_and_a_byte_order_mark_are_fine():
    data = b'\xef\xbb\xbf{"key":"a","value":"1"}\r\n\r\n   \n{"key":"b","value":"2"}'
    assert read(data) == [Entry(1, "a", b"1"), Entry(4, "b", b"2")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"nonsense", "not a record"),
        (b'{"key":"a","value":"1"', "not a record"),
        (b'["a","1"]', "not a record"),
        (b'{"value":"1"}', "`key`"),
        (b'{"key":"a"}', "neither"),
        (b'{"key":"a","value":"1","value_base64":"MQ=="}', "both"),
        (b'{"key":"a","value":1}', "not a record"),
        (b'{"key":"a","value":null}', "not a record"),
        (b'{"key":"a","value_base64":"???"}', "not a record"),
        (b'{"key":"a","value":"1","ttl":5}', "`ttl`"),
        (b'{"key":"a","value":"1","expires":"tomorrow"}', "not a time"),
        (b'{"key":"a","value":"1","expires":1893553445006}', "not a record"),
        (b'{"key":"a","value":"1","expires":"2030-13-01T00:00:00Z"}', "not a time"),
        (b'{"key":"","value":"1"}', "empty"),
        (b'{"key":"..","value":"1"}', "cannot be a key"),
        (b'{"key":"a\\u0007","value":"1"}', "control character"),
        (b'{"key":"\\ud800","value":"1"}', "not a record"),
        (b'{"key":"\xff","value":"1"}', "not a record"),
        (b'{"key":"a","value":"' + b"x" * LIMIT + b'"}', "too long"),
    ],
)
def test_a_line_that_is_no_record_is_skipped_with_its_number_and_reason(line, reason):
    good = b'{"key":"good","value":"1"}\n'
    before, skipped, after = read(good + line + b"\n" + good)
    assert before == Entry(1, "good", b"1")
    assert isinstance(skipped, Skipped)
    assert skipped.line == 2
    assert reason in skipped.reason
    assert after == Entry(3, "good", b"1")


def test_reading_can_begin_with_a_later_line():
    data = b'bad\n{"key":"a","value":"1"}\n{"key":"b","value":"2"}\n'
    assert read(data, first=3) == [Entry(3, "b", b"2")]


@given(keys, st.binary(max_size=100) | st.text(max_size=100).map(str.encode), expiries)
def test_what_is_written_is_read_as_the_same_record(key, value, expires):
    line = write_json_line(Item(key, value, "v", 0, expires))
    assert line.count(b"\n") == 1
    assert read(line, limit=10_000) == [Entry(1, key, value, expires)]


@given(keys, st.text(max_size=100))
def test_text_is_written_as_text(key, text):
    fields = json.loads(write_json_line(Item(key, text.encode(), "v", 0)))
    assert fields == {"key": key, "value": text}


# --- CSV and TSV ----------------------------------------------------------------------------------


def test_rows_of_two_columns_are_read():
    assert read_rows(b'a,1\r\nb,"2,""3"""\n\nc,\n"d",\xff') == [
        Entry(1, "a", b"1"),
        Entry(2, "b", b'2,"3"'),
        Entry(4, "c", b""),
        Entry(5, "d", b"\xff"),
    ]


def test_a_value_may_have_line_ends_in_quotes():
    assert read_rows(b'a,"1\n2"\nb,3\n') == [Entry(1, "a", b"1\n2"), Entry(3, "b", b"3")]


def test_columns_of_a_tsv_are_between_tabs():
    assert read_rows(b"a\t1,2\n", delimiter="\t") == [Entry(1, "a", b"1,2")]


def test_a_header_is_passed_over():
    data = b"\xef\xbb\xbfkey,value\na,1\n"
    assert read_rows(data, header=True) == [Entry(2, "a", b"1")]
    assert read_rows(data) == [Entry(1, "key", b"value"), Entry(2, "a", b"1")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"a", "1 columns"),
        (b"a,1,2", "3 columns"),
        (b",1", "empty"),
        (b'a,"1"2', "not a row"),
        (b"a,1\r2", "not a row"),
        (b"\xff,1", "not valid UTF-8"),
        (b"a," + b"x" * LIMIT, "too long"),
    ],
)
def test_a_row_that_is_no_record_is_skipped_with_its_line(row, reason):
    before, skipped, after = read_rows(b"good,1\n" + row + b"\ngood,2\n")
    assert before == Entry(1, "good", b"1")
    assert isinstance(skipped, Skipped)
    assert skipped.line == 2
    assert reason in skipped.reason
    assert after == Entry(3, "good", b"2")


def test_a_row_with_a_dropped_line_within_is_skipped_whole():
    data = b'a,"1\n' + b"x" * (LIMIT + 1) + b'\n2"\nb,3\n'
    found = read_rows(data)
    assert [entry.line for entry in found if isinstance(entry, Skipped)] == [2, 1]
    assert found[-1] == Entry(4, "b", b"3")


def test_a_quote_without_end_is_told_with_all_lines_that_it_swallowed():
    (before, skipped) = read_rows(b'a,1\nb,"2\nc,3\nd,4\n')
    assert before == Entry(1, "a", b"1")
    assert skipped.line == 2
    assert "up to line 4" in skipped.reason


def test_a_quote_without_end_does_not_fill_the_memory():
    found = read_rows(b'a,"\n' + b"row,1\n" * 1000 + b"b,2\n", limit=600)
    assert isinstance(found[0], Skipped)
    assert found[0].line == 1
    assert "up to line" in found[0].reason
    assert found[-1] == Entry(1002, "b", b"2")


def test_reading_rows_can_begin_with_a_later_line():
    assert read_rows(b'a,"1\n2"\nb,3\nc,4\n', first=3) == [
        Entry(3, "b", b"3"),
        Entry(4, "c", b"4"),
    ]


def test_the_limit_of_the_csv_module_is_put_back():
    before = csv.field_size_limit()
    read_rows(b"a,1\n")
    assert csv.field_size_limit() == before


@given(st.lists(st.tuples(keys, st.text(alphabet=st.characters(codec="utf-8"), max_size=20))))
def test_what_the_csv_module_writes_is_read(rows):
    rows = [(key, value.replace("\r", "")) for key, value in rows]
    file = io.StringIO(newline="")
    csv.writer(file).writerows(rows)
    found = read_rows(file.getvalue().encode(), limit=100_000)
    assert [(entry.key, entry.value.decode()) for entry in found] == rows


def test_the_format_is_told_by_the_name():
    assert format_of("a/b.JSONL") == "jsonl"
    assert format_of("x.csv") == "csv"
    assert format_of("x.tsv") == "tsv"
    assert format_of("x.txt") is None
