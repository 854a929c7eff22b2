"""One put over each transport is seen by a subscriber of each kind, at the same time."""

import pytest

from .place import until
from .subscribers import Mirror, one_of_each
from .writers import writers

pytestmark = pytest.mark.anyio


async def test_a_put_over_each_transport_is_seen_once_and_in_order_by_each_kind(place, watching):
    subscribers, mirror = one_of_each(place), Mirror(place)
    async with watching([*subscribers, mirror]), place.http() as http:
        put = []
        for number, writer in enumerate(writers(place, http)):
            key, value = f"a.{number}.{writer.name}", f"by {writer.name}".encode()
            assert await writer.put(key, value)
            put.append((key, value))
        for subscriber in subscribers:
            await until(lambda one=subscriber: len(one.told) >= len(put), lambda: subscriber.told)
        await until(lambda: mirror.store == dict(put), lambda: mirror.store)
        # One more behind: nothing came twice, and nothing else came in between.
        await http.put("/v1/kv/a.end", content=b"end")
        put.append(("a.end", b"end"))
        for subscriber in subscribers:
            await until(lambda one=subscriber: one.told[-1].key == "a.end", subscriber.name)
            assert [(each.key, each.value) for each in subscriber.told] == put, subscriber.name
            assert {each.kind for each in subscriber.told} == {"put"}
    with_token = [subscriber for subscriber in subscribers if subscriber.tokens]
    assert len(with_token) >= 5
    tokens = [[each.token for each in subscriber.told] for subscriber in with_token]
    assert all(each == tokens[0] for each in tokens)
    assert len(set(tokens[0])) == len(put)
    assert None not in tokens[0]
