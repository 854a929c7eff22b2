"""Keys and values that a dialect cannot carry: written by each, read and watched by each other."""

import pytest

from .brokers import NatsDialect, one_of_each
from .place import until_told
from .writers import Refused, is_key, open_writers

pytestmark = pytest.mark.anyio

#: Bytes: small, so that a value of that size is soon told by everybody.
MAX_VALUE = 32 * 1024
#: What a message of the NATS server holds: not every value in every form.
MAX_PAYLOAD = 2 * MAX_VALUE
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
    "x>y",
    "empty..level",
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
    b"\x00" * MAX_VALUE,
    b"z" * (MAX_VALUE + 1),
)


def samples(number):
    """All keys and values for one writer, each key once."""
    keys = [(f"a.{number}k{place}.{end}", b"value") for place, end in enumerate(KEYS)]
    return keys + [(f"a.{number}v{place}", value) for place, value in enumerate(VALUES)]


async def outcome(doing):
    """The value of a get, None of a put; or the code that it is refused with."""
    try:
        return await doing
    except Refused as refused:
        return refused.code


@pytest.mark.one_python
async def test_what_each_dialect_writes_each_other_reads_and_watches_or_refuses(placed, watching):
    place = placed(MAX_PAYLOAD, keyspace__max_value_bytes=MAX_VALUE)
    place.start()
    subscribers, dialect = one_of_each(place), NatsDialect(place)
    async with watching([*subscribers, dialect]), open_writers(place) as writers:
        (v1,) = (writer for writer in writers if writer.name == "v1")
        seeds, put, all_of_it = [], [], []
        for number, writer in enumerate(writers):
            for key, value in samples(number):
                sample = f"{writer.name}: {key[:60]!r} {value[:60]!r}"
                if is_key(key):
                    await v1.put(key, b"seed")
                    seeds.append((key, b"seed"))
                    all_of_it.append(seeds[-1])
                    answered = await dialect.ask_for(key)
                    assert answered == (200 if dialect.carries(key, b"seed") else 404), sample
                refusal = writer.refuses(key, value)
                assert await outcome(writer.put(key, value)) == refusal, sample
                if refusal is not None:
                    if is_key(key):
                        assert await v1.get(key) == b"seed", sample
                    continue
                put.append((key, value))
                all_of_it.append(put[-1])
                for reader in writers:
                    expected = reader.withholds(key, value) or value
                    found = await outcome(reader.get(key))
                    assert found == expected, f"{sample}, read by {reader.name}"
        assert len(put) > len(writers) * 20
        assert await counted(place, "/v1/status", "records") == len(seeds)

        for subscriber in [*subscribers, dialect]:
            changes = put if subscriber is dialect else all_of_it
            expected = [
                (k, subscriber.told_of(k, v)) for k, v in changes if subscriber.carries(k, v)
            ]
            await until_told(subscriber, len(expected))
            told = [(each.key, each.value) for each in subscriber.told]
            assert [key for key, _ in told] == [key for key, _ in expected], subscriber.name
            assert told == expected, subscriber.name
        await check_counts(place, subscribers, dialect, put, all_of_it)


async def counted(place, path, name):
    async with place.http() as http:
        return (await http.get(path)).json()[name]


async def check_counts(place, subscribers, dialect, put, all_of_it):
    """What a subscriber was not told, the node has counted."""
    left_out = {one.name: sum(not one.carries(*each) for each in all_of_it) for one in subscribers}
    assert {name for name, count in left_out.items() if count} == {
        "socketio",
        "line",
        "framed",
        "nats",
    }
    for path, name, count in (
        ("/v1/notifiers/socketio", "left_out_not_text", left_out["socketio"]),
        ("/v1/status/socket", "left_out_spaces", left_out["line"] + left_out["framed"]),
        ("/v1/notifiers/nats", "left_out_no_subject", left_out["nats"]),
    ):
        assert await counted(place, path, name) == count, path
    (nats,) = (one for one in subscribers if one.name == "nats")
    large = sum(nats.carries(k, v) and nats.told_of(k, v) is None for k, v in all_of_it)
    assert large > 0
    assert await counted(place, "/v1/notifiers/nats", "values_left_out") == large
    large = sum(dialect.carries(k, b"") and not dialect.carries(k, v) for k, v in put)
    assert large > 0
    assert await counted(place, "/v1/status/nats", "left_out_too_large") == large


async def test_a_key_that_is_none_is_refused_by_all_and_changes_nothing(place):
    async with open_writers(place) as writers:
        for key in ("", ".", "..", "a" * 513, "a\x7f"):
            for writer in writers:
                if (writer.name, key) != ("v1", ""):  # that path is the list of all records
                    refused = writer.refuses(key, b"value")
                    assert refused is not None
                    assert await outcome(writer.put(key, b"value")) == refused, (writer.name, key)
                if key != "":
                    with pytest.raises(Refused):
                        await writer.get(key)
    assert await counted(place, "/v1/status", "records") == 0


async def test_a_star_is_a_plain_character_but_to_the_socket(place):
    async with open_writers(place) as writers:
        by_name = {writer.name: writer for writer in writers}
        await by_name["v1"].put("a.*", b"star")
        await by_name["v1"].put("a.b", b"below")
        for writer in writers:
            if writer.name in ("line", "framed", "json"):
                answer = await writer.ask("GET", "1", "me", "a.*")
                assert writer.dialect.values(answer) == [b"star", b"below"], writer.name
            else:
                assert await writer.get("a.*") == b"star"
