"""What the server gets: everything, in order, though it goes away and returns."""

import json
import logging
import signal

import anyio
import httpx2
import pytest

from nkv_core.config import load_settings
from nkv_core.errors import PluginSetupFailed, SettingsError
from nkv_core.node import Node

pytestmark = pytest.mark.anyio
NATS = "nkv_notifier_nats"


async def put_all(node, count, begin=0):
    for number in range(begin, begin + count):
        await node.keyspace.put("k", str(number).encode())


def values(messages):
    return [json.loads(message.data).get("value") for message in messages]


def numbers(count, begin=0):
    return [str(number) for number in range(begin, begin + count)]


def once(values):
    """Without the repetitions that at-least-once allows, in the order of the first of each."""
    return list(dict.fromkeys(values))


async def test_each_change_is_published_once_in_order_with_kind_and_token(
    serving, nats_server, hearing
):
    server = nats_server()
    async with hearing(server) as heard, serving(server) as node:
        await node.keyspace.put("service.a", b"1")
        await node.keyspace.put("b", b"\xff")
        await node.keyspace.touch("service.a", 2**42)
        await node.keyspace.delete("service.a")
        await node.keyspace.clear("b")
        await heard.until_heard(5)
        history = node.keyspace.history
    assert heard.subjects == [
        "nkv.key.service.a",
        "nkv.key.b",
        "nkv.key.service.a",
        "nkv.key.service.a",
        "nkv.clear",
    ]
    assert heard.tokens == [f"1.{history}.{n}" for n in range(1, 6)]
    headers = [message.headers for message in heard.messages]
    assert [each["Nkv-Event"] for each in headers] == ["put", "put", "touch", "delete", "clear"]
    assert [each["Nats-Msg-Id"] for each in headers] == heard.tokens
    bodies = [json.loads(message.data) for message in heard.messages]
    assert bodies[0]["key"] == "service.a"
    assert bodies[0]["value"] == "1"
    assert bodies[0]["version"] == f"{history}-1"
    assert bodies[1]["value_base64"] == "/w=="
    assert bodies[4]["prefix"] == "b"


async def test_the_token_is_that_of_server_sent_events(serving, nats_server, hearing):
    server = nats_server()
    async with hearing(server) as heard, serving(server) as node:
        address = node.addresses[0]
        async with (
            httpx2.AsyncClient(base_url=address, trust_env=False, timeout=30) as client,
            client.stream("GET", "/v1/watch", params={"pattern": "*"}) as stream,
        ):
            lines = stream.aiter_lines()
            await node.keyspace.put("a", b"1")
            while not (line := await anext(lines)).startswith("data:"):
                if line.startswith("id:"):
                    token = line.removeprefix("id:").strip()
            await heard.until_heard(1)
    assert heard.tokens == [token]
    assert json.loads(heard.messages[0].data) == json.loads(line.removeprefix("data:"))


async def test_keys_that_no_subject_can_carry_are_left_out_and_counted(
    serving, nats_server, hearing, settled
):
    server = nats_server()
    odd = ["a b", "a..b", ".a", "a.", "*", "a.*", ">", "a.>", "x*y", "\u3000"]
    async with hearing(server) as heard, serving(server) as node:
        for key in odd:
            await node.keyspace.put(key, b"no")
        await node.keyspace.put("häuser.größe", b"yes")
        await heard.until_heard(1)
        status = await settled(node, lambda status: status["published"] == 1)
    assert heard.subjects == ["nkv.key.häuser.größe"]
    assert status["left_out_no_subject"] == len(odd)


async def test_a_server_that_goes_away_and_returns_misses_nothing(
    serving, nats_server, hearing, settled
):
    server = nats_server()
    async with hearing(server) as heard, serving(server) as node:
        await put_all(node, 5)
        await heard.until_heard(5)
        server.kill()
        await put_all(node, 600, begin=5)
        status = await settled(node, lambda status: not status["connected"] and status["failing"])
        assert status["behind"] > 0
        server.start()
        # Nobody is connected to the new server yet but by chance: what it has not heard is lost to
        # the subscriber, as NATS has it. So the last of all are written once it is there again.
        await heard.there_again()
        await settled(node, lambda status: status["published"] >= 605)
        await put_all(node, 1, begin=605)
        await heard.until(lambda: values(heard.messages)[-1] == "605")
        # The subscriber may have it before the server's answer is here, which is what is counted.
        status = await settled(
            node, lambda status: status["failing"] is None and status["published"] >= 606
        )
    assert status["gaps"] == 0
    assert status["published"] == 606


async def test_a_stream_stores_each_change_once_over_kills_of_the_server(
    serving, nats_server, tmp_path, hearing, settled
):
    server = nats_server("-js", "-sd", str(tmp_path / "js"))
    async with hearing(server) as heard, serving(server, acknowledge="stream", timeout=0.5) as node:
        stream = heard.client.jetstream()
        await put_all(node, 3)
        status = await settled(node, lambda status: status["failing"])
        assert "no stream" in status["failing"]
        await stream.add_stream(name="changes", subjects=["nkv.>"])
        for begin in range(3, 303, 100):
            await put_all(node, 100, begin=begin)
            await settled(node, lambda status, begin=begin: status["published"] > begin)
            server.kill()
            server.start()
        await settled(node, lambda status: status["published"] == 303)
        await heard.there_again()
        assert (await stream.stream_info("changes")).state.messages == 303
        stored = [await stream.get_msg("changes", seq) for seq in range(1, 304)]
    assert values(stored) == numbers(303)


async def test_a_node_that_restarts_goes_on_where_it_was(
    serving, nats_server, hearing, flags, settled
):
    flags["storage.name"] = "diskcache"
    server = nats_server()
    async with hearing(server) as heard:
        async with serving(server) as node:
            await put_all(node, 5)
            await settled(node, lambda status: status["published"] == 5)
        server.kill()
        async with serving(server) as node:
            await put_all(node, 5, begin=5)
        server.start()
        await heard.there_again()
        async with serving(server) as node:
            await put_all(node, 5, begin=10)
            await heard.until(lambda: values(heard.messages)[-1] == "14")
            assert node.addresses
    assert once(values(heard.messages)) == numbers(15)


async def test_replaced_unloaded_and_loaded_under_writes_it_loses_nothing(
    serving, nats_server, hearing
):
    server = nats_server()
    async with hearing(server) as heard, serving(server) as node:
        done = anyio.Event()

        async def write():
            number = 0
            while not done.is_set():
                await put_all(node, 1, begin=number)
                number += 1
                await anyio.sleep(0.001)
            await node.keyspace.put("k", b"last")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            await heard.until_heard(10)
            for _ in range(3):
                await node.plugins.replace(NATS)
                await heard.until_heard(len(heard.messages) + 10)
            await node.plugins.unload(NATS)
            await node.plugins.load(NATS)
            await heard.until_heard(len(heard.messages) + 10)
            done.set()
        await heard.until(lambda: values(heard.messages)[-1] == "last")
    told = once(values(heard.messages))
    assert told[:-1] == numbers(len(told) - 1)


@pytest.mark.parametrize("stored", [b"1.00000000000000aa.7", b"1.HISTORY.900", b"no token"])
async def test_a_place_that_is_gone_is_told_as_a_gap(serving, nats_server, hearing, stored):
    server = nats_server()
    async with hearing(server) as heard, serving(server) as node:
        await node.plugins.unload(NATS)
        await node.keyspace.put("a", b"lost")
        now = str(node.keyspace.token)
        stored = stored.replace(b"HISTORY", node.keyspace.history.encode())
        await node.keyspace.state(NATS).put("cursor.nats", stored)
        await node.plugins.load(NATS)
        await node.keyspace.put("a", b"told")
        await heard.until_heard(2)
    gap, change = heard.messages
    assert gap.subject == "nkv.gap"
    assert gap.headers["Nkv-Event"] == "gap"
    assert gap.headers["Nkv-Token"] == json.loads(gap.data)["upto"] == now
    assert gap.headers["Nats-Msg-Id"].endswith(f"..{now}")
    assert json.loads(change.data)["value"] == "told"


async def test_what_the_log_no_longer_has_is_told_as_a_gap(serving, nats_server, hearing, flags):
    flags |= {"keyspace.log_bytes": 20_000, "watch.ring_bytes": 20_000}
    server = nats_server()
    async with hearing(server) as heard, serving(server) as node:
        await put_all(node, 1)
        await heard.until_heard(1)
        server.kill()
        for number in range(2000):
            await node.keyspace.put("big", b"x" * 100 + str(number).encode())
        server.start()
        await heard.there_again()
        await node.keyspace.put("big", b"last")
        await heard.until(lambda: values(heard.messages)[-1] == "last")
        status = await shown(node)
    assert status["gaps"] >= 1


async def shown(node):
    async with httpx2.AsyncClient(base_url=node.addresses[0], trust_env=False) as client:
        return (await client.get("/v1/notifiers/nats")).json()


async def test_a_value_that_the_server_does_not_take_is_told_of_without_it(
    serving, nats_server, hearing, tmp_path, settled
):
    config = tmp_path / "nats.conf"
    config.write_text("max_payload: 1000\n")
    server = nats_server("-c", str(config))
    async with hearing(server) as heard, serving(server) as node:
        await node.keyspace.put("a", b"x" * 900)  # with the header fields it is too large
        await node.keyspace.put("a", b"x" * 100_000)
        await node.keyspace.put("k" * 450, b"small")
        await node.keyspace.put("k" * 511, b"x" * 600)
        await heard.until_heard(4)
        status = await settled(node, lambda status: status["published"] == 4)
    bodies = [json.loads(message.data) for message in heard.messages]
    assert [body.get("value_left_out") for body in bodies] == [900, 100_000, None, 600]
    assert status["values_left_out"] == 3
    assert status["failures"] == 0


async def test_a_change_that_is_too_large_in_any_form_is_left_out_and_counted(
    serving, nats_server, hearing, tmp_path, settled
):
    config = tmp_path / "nats.conf"
    config.write_text("max_payload: 450\n")
    server = nats_server("-c", str(config))
    async with hearing(server) as heard, serving(server) as node:
        await node.keyspace.put("k" * 500, b"x")
        await node.keyspace.put("k", b"x")
        await heard.until_heard(1)
        status = await settled(node, lambda status: status["published"] == 1)
    assert heard.subjects == ["nkv.key.k"]
    assert status["left_out_too_large"] == 1


async def test_a_server_that_answers_nothing_is_given_up_and_found_again(
    serving, nats_server, hearing, settled
):
    server = nats_server()
    async with hearing(server) as heard, serving(server, timeout=0.3) as node:
        await put_all(node, 1)
        await heard.until_heard(1)
        server.signal(signal.SIGSTOP)
        await put_all(node, 10, begin=1)
        await settled(node, lambda status: status["failing"])
        server.signal(signal.SIGCONT)
        await heard.until(lambda: values(heard.messages)[-1] == "10")
    assert once(values(heard.messages)) == numbers(11)


async def test_what_the_server_does_not_allow_is_not_taken_for_delivered(
    serving, nats_server, hearing, settled, caplog
):
    config = nats_server.folder / "nats.conf"
    allowed = 'publish: "nkv.key.a", subscribe: ">"'
    config.write_text(f"""authorization {{ users: [
        {{user: nkv, password: "keep it quiet", permissions: {{ {allowed} }}}},
        {{user: all, password: all}} ] }}
    """)
    server = nats_server("-c", str(config))
    with caplog.at_level(logging.DEBUG, "nkv"):
        async with (
            hearing(server, user="all", password="all") as heard,
            serving(server, user="nkv", password="keep it quiet") as node,
        ):
            await node.keyspace.put("a", b"1")
            await settled(node, lambda status: status["published"] == 1)
            await node.keyspace.put("b", b"2")
            status = await settled(node, lambda status: status["failing"])
            assert "permissions violation" in status["failing"].lower()
            listed = str(node.plugins.plugins()) + str(await node.status())
        async with serving(server, user="nkv", password="wrong and secret") as node:
            status = await settled(node, lambda status: status["failing"])
            assert "authorization" in status["failing"].lower()
    assert heard.subjects[0] == "nkv.key.a"
    assert "keep it quiet" not in caplog.text + listed
    assert "wrong and secret" not in caplog.text


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"servers": []}, "there is none"),
        ({"servers": ["http://localhost"]}, "no nats or tls"),
        ({"servers": ["nats://me:secret@localhost"]}, "no password"),
        ({"user": "me"}, "go together"),
        ({"user": "me", "password": "x", "token": "y"}, "one of user, token"),
        ({"prefix": "a b"}, "prefix"),
        ({"prefix": "$JS.API"}, "prefix"),
        ({"pattern": "a\n"}, "pattern"),
        ({"acknowledge": "never"}, "acknowledge"),
        ({"tls_key": "x"}, "go together"),
    ],
)
async def test_settings_that_cannot_be_used_are_refused_by_name(flags, changed, said):
    flags |= {f"notifier.nats.{name}": value for name, value in changed.items()}
    with pytest.raises(SettingsError, match=said) as refused:
        async with Node(load_settings(flags=flags)):
            pass
    assert "secret" not in str(refused.value)


def test_a_node_on_trio_is_told_that_this_needs_asyncio(flags):
    flags["node.backend"] = "trio"
    node = Node(load_settings(flags=flags))

    async def serve():
        async with node:
            pass

    with pytest.raises(PluginSetupFailed, match="nkv_notifier_nats does not run on trio"):
        anyio.run(serve, backend="trio")
