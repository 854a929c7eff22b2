"""One put over each transport is seen by a subscriber of each kind, at the same time."""

import pytest

from .brokers import NatsDialect, one_of_each
from .place import until, until_told
from .subscribers import Mirror
from .writers import open_writers

pytestmark = pytest.mark.anyio

#: The kinds that carry a token.
WITH_TOKEN = {"sse", "websocket", "zeromq", "webhook", "nats", "client", "nkv watch"}


async def test_a_put_over_each_transport_is_seen_once_and_in_order_by_each_kind(place, watching):
    subscribers, mirror, dialect = one_of_each(place), Mirror(place), NatsDialect(place)
    async with watching([*subscribers, mirror, dialect]), open_writers(place) as writers:
        by_name = {writer.name: writer for writer in writers}
        assert len(by_name) == 9
        # Only keys that are there can be asked for in the NATS dialect.
        keys = [f"a.{number}.{name}" for number, name in enumerate(by_name)]
        seeds = [(key, b"seed") for key in [*keys, "a.end"]]
        for key, value in seeds:
            await by_name["v1"].put(key, value)
            assert await dialect.ask_for(key) == 200
        put = []
        for key, writer in zip(keys, writers, strict=True):
            put.append((key, f"by {writer.name}".encode()))
            await writer.put(*put[-1])
        for subscriber in subscribers:
            await until_told(subscriber, len(seeds + put))
        await until(lambda: mirror.store == dict(seeds + put), lambda: mirror.store)
        # One more behind: nothing came twice, and nothing else came in between.
        put.append(("a.end", b"end"))
        await by_name["v1"].put(*put[-1])
        for subscriber, expected in [*((one, seeds + put) for one in subscribers), (dialect, put)]:
            await until_told(subscriber, len(expected))
            told = [(each.key, each.value) for each in subscriber.told]
            assert told == [(k, subscriber.told_of(k, v)) for k, v in expected], subscriber.name
            assert {each.kind for each in subscriber.told} == {"put"}
    tokens = {one.name: [each.token for each in one.told] for one in subscribers if one.tokens}
    assert set(tokens) == WITH_TOKEN
    assert all(each == tokens["sse"] for each in tokens.values())
    assert len(set(tokens["sse"])) == len(seeds + put)
    assert None not in tokens["sse"]
