"""`/v1/ws` over a whole node and real sockets."""

import json

import anyio
import pytest
from wsproto.events import BytesMessage

from nkv_core.auth import new_token
from nkv_core.contracts.identity import Right
from nkv_core.contracts.keyspace import Put
from nkv_core.errors import Rejected
from nkv_core.events import RequestEnd, RequestStart
from nkv_core.records import Token, wall_clock

pytestmark = pytest.mark.anyio


def told(events):
    return [(each["subscription"], each["event"], each["data"].get("key")) for each in events]


def code(reply):
    assert set(reply) == {"id", "error"}
    assert set(reply["error"]) == {"code", "status", "detail"}
    return reply["error"]["code"]


# --- records --------------------------------------------------------------------------------------


async def test_records_are_read_and_written(serving):
    async with serving() as node, node.peer() as peer:
        assert code(await peer.ask("get", key="a")) == "not_found"
        written = (await peer.ask("put", key="a", value="one"))["result"]
        assert written == {"version": f"{node.keyspace.history}-1", "existed": False}
        record = (await peer.ask("get", key="a"))["result"]
        assert (record["value"], record["version"]) == ("one", written["version"])
        await peer.ask("put", key="b", value_base64="/w==")
        assert (await peer.ask("get", key="b"))["result"]["value_base64"] == "/w=="
        assert (await peer.ask("delete", key="a"))["result"] == {}
        assert code(await peer.ask("delete", key="a")) == "not_found"


async def test_writes_take_conditions_and_a_time_to_live(serving):
    async with serving() as node, node.peer() as peer:
        first = (await peer.ask("put", key="a", value="1", if_absent=True))["result"]["version"]
        assert code(await peer.ask("put", key="a", value="2", if_absent=True)) == "condition_failed"
        assert "result" in await peer.ask("put", key="a", value="2", if_version=first)
        failed = await peer.ask("delete", key="a", if_version=first)
        assert (code(failed), failed["error"]["status"]) == ("condition_failed", 412)
        assert code(await peer.ask("put", key="b", value="", if_present=True)) == "condition_failed"
        both = await peer.ask("put", key="a", value="", if_present=True, if_absent=True)
        assert code(both) == "conflicting_conditions"
        before = wall_clock()
        await peer.ask("put", key="a", value="3", ttl=1000.5)
        record = await node.keyspace.get("a")
        assert 1_000_500 <= record.expires - before <= 1_020_000
        await peer.ask("put", key="a", value="3", expires="2099-01-01T00:00:00Z")
        assert (await peer.ask("get", key="a"))["result"]["expires"] == "2099-01-01T00:00:00.000Z"
        for ttl in (0, -1, 1e300, 1e-12):
            assert code(await peer.ask("put", key="a", value="", ttl=ttl)) == "invalid_expiry"


async def test_requests_are_carried_out_in_order(serving):
    async with serving() as node, node.peer() as peer:
        for number in range(100):
            message = {"op": "put", "id": f"p{number}", "key": "a", "value": str(number)}
            await peer.send(json.dumps(message))
        await peer.reply("p99")
        assert (await node.keyspace.get("a")).value == b"99"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", None),
        ("rubbish", None),
        ("[]", None),
        ("{}", None),
        ('{"op":"get"', None),
        ("[" * 100_000, None),
        ('{"id":4,"op":"fly"}', 4),
        ('{"id":"x","op":"get"}', "x"),
        ('{"id":5,"op":"get","key":7}', 5),
        ('{"id":5,"op":"get","key":"a","more":1}', 5),
        ('{"id":5.5,"op":"get","key":"a"}', None),
        ('{"id":"' + "x" * 200 + '","op":"get","key":"a"}', None),
        ('{"id":6,"op":"put","key":"a","value_base64":"?"}', 6),
        ('{"id":7,"op":"put","key":"a"}', 7),
        ('{"id":8,"op":"subscribe","subscription":"a","mode":"some"}', 8),
        ('{"id":9,"op":"subscribe","subscription":{}}', 9),
    ],
)
async def test_what_cannot_be_read_is_refused_and_the_connection_goes_on(serving, text, number):
    async with serving() as node, node.peer() as peer:
        await peer.send(text)
        assert code(await peer.reply(number)) == "bad_request"
        assert "result" in await peer.ask("put", key="a", value="1")


async def test_a_binary_message_is_refused(serving):
    async with serving() as node, node.peer() as peer:
        await peer.send(BytesMessage(b'{"id":1,"op":"get","key":"a"}'))
        assert code(await peer.reply(1)) == "bad_request"
        await peer.send(BytesMessage(b"\xff\x00"))
        assert code(await peer.reply(None)) == "bad_request"


async def test_a_key_that_is_none_is_refused_by_its_own_code(serving):
    async with serving() as node, node.peer() as peer:
        assert code(await peer.ask("get", key="")) == "invalid_key"
        assert code(await peer.ask("put", key="a\nb", value="")) == "invalid_key"


async def test_those_who_listen_to_requests_see_each_and_may_reject_it(serving):
    ended = []

    def refuse(event):
        if event.params.get("key", "").startswith("forbidden"):
            raise Rejected(429, "too_many", "Not now.")

    async with serving() as node, node.peer() as peer:
        node.node.on(RequestStart, refuse)
        node.node.on(RequestEnd, ended.append)
        reply = await peer.ask("put", key="forbidden.1", value="")
        assert reply["error"] == {"code": "too_many", "status": 429, "detail": "Not now."}
        assert "result" in await peer.ask("put", key="a", value="")
        await peer.subscribe("s", pattern="a")
        while len(ended) < 3:
            await anyio.sleep(0.001)  # it comes behind the reply
        assert [(each.request.transport, each.command) for each in ended] == [
            ("websocket", "put"),
            ("websocket", "put"),
            ("websocket", "subscribe"),
        ]


# --- subscriptions --------------------------------------------------------------------------------


async def test_several_subscriptions_are_told_each_under_its_name(serving):
    async with serving() as node, node.peer() as peer:
        await peer.subscribe("one", pattern="a.*")
        await peer.subscribe(2, pattern="*")
        await node.put("a.1", "x")
        await node.put("b")
        events = await peer.take(3)
        assert {
            name: told(e for e in events if e["subscription"] == name) for name in ("one", 2)
        } == {
            "one": [("one", "put", "a.1")],
            2: [(2, "put", "a.1"), (2, "put", "b")],
        }
        assert events[0]["token"] is not None
        assert events[0]["data"]["value"] == "x"
        await node.keyspace.clear("")
        cleared = await peer.take(2)
        assert {each["event"] for each in cleared} == {"clear"}
        assert {each["token"] for each in cleared} == {str(node.keyspace.token)}


async def test_a_reply_to_a_subscription_comes_before_its_events(serving):
    async with serving() as node, node.peer() as peer:
        await node.put("a")
        await peer.send('{"op":"subscribe","id":1,"subscription":"s","snapshot":true}')
        while peer.closed is None and not peer._events:
            await peer._hear()
            assert peer._replies or not peer._events
        assert (await peer.reply(1))["result"] == {"token": None}
        assert told(await peer.take(2)) == [("s", "put", "a"), ("s", "snapshot-end", None)]


async def test_a_name_is_taken_once_and_free_again_behind_its_end(serving):
    async with serving() as node, node.peer() as peer:
        await peer.subscribe("s")
        assert code(await peer.ask("subscribe", subscription="s")) == "bad_request"
        await node.put("a")
        assert told(await peer.take(1)) == [("s", "put", "a")]
        gone = await peer.ask("unsubscribe", subscription="s")
        assert gone["result"] == {"token": str(node.keyspace.token)}
        assert node.hub.watchers() == []
        assert code(await peer.ask("unsubscribe", subscription="s")) == "not_found"
        await node.put("b")
        await peer.subscribe("s", since=gone["result"]["token"])
        assert told(await peer.take(1)) == [("s", "put", "b")]


async def test_unsubscribing_under_constant_writing_tells_where_to_go_on(serving):
    total, seen = 300, []
    async with serving() as node, node.peer() as peer:
        begun = str(node.keyspace.token)

        async def write():
            for number in range(total):
                await node.put("k", str(number))
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            while len(seen) < total:
                await peer.subscribe("s", since=begun)
                events = await peer.take(min(5, total - len(seen)))
                seen += [event["data"]["value"] for event in events]
                begun = (await peer.ask("unsubscribe", subscription="s"))["result"]["token"]
                seen += [event["data"]["value"] for event in peer._events]
                peer._events.clear()
    assert seen == [str(number) for number in range(total)]


async def test_there_are_only_so_many_subscriptions(serving):
    async with serving(notifier__websocket__max_subscriptions=2) as node, node.peer() as peer:
        await peer.subscribe(1)
        await peer.subscribe(2)
        assert code(await peer.ask("subscribe", subscription=3)) == "overloaded"
        await peer.ask("unsubscribe", subscription=1)
        await peer.subscribe(3)


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"since": "rubbish"}, "invalid_token"),
        ({"since": "2-0123456789abcdef-1"}, "invalid_token"),
        ({"pattern": ""}, "invalid_pattern"),
    ],
)
async def test_a_subscription_that_makes_no_sense_is_refused(serving, fields, refusal):
    async with serving() as node, node.peer() as peer:
        assert code(await peer.ask("subscribe", subscription="s", **fields)) == refusal
        ahead = str(Token(node.keyspace.history, 999))
        assert code(await peer.ask("subscribe", subscription="s", since=ahead)) == "invalid_token"
        assert node.hub.watchers() == []
        await peer.subscribe("s")


async def test_a_token_of_another_history_gets_a_gap_and_a_snapshot(serving):
    async with serving() as node, node.peer() as peer:
        await node.put("a")
        foreign = str(Token("0123456789abcdef", 7))
        await peer.subscribe("s", since=foreign)
        gap, record, end = await peer.take(3)
        assert told([gap, record, end]) == [
            ("s", "gap", None),
            ("s", "put", "a"),
            ("s", "snapshot-end", None),
        ]
        assert gap["data"]["after"] == foreign
        assert (gap["token"], record["token"]) == (None, None)
        assert end["token"] == str(node.keyspace.token)


async def test_a_snapshot_and_what_follows_are_the_store_under_constant_writing(serving):
    async with serving(watch__page_bytes=2000) as node, node.peer() as peer:
        await node.keyspace.batch([Put(f"k.{n:03}", b"0" * 50) for n in range(200)])
        written, done = 0, False

        async def write():
            nonlocal written
            while not done:
                written += 1
                await node.put(f"k.{written * 7 % 250:03}", str(written))
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            for name in range(5):
                store, ended, aim = {}, False, written + 200
                await peer.subscribe(name, pattern="k.*", snapshot=True)
                while not ended or written < aim:
                    event = await peer.event()
                    if event["subscription"] == name:
                        ended = ended or event["event"] == "snapshot-end"
                        if event["event"] == "put":
                            store[event["data"]["key"]] = event["data"]["value"]
                if name < 4:
                    await peer.ask("unsubscribe", subscription=name)
            done = True
        while event["token"] != str(node.keyspace.token):
            event = await peer.event()
            if event["event"] == "put":
                store[event["data"]["key"]] = event["data"]["value"]
        page = await node.keyspace.scan(limit=1000)
        assert store == {record.key: record.value.decode() for record in page.records}


async def test_mode_latest_tells_the_last_of_each_key(serving):
    async with serving() as node, node.peer() as peer:
        begun = str(node.keyspace.token)
        for number in range(50):
            await node.put(f"k.{number % 5}", str(number))
        await peer.subscribe("s", since=begun, mode="latest")
        events = []
        while not events or events[-1]["token"] != str(node.keyspace.token):
            events.append(await peer.event())
        assert {each["data"]["value"] for each in events} == {"45", "46", "47", "48", "49"}


async def test_a_heartbeat_moves_the_place_on_past_what_is_of_no_concern(serving):
    async with serving(notifier__websocket__heartbeat=0.02) as node, node.peer() as peer:
        await peer.subscribe("s", pattern="mine.*")
        await node.put("others.1")
        event = await peer.event()
        assert event == {
            "subscription": "s",
            "event": "heartbeat",
            "token": str(node.keyspace.token),
            "data": {},
        }


# --- slow and vanished clients, and the end -------------------------------------------------------


async def test_a_client_that_never_reads_delays_nobody(serving):
    async with serving() as node, node.peer() as deaf, node.peer() as peer:
        await deaf.subscribe("s")
        await peer.subscribe("s", mode="latest")
        value = "x" * 100_000
        for number in range(300):
            await node.put("k", value + str(number))
        while (await peer.event())["data"]["value"] != value + "299":
            pass
        behind = max(node.hub.watchers(), key=lambda each: each.behind)
        assert behind.behind > 100
        assert behind.state == "behind"
        last = None
        while last != value + "299":
            last = (await deaf.event())["data"]["value"]


async def test_a_client_that_asks_and_never_reads_is_not_read_from_any_more(serving):
    async with serving() as node, node.peer() as deaf:
        await node.put("k", "x" * 1_000_000)
        await node.put("stop", "")
        with anyio.move_on_after(1) as waiting:
            for _ in range(1_000_000):
                await deaf.send('{"op":"get","id":1,"key":"k"}' + " " * 10_000)
        assert waiting.cancelled_caught
        async with node.peer() as peer:
            assert "result" in await peer.ask("get", key="stop")


@pytest.mark.parametrize("politely", [True, False])
async def test_a_client_that_goes_leaves_no_watcher_behind(serving, politely):
    async with serving() as node:
        async with node.peer() as peer:
            for name in range(3):
                await peer.subscribe(name)
            assert len(node.hub.watchers()) == 3
            if politely:
                await peer.close()
                assert peer.closed == 1000
        await node.watchers_gone()


@pytest.mark.parametrize("plugin", ["nkv_notifier_websocket", "nkv_transport_http"])
async def test_a_replaced_plugin_says_goodbye_and_the_next_generation_resumes(serving, plugin):
    total, seen = 200, []
    async with serving() as node:

        async def write():
            for number in range(total):
                await node.put("k", str(number))
                await anyio.sleep(0.001)

        async with anyio.create_task_group() as tasks:
            begun = str(node.keyspace.token)
            tasks.start_soon(write)
            for _ in range(3):
                async with node.peer() as peer:
                    await peer.subscribe("idle", pattern="nothing")
                    await peer.subscribe("s", since=begun)
                    seen.append((await peer.event())["data"]["value"])
                    tasks.start_soon(node.plugins.replace, plugin)
                    *events, _, _ = rest = await peer.rest()
                    ends = {each["subscription"]: each for each in rest[-2:]}
                    assert set(ends) == {"idle", "s"}
                    for each in ends.values():
                        assert (each["event"], each["data"]["code"]) == ("end", "stopping")
                        assert each["token"] is not None
                    assert peer.closed == 1001
                    seen += [each["data"]["value"] for each in events]
                    begun = ends["s"]["token"]
            async with node.peer() as peer:
                await peer.subscribe("s", since=begun)
                while len(seen) < total:
                    seen.append((await peer.event())["data"]["value"])
    assert seen == [str(number) for number in range(total)]


async def test_a_node_that_stops_says_goodbye_with_the_place(serving):
    ends = []

    async def follow(node, began):
        async with node.peer() as peer:
            await peer.subscribe("s", pattern="mine.*")
            began.set()
            ends.extend(await peer.rest())
            assert peer.closed == 1001

    async with anyio.create_task_group() as tasks, serving() as node:
        for _ in range(3):
            began = anyio.Event()
            tasks.start_soon(follow, node, began)
            await began.wait()
        await node.put("others.1")
        token = str(node.keyspace.token)
    assert [(end["event"], end["token"], end["data"]["code"]) for end in ends] == [
        ("end", token, "stopping")
    ] * 3


async def test_a_subscription_that_the_hub_ends_is_told_why_and_its_name_is_free(serving):
    async with serving() as node, node.peer() as peer:
        await peer.subscribe("s")
        (watcher,) = node.hub._watchers
        watcher.end("storage_failed", "It broke.")
        end = await peer.event()
        assert (end["event"], end["token"]) == ("end", str(node.keyspace.token))
        assert end["data"] == {"code": "storage_failed", "detail": "It broke."}
        await peer.subscribe("s")


# --- rights ---------------------------------------------------------------------------------------


async def test_a_connection_may_do_what_its_token_may(serving, tmp_path):
    file = tmp_path / "tokens.toml"
    secret, line = new_token("some", [Right("mine."), Right("notes.", read=False, write=True)])
    file.write_text(line)
    file.chmod(0o600)
    async with serving(auth__tokens=str(file)) as node:
        async with node.http() as client:
            headers = {
                "Connection": "Upgrade",
                "Upgrade": "websocket",
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
            }
            answer = await client.get("/v1/ws", headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
        async with node.peer([(b"Authorization", b"Bearer " + secret.encode())]) as peer:
            assert code(await peer.ask("subscribe", subscription="s")) == "forbidden"
            await peer.subscribe("s", pattern="mine.*")
            assert code(await peer.ask("put", key="mine.1", value="")) == "forbidden"
            assert "result" in await peer.ask("put", key="notes.1", value="")
            assert code(await peer.ask("get", key="notes.1")) == "forbidden"
            assert code(await peer.ask("delete", key="other")) == "forbidden"
            await node.put("mine.1")
            assert told(await peer.take(1)) == [("s", "put", "mine.1")]
