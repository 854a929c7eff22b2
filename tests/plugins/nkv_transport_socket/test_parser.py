"""The parser and what is sent, without a socket: properties, and rubbish."""

import base64
import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nkv_core.records import Record
from nkv_transport_socket.dialects import DIALECTS, frame
from nkv_transport_socket.messages import Call, Hostile, Malformed
from nkv_transport_socket.parser import Parser

NAMES = st.text(
    st.characters(min_codepoint=33, exclude_categories=("Cc", "Cs")), min_size=1, max_size=20
)
VALUES = st.binary(max_size=300)
VERBS = st.sampled_from(["PUT", "GET", "DEL", "SUB", "UNSUB"])
JSON_VERBS = {
    "PUT": "Put",
    "GET": "Get",
    "DEL": "Delete",
    "SUB": "Subscribe",
    "UNSUB": "Unsubscribe",
}


def encoded(call):
    if call.dialect == "json":
        fields = {"type": JSON_VERBS[call.verb], "id": call.id, "key": call.key}
        fields["client_uuid"] = call.client
        if call.verb == "PUT":
            fields["value"] = list(call.value)
        return json.dumps(fields).encode() + b"\n"
    fields = [call.verb, call.id, call.client, call.key]
    if call.verb == "PUT":
        fields.append(base64.b64encode(call.value).decode())
    line = (" ".join(fields) + "\n").encode()
    return frame(line) if call.dialect == "framed" else line


@st.composite
def calls(draw):
    verb = draw(VERBS)
    # An id with a slash in front is that of no client, and of a page on the web.
    name = draw(NAMES.filter(lambda text: not text.startswith(("/", "http"))))
    client = draw(NAMES.filter(lambda text: not text.startswith("HTTP/")))
    dialect = draw(st.sampled_from(["line", "framed", "json"]))
    value = draw(VALUES) if verb == "PUT" else b""
    return Call(dialect, verb, name, client, draw(NAMES), value)


def pieces(data, cuts):
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(places)]


def parse(parser, parts):
    found = []
    for part in parts:
        parser.feed(part)
        while (incoming := parser.next()) is not None:
            found.append(incoming)
    return found


@given(st.lists(calls(), max_size=8), st.lists(st.integers(0, 3000), max_size=10))
def test_requests_are_read_back_however_they_are_cut_into_pieces(wanted, cuts):
    data = b"".join(map(encoded, wanted))
    assert parse(Parser(100_000), pieces(data, cuts)) == wanted


@given(st.integers(0, 100_000))
def test_a_frame_of_any_length_is_a_frame(length):
    parser = Parser(100_000)
    parser.feed(length.to_bytes(4, "little"))
    assert parser.next() is None or length == 0
    parser.feed(b"x" * length)
    incoming = parser.next() if length else Malformed("framed", "-", "")
    assert isinstance(incoming, Malformed)
    assert incoming.dialect == "framed"
    assert not incoming.fatal
    assert not parser.pending


RUBBISH = st.one_of(
    st.binary(max_size=400),
    st.lists(
        st.sampled_from(
            [b"PUT ", b"GET ", b"SUB ", b"AUTH ", b"\n", b" ", b"{", b"}", b'"type":', b"\x00",
             b"\x05\x00\x00\x00", b"A\n\x00\x00", b"==", b"1", b"Host:", b"POST ", b"\xff", b"*"]
        )
    ).map(b"".join),
)  # fmt: skip


@settings(max_examples=500)
@given(RUBBISH, st.lists(st.integers(0, 400), max_size=6))
def test_rubbish_never_raises_and_never_depends_on_the_pieces(data, cuts):
    whole, cut = Parser(200), Parser(200)
    one, other = parse(whole, [data]), parse(cut, pieces(data, cuts))
    assert one == other
    assert whole.pending == cut.pending
    for parser in (whole, cut):
        if parser.doubtful:
            assert not isinstance(parser.quiet(), Malformed) or not parser.doubtful
        if parser.pending:
            assert parser.given_up().fatal
        parser.feed(b"after the end")
        assert parser.next() is None


@given(st.binary(min_size=1, max_size=5000), st.integers(10, 300))
def test_what_is_kept_is_bounded(data, limit):
    parser = Parser(limit)
    for at in range(0, len(data), 50):
        parser.feed(data[at : at + 50])
        while parser.next() is not None:
            pass
        assert len(parser._buffer) <= limit + 50 + 4


@pytest.mark.parametrize(
    "data", [b"SUB 1 me k", b'{"type":"Get","id":"1","key":"k","client_uuid":"me"}']
)
def test_a_request_without_its_newline_is_taken_when_nothing_follows(data):
    parser = Parser(1000)
    parser.feed(data)
    assert parser.next() is None
    assert parser.doubtful
    assert isinstance(parser.quiet(), Call)
    parser.feed(b"\nGET 2 me k\n")
    assert parser.next() == Call("line", "GET", "2", "me", "k")
    assert not parser.pending


@pytest.mark.parametrize("data", [b"SUB 1 me", b"GET 1 me k", b"PUT 1 me k d", b'{"a":{}'])
def test_what_is_not_whole_is_not_taken_however_quiet_it_is(data):
    parser = Parser(1000)
    parser.feed(data)
    assert parser.next() is None
    assert parser.quiet() is None
    assert parser.pending


def test_http_is_recognised_before_its_line_ends_and_nothing_behind_it_is_read():
    parser = Parser(1000)
    parser.feed(b"POST /")
    assert parser.next() == Hostile()
    parser.feed(b" HTTP/1.1\r\n\r\nPUT 1 me k dg==\n")
    assert parser.next() is None


def test_a_token_is_not_in_what_is_told_of_a_bad_line():
    parser = Parser(1000)
    parser.feed(b"AUTH secret extra\n" + frame(b"AUTH secret extra\n"))
    for _ in range(2):
        incoming = parser.next()
        assert isinstance(incoming, Malformed)
        assert "secret" not in repr(incoming)


RECORDS = st.lists(
    st.builds(Record, NAMES, VALUES, st.just(1), st.just(1), st.just(1)), min_size=1, max_size=5
)


@given(NAMES, RECORDS)
def test_what_was_found_can_be_read_back(name, records):
    call = Call("line", "GET", name)
    line = DIALECTS["line"].records(call, records).decode()
    assert line.endswith("\n")
    got, ok, *values = line[:-1].split(" ")
    assert (got, ok) == (name, "OK")
    assert [base64.b64decode(value) for value in values] == [r.value for r in records]

    framed = DIALECTS["framed"].records(call, records)
    assert int.from_bytes(framed[:4], "little") == len(framed) - 4
    kind, got, ok, *words = framed[4:-1].decode().split(" ")
    assert (kind, got, ok) == ("data", name, "OK")
    assert words[::2] == [r.key for r in records]
    assert [base64.b64decode(word) for word in words[1::2]] == [r.value for r in records]

    answer = json.loads(DIALECTS["json"].records(call, records))
    assert answer["Get"]["data"] == [list(r.value) for r in records]
