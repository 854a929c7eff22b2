"""What clients of Socket.IO are told, over each of its transports."""

import json

import anyio
import pytest
import socketio

from nkv_core.errors import PluginInvalid, PluginSetupFailed

pytestmark = pytest.mark.anyio
SOCKETIO = "nkv_notifier_socketio"

each_transport = pytest.mark.parametrize(
    "transports", [("polling",), ("websocket",), ()], ids=["polling", "websocket", "upgrade"]
)


def update(key, value):
    return {"data": f"Key: {key} set with value: {value}"}


@each_transport
async def test_a_client_is_greeted_and_told_of_every_put_whoever_made_it(
    serving, connecting, web, transports
):
    async with (
        serving() as node,
        connecting(node, *transports) as first,
        connecting(node, *transports) as second,
        web(node) as client,
    ):
        await client.put("/kv", json={"key": "ключ", "value": "é"})
        await client.put("/v1/kv/b", content=b"2")
        await client.get("/set", params={"k": "c", "v": "3"})
        await node.keyspace.put("d", b"")
        await node.keyspace.touch("d", 2**42)
        await node.keyspace.delete("d")
        await node.keyspace.clear("b")
        await node.keyspace.put("e", b"5")
        for one in (first, second):
            await one.until_told(5)
            assert one.connected == [{"data": "Connected", "count": 0}]
            assert one.updates == [
                update("ключ", "é"),
                update("b", "2"),
                update("c", "3"),
                update("d", ""),
                update("e", "5"),
            ]


@each_transport
async def test_many_puts_at_once_come_in_order_and_once(serving, connecting, transports):
    async with serving() as node, connecting(node, *transports) as client:
        for number in range(500):
            await node.keyspace.put("k", str(number).encode())
        await client.until_told(500)
        assert client.updates == [update("k", number) for number in range(500)]


async def test_values_that_are_not_text_are_left_out_and_counted(serving, connecting, shown):
    async with serving() as node, connecting(node, "websocket") as client:
        await node.keyspace.put("a", b"\xff")
        await node.keyspace.put("b", b"text")
        await client.until_told(1)
        assert client.updates == [update("b", "text")]
        status = await shown(node)
    assert status["left_out_not_text"] == 1
    assert status["told"] == 1
    assert status["clients"] == 1


async def test_a_client_that_leaves_is_no_longer_counted(serving, connecting, shown):
    async with serving() as node:
        async with connecting(node, "websocket"):
            await shown(node, lambda status: status["clients"] == 1)
        await shown(node, lambda status: status["clients"] == 0)


@each_transport
async def test_clients_come_back_to_the_next_generation(serving, connecting, transports):
    async with serving() as node, connecting(node, *transports) as client:
        await node.keyspace.put("a", b"1")
        await client.until_told(1)
        await node.plugins.replace(SOCKETIO)
        await client.until(lambda: len(client.connected) == 2)
        await node.keyspace.put("a", b"2")
        await client.until_told(2)
        assert client.updates == [update("a", "1"), update("a", "2")]
        assert not [info for info in node.plugins.plugins() if info.state == "leaked"]


@each_transport
async def test_unloading_and_stopping_disconnect_clients_first(
    serving, connecting, transports, caplog
):
    async with serving() as node, connecting(node, *transports):
        await node.plugins.unload(SOCKETIO)
        await node.plugins.load(SOCKETIO)
    async with serving() as node:
        entered = connecting(node, *transports)
        client = await entered.__aenter__()
        client.sio.reconnection = False
    await entered.__aexit__(None, None, None)
    assert "cut" not in caplog.text


async def test_events_that_clients_send_are_ignored(serving, connecting, shown):
    async with serving() as node, connecting(node, "websocket") as client:
        await client.sio.emit("connect", {"x": 1})
        await client.sio.emit("key_update", {"data": "forged"})
        await client.sio.emit("binary", b"\x00")
        await node.keyspace.put("a", b"1")
        await client.until_told(1)
        assert client.updates == [update("a", "1")]
        assert len(client.connected) == 1


async def test_other_namespaces_are_refused(serving):
    async with serving() as node:
        client = socketio.AsyncClient(reconnection=False)
        with pytest.raises(socketio.exceptions.ConnectionError):
            await client.connect(node.addresses[0], namespaces=["/other"], transports=["websocket"])
        await client.eio.disconnect()


def test_on_trio_it_is_refused_by_name(serving):
    async def run():
        async with serving():
            pass

    with pytest.raises(PluginSetupFailed, match="only on asyncio: set node"):
        anyio.run(run, backend="trio")


async def test_without_the_library_it_says_what_to_install(serving, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "socketio", None)
    with pytest.raises(PluginInvalid, match=r"pip install 'nkv-core\[socketio\]'"):
        async with serving():
            pass


def test_the_greeting_is_json_as_the_dialect_has_it():
    assert json.dumps(update("K", "V")) == '{"data": "Key: K set with value: V"}'
