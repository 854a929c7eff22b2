"""Server-Sent Events, cut anywhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nkv_core.client.sse import Event, EventDecoder
from nkv_core.errors import NkvError


def events(*pieces, limit=1000):
    decoder = EventDecoder(limit)
    return [event for piece in pieces for event in decoder.feed(piece)]


def test_the_fields_of_an_event():
    stream = b"\xef\xbb\xbfid: 7\nevent:put\ndata: a\ndata:  b\nretry: 5\nfoo: x\n: y\n\n"
    assert events(stream) == [Event("put", "7", b"a\n b")]
    assert events(b"data\n\n", b"\n\n: only\n\nretry: 1\n\n") == [Event("message", "", b"")]


def test_an_id_stays_until_there_is_another():
    stream = b"id: 1\ndata: a\n\ndata: b\n\nid: 2\n\nid: \x00\ndata: c\n\nid\ndata: d\n\n"
    assert [event.id for event in events(stream)] == ["1", "1", "2", "2", ""]


lines = st.sampled_from(
    [b"", b"", b"data: x", b"data:", b"id: 3", b"event: put", b": c", "data: ü".encode(), b"zz"]
)


@given(
    st.lists(st.tuples(lines, st.sampled_from([b"\n", b"\r\n", b"\r"]))),
    st.lists(st.integers(0, 200)),
)
def test_where_it_is_cut_makes_no_difference(rows, cuts):
    stream = b"".join(line + end for line, end in rows)
    # An empty line behind a lone CR makes that a CR LF, whoever wrote it.
    whole = events(stream + b"\n\n")
    places = sorted(cut for cut in cuts if cut < len(stream))
    pieces = [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]
    assert events(*pieces, b"\n\n") == whole


@pytest.mark.parametrize(
    "pieces",
    [
        [b"data: " + b"x" * 100],
        [b"data: ", *[b"x"] * 100],
        [b"data: x\n"] * 20,
        [b": x"] * 40,
        [b"data: " + b"x" * 100 + b"\n\n"],
    ],
)
def test_an_event_has_a_bound(pieces):
    with pytest.raises(NkvError) as raised:
        events(*pieces, limit=90)
    assert raised.value.code == "unexpected_reply"


def test_the_bound_is_of_each_event_and_not_of_all():
    assert len(events(*[b"data: 12345678\n\n"] * 100, limit=20)) == 100
    assert len(events(b"data: 12345678\n\n" * 100, limit=20)) == 100
    assert events(*[b":\n\n"] * 100, limit=20) == []
