"""Clients that do not read, that are too many, and that come from elsewhere."""

import json

import anyio
import pytest

from nkv_core.auth import new_token
from nkv_core.contracts.identity import Right

pytestmark = pytest.mark.anyio
POLL = "/socket.io/?EIO=4&transport=polling"
WEBSOCKET = "/socket.io/?EIO=4&transport=websocket"
UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


async def enter(client):
    """Connect by polling; returns the path of the connection."""
    opened = await client.get(POLL)
    assert opened.status_code == 200, opened.text
    path = f"{POLL}&sid={json.loads(opened.text[1:])['sid']}"
    assert (await client.post(path, content="40")).text == "OK"
    return path


async def read_to_the_end(stream):
    while True:
        await stream.receive()


async def test_a_client_that_stops_polling_is_dropped_and_the_others_are_not(
    serving, connecting, web, shown
):
    async with (
        serving(pending=20) as node,
        web(node) as client,
        connecting(node, "websocket") as reader,
    ):
        path = await enter(client)
        await shown(node, lambda status: status["clients"] == 2)
        for number in range(100):
            await node.keyspace.put("k", b"x")
            await reader.until_told(number + 1)
        status = await shown(node, lambda status: status["clients"] == 1)
        assert status["dropped_clients"] == 1
        assert (await client.get(path)).status_code == 400


async def test_a_websocket_that_does_not_read_is_dropped_and_its_connection_closed(
    serving, connecting, shown
):
    async with (
        serving(pending_bytes=1024 * 1024) as node,
        connecting(node, "websocket") as reader,
    ):
        host, port = node.addresses[0].removeprefix("http://").split(":")
        async with await anyio.connect_tcp(host, int(port)) as raw:
            fields = "".join(f"{name}: {value}\r\n" for name, value in UPGRADE.items())
            await raw.send(f"GET {WEBSOCKET} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n".encode())
            seen = b""
            while b"pingTimeout" not in seen:
                seen += await raw.receive()
            await raw.send(b"\x81\x82\x00\x00\x00\x0040")
            await shown(node, lambda status: status["clients"] == 2)
            number = 0
            while (await shown(node))["clients"] == 2:
                for _ in range(10):
                    number += 1
                    await node.keyspace.put("k", b"x" * 200_000)
                    await reader.until_told(number)
            assert (await shown(node))["dropped_clients"] == 1
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                await read_to_the_end(raw)
        assert number < 1000
        await node.keyspace.put("k", b"last")
        await reader.until(lambda: reader.updates[-1]["data"].endswith("last"))


async def test_a_large_message_is_told_though_it_passes_the_bound(serving, connecting):
    async with serving(pending_bytes=1000) as node, connecting(node, "polling") as client:
        await node.keyspace.put("k", b"x" * 500_000)
        await client.until_told(1)


async def test_too_many_clients_are_told_to_come_later(serving, web):
    async with serving(max_clients=2) as node, web(node) as client:
        for _ in range(2):
            await enter(client)
        assert (await client.get(POLL)).status_code == 503


async def test_messages_of_clients_are_bounded(serving, web):
    async with serving(max_message_bytes=1000) as node, web(node) as client:
        path = await enter(client)
        assert (await client.post(path, content="4" + "x" * 1000)).status_code == 400


@pytest.mark.parametrize("content", ["", "zzz", "451-[", "4" * 100, "\x1e" * 1000, "4{", "49"])
async def test_rubbish_is_answered_and_harms_nobody(serving, connecting, web, content):
    async with serving() as node, connecting(node, "polling") as other, web(node) as client:
        path = await enter(client)
        with anyio.fail_after(60):
            assert (await client.post(path, content=content)).status_code in (200, 400)
        await node.keyspace.put("k", b"v")
        await other.until_told(1)


@pytest.mark.parametrize(
    ("request_", "headers", "status"),
    [
        (("POST", POLL), {"origin": "https://evil.example"}, 403),
        (("POST", POLL), {"sec-fetch-site": "cross-site"}, 403),
        (("GET", POLL), {"host": "evil.example"}, 421),
        (("GET", POLL + "&j=0"), {}, 400),
        (("GET", "/socket.io/?EIO=3&transport=polling"), {}, 400),
        (("GET", "/socket.io/else/"), {}, 404),
        (("GET", WEBSOCKET), {**UPGRADE, "origin": "https://evil.example"}, 403),
        (("GET", WEBSOCKET + "&j=0"), UPGRADE, 400),
    ],
)
async def test_requests_from_elsewhere_are_refused(serving, web, request_, headers, status):
    async with serving() as node, web(node) as client:
        reply = await client.request(*request_, headers=headers)
        assert reply.status_code == status
        assert "access-control-allow-origin" not in reply.headers


async def test_a_client_is_told_only_of_what_its_token_may_read(
    serving, connecting, web, flags, tmp_path
):
    tokens = {}
    lines = []
    for name, right in (("all", Right("", write=True)), ("some", Right("a."))):
        tokens[name], line = new_token(name, (right,))
        lines.append(line)
    file = tmp_path / "tokens"
    file.write_text("\n".join(lines) + "\n")
    file.chmod(0o600)
    flags["auth.tokens"] = str(file)
    bearer = {name: {"Authorization": f"Bearer {token}"} for name, token in tokens.items()}
    async with serving() as node, web(node) as client:
        assert (await client.get(POLL)).status_code == 401
        assert (await client.get("/kv", params={"key": "k"})).status_code == 401
        async with (
            connecting(node, "websocket", headers=bearer["some"]) as some,
            connecting(node, "polling", headers=bearer["all"]) as all_of_it,
        ):
            await node.keyspace.put("b.x", b"1")
            await node.keyspace.put("a.x", b"2")
            await all_of_it.until_told(2)
            await some.until_told(1)
            assert [each["data"] for each in some.updates] == ["Key: a.x set with value: 2"]
            sid = all_of_it.sio.eio.sid
            stolen = await client.get(f"{POLL}&sid={sid}", headers=bearer["some"])
            assert stolen.status_code == 403
