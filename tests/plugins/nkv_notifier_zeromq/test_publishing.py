"""What a subscriber of ZeroMQ gets."""

import hashlib
import socket

import anyio
import httpx2
import pytest

from nkv_core.client import AsyncClient
from nkv_core.config import load_settings
from nkv_core.errors import SettingsError, StartError
from nkv_core.node import Node

from .conftest import CONTROL, ZEROMQ, address_of

pytestmark = pytest.mark.anyio


async def shown(node):
    (url,) = [url for url in node.addresses if url.startswith("http://")]
    async with httpx2.AsyncClient(base_url=url, trust_env=False) as client:
        return (await client.get("/v1/notifiers/zeromq")).json()


async def test_each_change_is_published_once_and_in_order_with_its_token(serving, subscribe):
    async with serving() as node:
        subscriber = await subscribe(node)
        await node.keyspace.put("a", b"1")
        await node.keyspace.put("b.c", b"\xff")
        await node.keyspace.touch("a", 2**42)
        await node.keyspace.delete("a")
        await node.keyspace.clear("b")
        got = [await subscriber.next() for _ in range(5)]
        status = await shown(node)
        history = node.keyspace.history
    assert [message.event for message in got] == ["put", "put", "touch", "delete", "clear"]
    assert [message.topic for message in got] == [b"a", b"b.c", b"a", b"a", CONTROL]
    assert [message.token for message in got] == [f"1.{history}.{n}" for n in range(1, 6)]
    assert [message.about["sequence"] for message in got] == [1, 2, 3, 4, 5]
    assert len({message.about["publisher"] for message in got}) == 1
    assert got[0].data["value"] == "1"
    assert got[1].data["value_base64"] == "/w=="
    assert got[4].data["prefix"] == "b"
    assert status == {
        "publisher": got[0].about["publisher"],
        "published": 5,
        "token": got[4].token,
        "behind": 0,
        "gaps": 0,
    }


async def test_a_topic_is_the_beginning_of_keys_and_clears_reach_all_who_ask(serving, subscribe):
    async with serving() as node:
        subscriber = await subscribe(node, b"a.", CONTROL)
        await node.keyspace.put("b.1", b"no")
        await node.keyspace.put("a.1", b"yes")
        await node.keyspace.clear("a")
        got = [await subscriber.next() for _ in range(2)]
    assert [(message.event, message.topic) for message in got] == [
        ("put", b"a.1"),
        ("clear", CONTROL),
    ]


async def test_only_changes_of_the_pattern_are_published(serving, subscribe):
    async with serving(pattern="a.*") as node:
        subscriber = await subscribe(node)
        await node.keyspace.put("b", b"no")
        await node.keyspace.put("a.b", b"yes")
        assert (await subscriber.next()).data["key"] == "a.b"


async def test_a_heartbeat_says_how_far_the_stream_is(serving, subscribe):
    async with serving() as node:
        subscriber = await subscribe(node)
        await node.keyspace.put("a", b"1")
        put = await subscriber.next()
        beat = await subscriber.read()
    assert (beat.event, beat.topic, beat.data) == ("heartbeat", CONTROL, {})
    assert beat.token == put.token
    assert beat.about["sequence"] == put.about["sequence"]


async def test_what_a_subscriber_missed_is_read_over_http_from_its_token(serving, subscribe):
    async with serving() as node:
        subscriber = await subscribe(node)
        await node.keyspace.put("a", b"1")
        token = (await subscriber.next()).token
        await node.keyspace.put("b", b"2")
        (url,) = [url for url in node.addresses if url.startswith("http://")]
        async with AsyncClient(url) as client, client.watch("*", since=token) as watch:
            missed = await anext(watch)
        assert str(missed.token) == (await subscriber.next()).token


async def test_a_subscriber_that_does_not_read_holds_up_nobody(serving, subscribe):
    async with serving(pending=10) as node:
        lazy = await subscribe(node)
        eager = await subscribe(node, b"last")
        for number in range(3000):
            await node.keyspace.put("k", bytes(8192) + str(number).encode())
        await node.keyspace.put("last", b"")
        assert (await eager.next()).topic == b"last"
        # It reads on with a hole, which the numbers show.
        sequence = [(await lazy.next()).about["sequence"]]
        while sequence[-1] == len(sequence):
            await node.keyspace.put("k", b"more")
            sequence.append((await lazy.next()).about["sequence"])
        assert sequence[-1] > len(sequence)


async def test_the_port_is_kept_over_a_replacement_and_the_publisher_is_another(serving, subscribe):
    async with serving() as node:
        subscriber = await subscribe(node)
        await node.keyspace.put("a", b"1")
        before = await subscriber.next()
        address = address_of(node)
        await node.plugins.replace(ZEROMQ, ZEROMQ)
        assert address_of(node) == address
        with anyio.fail_after(30):
            while (await subscriber.read()).about["publisher"] == before.about["publisher"]:
                pass
        await node.keyspace.put("a", b"2")
        after = await subscriber.next()
        assert after.about["sequence"] == 1
        await node.plugins.unload(ZEROMQ)
        assert [url for url in node.addresses if url.startswith("zmq")] == []


async def test_rubbish_on_the_port_harms_nobody(serving, subscribe):
    async with serving() as node:
        host, _, port = address_of(node).removeprefix("tcp://").rpartition(":")
        for rubbish in (b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 16, b"\xff" + bytes(8)):
            with socket.create_connection((host, int(port)), timeout=30) as connection:
                connection.sendall(rubbish)
        subscriber = await subscribe(node)
        await node.keyspace.put("a", b"1")
        assert (await subscriber.next()).data["value"] == "1"


async def test_it_is_refused_where_tokens_are_used_unless_allowed(flags, tmp_path):
    file = tmp_path / "tokens.toml"
    file.write_text(f'[me]\nsha256 = "{hashlib.sha256(b"secret").hexdigest()}"\n')
    file.chmod(0o600)
    flags["auth.tokens"] = str(file)
    with pytest.raises(StartError, match="insecure"):
        async with Node(load_settings(flags=flags)):
            raise AssertionError("it serves")
    async with Node(load_settings(flags={**flags, "node.insecure": True})) as node:
        assert address_of(node)


async def test_it_is_refused_beyond_loopback(flags):
    with pytest.raises(StartError, match="insecure"):
        async with Node(load_settings(flags={**flags, "notifier.zeromq.host": "0.0.0.0"})):
            raise AssertionError("it serves")


@pytest.mark.parametrize(
    ("name", "value"), [("pattern", ""), ("port", 70_000), ("pending", 0), ("heartbeat", 0)]
)
async def test_settings_that_cannot_be_are_named(flags, name, value):
    with pytest.raises(SettingsError, match=f"{name}"):
        async with Node(load_settings(flags={**flags, f"notifier.zeromq.{name}": value})):
            raise AssertionError("it serves")
