"""Keys and values that a dialect cannot carry: written by each, read and watched by each other."""

import pytest

from .place import until
from .subscribers import one_of_each
from .writers import MAX_VALUE, Refused, WebSocket, writers

pytestmark = pytest.mark.anyio

#: Ends of keys, each put with a value that every dialect can carry.
KEYS = (
    "plain",
    "two words",
    " ",
    "trailing ",
    "ключ.é",
    "\U0001f600",
    "a/b?c&d=e+f%20g#h",
    '"quoted\\',
    "<script>",
    "*",
    "x*y",
    "*.below",
    "..",
    "\u2028",
    "k" * 70,
    "k" * 500,
    "k" * 510,
    "é" * 250,
    "control\x01",
    "line\nend",
    "nul\x00",
    "c1\x85",
)
#: Values, each put at a key that every dialect can carry.
VALUES = (
    b"",
    b" ",
    b"plain",
    "é \U0001f600".encode(),
    b"\xff\x00\xfe",
    b"\xed\xa0\x80",  # a lone surrogate, which UTF-8 does not have
    b"line\nend\r\n",
    b"data: x\n\nevent: put\n",
    b'{"json": [1]} "quoted\\',
    b"a set with value: b",
    b"x" * 255,
    b"x" * 256,
    b"\x00",
    bytes(range(256)),
    b"z" * MAX_VALUE,
    b"z" * (MAX_VALUE + 1),
)


def samples(number):
    """All keys and values for one writer, each key once."""
    keys = [(f"a.{number}k{place}.{end}", b"value") for place, end in enumerate(KEYS)]
    return keys + [(f"a.{number}v{place}", value) for place, value in enumerate(VALUES)]


async def read(reader, key):
    try:
        return await reader.get(key)
    except Refused:
        return None


async def test_what_each_dialect_writes_each_other_reads_and_watches_or_refuses(place, watching):
    subscribers = one_of_each(place)
    async with watching(subscribers), place.http() as http:
        kinds = writers(place, http)
        put = []
        for number, writer in enumerate(kinds):
            for key, value in samples(number):
                sample = f"{writer.name}: {key[:60]!r} {value[:60]!r}"
                accepted = await writer.put(key, value)
                assert accepted == writer.takes(key, value), sample
                if not accepted:
                    continue
                put.append((key, value))
                for reader in kinds:
                    found = await read(reader, key)
                    expected = value if reader.gives(key, value) else None
                    assert found == expected, f"{sample}, read by {reader.name}"
        assert len(put) > len(kinds) * 20
        # What was refused has changed nothing.
        assert (await http.get("/v1/status")).json()["records"] == len(put)

        for subscriber in subscribers:
            expected = [(k, v) for k, v in put if subscriber.carries(k, v)]
            await until(
                lambda one=subscriber, all_of_it=expected: len(one.told) >= len(all_of_it),
                lambda one=subscriber: f"{one.name}, which has {len(one.told)}",
            )
            told = [(each.key, each.value) for each in subscriber.told]
            assert [key for key, _ in told] == [key for key, _ in expected], subscriber.name
            assert told == expected, subscriber.name

        left_out = {
            subscriber.name: sum(not subscriber.carries(k, v) for k, v in put)
            for subscriber in subscribers
        }
        assert {name for name, count in left_out.items() if count} == {"socketio", "line", "framed"}
        counted = (await http.get("/v1/notifiers/socketio")).json()["left_out_not_text"]
        assert counted == left_out["socketio"]
        counted = (await http.get("/v1/status/socket")).json()["left_out_spaces"]
        assert counted == left_out["line"] + left_out["framed"]


@pytest.mark.parametrize("key", ["", ".", "..", "a" * 513, "a\x7f"])
async def test_a_key_that_is_none_is_refused_by_all_and_changes_nothing(place, key):
    async with place.http() as http:
        for writer in writers(place, http):
            if (writer.name, key) != ("v1", ""):  # that path is the list of all records
                assert not await writer.put(key, b"value"), writer.name
            if key != "":
                assert await read(writer, key) is None, writer.name
        assert (await http.get("/v1/status")).json()["records"] == 0


async def test_a_star_is_a_plain_character_but_to_the_socket(place):
    async with place.http() as http:
        by_name = {writer.name: writer for writer in writers(place, http)}
        assert await by_name["v1"].put("a.*", b"star")
        assert await by_name["v1"].put("a.b", b"below")
        for name in ("v1", "nkvd", "flask", WebSocket.name):
            assert await by_name[name].get("a.*") == b"star"
        for name in ("line", "framed", "json"):
            dialect = by_name[name].dialect
            answer = await by_name[name]._ask("GET", "1", "me", "a.*")
            assert dialect.values(answer) == [b"star", b"below"], name
