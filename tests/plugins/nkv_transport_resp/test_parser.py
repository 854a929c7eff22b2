"""The parser: commands out of bytes, however these come, and whatever they are."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

pytest.importorskip("hiredis")
import itertools

from nkv_transport_resp.inline import split_line
from nkv_transport_resp.parser import Parser

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.bin"))
LIMITS = (1000, 10_000, 20_000)

words = st.lists(st.binary(max_size=40), min_size=1, max_size=5)


def packed(command):
    return b"*%d\r\n" % len(command) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in command)


def fed(pieces, limits=LIMITS):
    """Commands, and why reading ended; nothing is fed behind that."""
    parser, commands = Parser(*limits), []
    for piece in pieces:
        some, hostile = parser.feed(piece)
        commands += some
        if hostile is not None:
            return commands, hostile
        assert parser.waiting <= limits[2] + 100_000
    return commands, None


def cut(data, places):
    bounds = sorted({min(place, len(data)) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(bounds)]


@given(st.lists(words, max_size=8), st.lists(st.integers(0, 500), max_size=8))
def test_commands_are_read_however_they_are_cut(commands, places):
    data = b"".join(map(packed, commands))
    assert fed(cut(data, places)) == (commands, None)


@given(st.lists(words, max_size=4), st.lists(words, max_size=4))
def test_lines_may_come_between(before, behind):
    data = b"".join(map(packed, before)) + b"PING  hello\r\n" + b"".join(map(packed, behind))
    assert fed([data]) == ([*before, [b"PING", b"hello"], *behind], None)


pieces = st.one_of(
    st.binary(max_size=30),
    st.sampled_from(
        [
            b"*1\r\n",
            b"$4\r\nPING\r\n",
            b"*-1\r\n",
            b"*0\r\n",
            b"$-1\r\n",
            b"\r\n",
            b"*",
            b"$",
            b"$0\r\n",
            b"*1000000000\r\n",
            b"$536870912\r\n",
            b"*2\r\n*1\r\n",
            b"+OK\r\n",
            b":1\r\n",
            b"%1\r\n",
            b"*1\r\n$3\r\nfoo\r\n",
            b'"a\\x41" b\r\n',
            b"'",
            b'"',
            b"PING\n",
            b"*3\r\n$1\r\n*\r\n",
        ]
    ),
)


@given(st.lists(pieces, max_size=12), st.lists(st.integers(0, 200), max_size=6))
@example([b"*1\r\n$4\r\n*1\r\n\r\n"], [])
def test_nonsense_is_read_the_same_however_it_is_cut(pieces, places):
    data = b"".join(pieces)
    assert fed(cut(data, places)) == fed([data])


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_the_corpus_is_read_the_same_however_it_is_cut(path):
    data = path.read_bytes()
    whole = fed([data])
    assert fed([data[i : i + 1] for i in range(len(data))]) == whole
    for size in (2, 3, 7, 64):
        assert fed([data[i : i + size] for i in range(0, len(data), size)]) == whole


def test_there_is_a_corpus():
    assert len(CORPUS) >= 20


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"*1001\r\n", "invalid multibulk length"),
        (b"*abc\r\n", "invalid multibulk length"),
        (b"*99999999999999999999\r\n", "invalid multibulk length"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*1\r\n$10001\r\n", "invalid bulk length"),
        (b"*1\r\n$536870912\r\n", "invalid bulk length"),
        (b"*1\r\n$x\r\n", "invalid bulk length"),
        (b"*1\r\n*1\r\n", "expected '$', got '*'"),
        (b"*1\r\n:1\r\n", "expected '$', got ':'"),
        (b"*3\r\n" + b"$9000\r\n" + bytes(9000) + b"\r\n$9000\r\n" + bytes(9000) + b"\r\n$9000\r\n",
         "the command is too large"),
        (b"a" * 65537, "too big inline request"),
        (b"*" + b"1" * 65537, "too big mbulk count string"),
        (b"*1\r\n$" + b"1" * 65537, "too big bulk count string"),
        (b'"a\r\n', "unbalanced quotes in request"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_command_ends_the_reading(data, why):
    before = packed([b"PING"])
    commands, hostile = fed([before + data])
    assert commands == [[b"PING"]]
    assert hostile == f"Protocol error: {why}"


@pytest.mark.parametrize("data", [b"*0\r\n", b"*-1\r\n", b"*-10\r\n", b"\r\n", b"\n", b"  \r\n"])
def test_empty_commands_ask_for_nothing(data):
    assert fed([data * 3 + packed([b"PING"])]) == ([[b"PING"]], None)


def test_what_is_announced_takes_no_room():
    parser = Parser(1_000_000, 2**30, 2**30)
    assert parser.feed(b"*1000000\r\n$536870912\r\nabc") == ([], None)
    assert parser.waiting < 100


def test_a_large_value_in_many_pieces():
    value = bytes(range(256)) * 2000
    data = packed([b"SET", b"k", value])
    chunks = [data[i : i + 4000] for i in range(0, len(data), 4000)]
    assert fed(chunks, (10, 2**20, 2**20)) == ([[b"SET", b"k", value]], None)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b"", []),
        (b"  set  a\tb ", [b"set", b"a", b"b"]),
        (rb'set a "b c"', [b"set", b"a", b"b c"]),
        (rb'set a "\x41\n\r\t\a\b\"\\q"', [b"set", b"a", b'A\n\r\t\a\b"\\q']),
        (rb'"\xzz"', [b"xzz"]),
        (rb"'it\'s' '\n'", [b"it's", rb"\n"]),
        (b'""', [b""]),
        (b'"a', None),
        (b"'a", None),
        (b'"a"b', None),
        (b"'a'b", None),
        (b'"a\\', None),
    ],
)
def test_lines_are_split_as_redis_does(line, found):
    assert split_line(line) == found
