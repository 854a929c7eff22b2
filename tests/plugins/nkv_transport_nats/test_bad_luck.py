"""A server that goes and comes, a node that restarts, a plugin that is replaced under traffic."""

import json

import anyio
import anyio.abc
import pytest

from nkv_core.events import Connect, Disconnect

pytestmark = pytest.mark.anyio
NATS = "nkv_transport_nats"
DEADLINE = 60


def update(value):
    return {"Update": {"value": list(value)}}


async def test_a_server_that_goes_away_and_returns_is_served_again(
    serving, shown, nats_server, connecting
):
    server, seen = nats_server(), []
    async with serving(server) as node, connecting(server) as client:
        node.on(Connect, seen.append)
        node.on(Disconnect, seen.append)
        for key in ("a", "gone"):
            await node.keyspace.put(key, b"1")
            await client.hear(key)
            await client.ask("Subscribe", key)
        await client.until(lambda: client.told == {"a": ["Hello"], "gone": ["Hello"]})
        server.kill()
        await shown(node, lambda status: not status["connected"])
        for number in range(100):
            await node.keyspace.put("a", str(number).encode())
        await node.keyspace.delete("gone")
        server.start()
        await shown(node, lambda status: status["connected"])
        await client.there_again()
        await node.keyspace.put("a", b"last")
        await client.until(lambda: client.told["a"][-1] == update(b"last"))
        form, fields = await client.ask("Get", "a")
        assert (form, bytes(fields["data"])) == ("Get", b"last")
    assert [type(event) for event in seen[:2]] == [Disconnect, Connect]
    assert seen[0].error is not None
    assert (seen[1].host, seen[1].port) == ("127.0.0.1", server.port)


async def test_a_node_starts_without_its_server_and_serves_once_it_is_there(
    serving, shown, nats_server, connecting
):
    server = nats_server()
    server.kill()
    async with serving(server) as node:
        await node.keyspace.put("a", b"1")
        server.start()
        await shown(node, lambda status: status["connected"])
        async with connecting(server) as client:
            assert (await client.ask("Get", "a"))[1]["data"] == list(b"1")


async def test_subscriptions_outlive_a_restart_of_the_node(serving, nats_server, connecting, flags):
    flags["storage.name"] = "diskcache"
    server = nats_server()
    async with connecting(server) as client:
        async with serving(server) as node:
            for key in ("a", "gone"):
                await node.keyspace.put(key, b"1")
                await client.hear(key)
                await client.ask("Subscribe", key)
            await client.until(lambda: client.told == {"a": ["Hello"], "gone": ["Hello"]})
        quiet = dict(flags)
        quiet["plugins.load"] = []
        kept = {name: flags.pop(name) for name in list(flags) if name.startswith("transport.nats")}
        del kept["transport.nats.backoff"]
        async with _without_plugin(flags) as node:
            await node.keyspace.delete("gone")
            await node.keyspace.put("a", b"2")
        async with serving(server) as node:
            await client.until(lambda: client.told["gone"][-1] == "Close")
            await client.until(lambda: client.told["a"][-1] == update(b"2"))
            await node.keyspace.put("a", b"3")
            await client.until(lambda: client.told["a"][-1] == update(b"3"))


def _without_plugin(flags):
    from nkv_core.config import load_settings
    from nkv_core.node import Node

    return Node(load_settings(flags={**flags, "plugins.load": []}))


async def test_replaced_under_traffic_it_answers_each_request_once(
    serving, nats_server, connecting
):
    server = nats_server()
    async with serving(server) as node, connecting(server) as client:
        await node.keyspace.put("a", b"0")
        told = await client.hear("a")
        await client.ask("Subscribe", "a")
        done, count = anyio.Event(), 0

        async def write():
            nonlocal count
            while not done.is_set():
                count += 1
                form, fields = await client.ask("Put", "a", str(count).encode())
                assert (form, fields["status"]) == ("Base", 200)

        before = node.keyspace.token.revision
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(write)
            for _ in range(3):
                seen = count
                await node.plugins.replace(NATS)
                with anyio.fail_after(DEADLINE):
                    while count < seen + 20:
                        await anyio.sleep(0.01)
            done.set()
        # Each put was carried out once, and the state that the plugin keeps is none of the changes.
        changes = (
            await node.keyspace.changes(
                type(node.keyspace.token)(node.keyspace.history, before), limit=100_000
            )
        ).changes
        assert len(changes) == count
        last = (await node.keyspace.get("a")).value
        await client.until(lambda: told[-1] == update(last))
        await node.plugins.unload(NATS)
        with anyio.fail_after(DEADLINE):  # the generation before it may be draining still
            while any(address.startswith("nats:") for address in node.addresses):
                await anyio.sleep(0.01)
        await node.plugins.load(NATS)
        await node.keyspace.put("a", b"behind it all")
        await client.until(lambda: told[-1] == update(b"behind it all"))


class Holding:
    """Stands before a server, and holds back each farewell to a subject until `ask` returns."""

    def __init__(self, server, ask):
        self._server, self._ask = server, ask
        self.url = ""

    async def run(self, *, task_status):
        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
            port = listener.extra(anyio.abc.SocketAttribute.local_port)
            self.url = f"nats://127.0.0.1:{port}"
            task_status.started()
            await listener.serve(self._carry)

    async def _carry(self, client):
        server = await anyio.connect_tcp("127.0.0.1", self._server.port)
        async with server, client, anyio.create_task_group() as tasks:
            tasks.start_soon(self._copy, server, client)
            await self._copy(client, server, hold=True)
            tasks.cancel_scope.cancel()

    async def _copy(self, source, target, *, hold=False):
        try:
            async for data in source:
                before, farewell, behind = data.partition(b"UNSUB ") if hold else (data, b"", b"")
                if before:
                    await target.send(before)
                if farewell:
                    await self._ask()
                    await target.send(farewell + behind)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass


async def test_what_comes_before_its_server_knows_of_its_end_is_answered(
    serving, nats_server, connecting
):
    server, answers = nats_server(), []

    async def ask():
        # Time for an answer to what was sent before the farewell: it is not the farewell's own.
        await anyio.sleep(0.05)
        asked = [client.nats.new_inbox() for _ in range(20)]  # the next generation takes a share
        for inbox in asked:
            await client.nats.subscribe(inbox, cb=answered)
            body = json.dumps({"type": "Get", "id": 1, "key": "a"}).encode()
            await client.nats.publish("pubsub.get", body, reply=inbox)
        await client.nats.flush()
        await anyio.sleep(0.05)  # for them to come before what the farewell is followed by

    async def answered(message):
        answers.append(message.subject)

    async with connecting(server) as client, anyio.create_task_group() as tasks:
        holding = Holding(server, ask)
        await tasks.start(holding.run)
        async with serving(holding) as node:
            await node.keyspace.put("a", b"0")
            await node.plugins.replace(NATS)
            # Each of the four subjects has a farewell of its own.
            with anyio.fail_after(DEADLINE):
                while len(answers) < 4 * 20:
                    await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    assert len(set(answers)) == len(answers)


async def test_a_huge_message_of_rubbish_and_many_small_ones_leave_it_serving(
    serving, nats_server, connecting
):
    server = nats_server()
    async with serving(server) as node, connecting(server) as client:
        for verb in ("get", "put", "delete", "subscribe"):
            await client.nats.publish(f"pubsub.{verb}", b"\x00" * client.nats.max_payload)
            for _ in range(300):
                await client.nats.publish(f"pubsub.{verb}", b"\xff\xfe", reply="nobody.there")
        await client.nats.flush()
        big = b"\x01" * 300_000
        assert (await client.ask("Put", "a", big))[1]["status"] == 200
        assert (await node.keyspace.get("a")).value == big
        assert await node.keyspace.count() == 1
