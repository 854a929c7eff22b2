"""`/v1/watch` over a whole node and real sockets."""

import anyio
import pytest

from nkv_core.auth import new_token
from nkv_core.contracts.identity import Right
from nkv_core.contracts.keyspace import Put
from nkv_core.contracts.watch import Changed
from nkv_core.events import RequestComplete
from nkv_core.records import Token, wall_clock

pytestmark = pytest.mark.anyio


def told(events):
    return [(event.name, (event.data or {}).get("key")) for event in events]


# --- events ---------------------------------------------------------------------------------------


async def test_each_kind_of_change_is_told_by_its_name_with_its_token(serving):
    async with serving() as node, node.watch(pattern="a.*") as reader:
        await node.put("a.1", "one")
        await node.put("elsewhere")
        await node.keyspace.touch("a.1", wall_clock() + 60_000)
        await node.keyspace.delete("a.1")
        await node.put("a.2", expires=wall_clock() + 30)
        await node.keyspace.put("a.3", b"\xff")
        events = await reader.take(6)
        await node.keyspace.clear("a.")
        cleared = await reader.next()
        kinds = sorted(told(events))
        assert kinds == [
            ("delete", "a.1"),
            ("expire", "a.2"),
            ("put", "a.1"),
            ("put", "a.2"),
            ("put", "a.3"),
            ("touch", "a.1"),
        ]
        assert events[0].data["value"] == "one"
        binary = next(event for event in events if event.data.get("key") == "a.3")
        assert binary.data["value_base64"] == "/w=="
        assert (cleared.name, cleared.data["prefix"]) == ("clear", "a.")
        assert cleared.id == str(node.keyspace.token)
        assert len({event.id for event in [*events, cleared]}) == 7


async def test_the_header_tells_caches_and_proxies_to_keep_out(serving):
    async with serving() as node, node.client.stream("GET", "/v1/watch") as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-accel-buffering"] == "no"


async def test_the_opening_says_when_to_retry_and_where_to_resume(serving):
    retries = set()
    async with serving(notifier__sse__retry=0.5) as node:
        for _ in range(8):
            async with node.watch() as reader:
                assert reader.opening.name is None
                assert reader.opening.id == str(node.keyspace.token)
                assert 250 <= reader.opening.retry <= 750
                retries.add(reader.opening.retry)
    assert len(retries) > 1, "they would all come back at once"


async def test_a_client_that_was_told_nothing_resumes_where_it_began(serving):
    async with serving() as node:
        async with node.watch() as reader:
            begun = reader.id
        await node.put("a")
        async with node.watch(last_event_id=begun) as reader:
            assert (await reader.next()).data["key"] == "a"


async def test_all_who_are_told_of_a_change_share_its_bytes(serving):
    async with serving() as node:
        seen = node.hub.watch("*")
        async with node.watch() as one, node.watch() as other:
            await node.put("a")
            first, second = await one.next(), await other.next()
            assert first.data == second.data
            (item,) = seen.take()
            assert isinstance(item, Changed)
            frame = item.form("sse-1", lambda _: b"not made yet")
            assert frame.startswith(b"id: " + first.id.encode() + b"\nevent: put\ndata: {")
            assert frame.endswith(b"}\n\n")


async def test_a_value_with_line_ends_is_one_event(serving):
    value = "a\nb\r\nc\rdata: d\n\nevent: e\u2028"
    async with serving() as node, node.watch() as reader:
        await node.put("a", value)
        await node.put("b")
        first, second = await reader.take(2)
        assert (first.data["value"], second.data["key"]) == (value, "b")


async def test_mode_latest_tells_the_last_of_each_key(serving):
    async with serving() as node:
        start = node.keyspace.token
        for number in range(50):
            await node.put(f"k.{number % 5}", str(number))
        async with node.watch(since=str(start), mode="latest") as reader:
            events = [await reader.next()]
            while events[-1].id != str(node.keyspace.token):
                events.append(await reader.next())
        last = {event.data["key"]: event.data["value"] for event in events}
        assert last == {f"k.{number % 5}": str(number) for number in range(45, 50)}
        assert len(events) < 50


# --- resuming -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["since", "last_event_id"])
async def test_it_resumes_without_hole_or_repeat_wherever_it_was_cut_off(serving, how):
    total, seen = 60, []
    async with serving() as node:
        where = {"since": str(node.keyspace.token)}
        async with anyio.create_task_group() as tasks:

            async def write():
                for number in range(total):
                    await node.put("k", str(number))
                    await anyio.lowlevel.checkpoint()

            tasks.start_soon(write)
            while len(seen) < total:
                async with node.watch(pattern="k", **where) as reader:
                    events = await reader.take(min(7, total - len(seen)))
                    seen += [event.data["value"] for event in events]
                    where = {how: reader.id}
    assert seen == [str(number) for number in range(total)]


async def test_last_event_id_wins_over_since(serving):
    async with serving() as node:
        start = node.keyspace.token
        await node.put("a")
        middle = node.keyspace.token
        await node.put("b")
        async with node.watch(since=str(start), last_event_id=middle) as reader:
            assert (await reader.next()).data["key"] == "b"
        async with node.watch(since=str(start), headers={"Last-Event-ID": ""}) as reader:
            assert (await reader.next()).data["key"] == "a"


async def test_a_token_of_another_history_gets_a_gap_and_a_snapshot(serving):
    async with serving() as node:
        await node.put("a")
        foreign = Token("0123456789abcdef", 7)
        async with node.watch(since=str(foreign)) as reader:
            gap, record, end = await reader.take(3)
            assert gap.name == "gap"
            assert gap.data == {
                "after": str(foreign),
                "upto": str(node.keyspace.token),
                "snapshot_follows": True,
            }
            # Until the snapshot is whole, a client that is cut off has to begin with the gap again.
            assert (gap.id, record.id) == (str(foreign), str(foreign))
            assert told([record, end]) == [("put", "a"), ("snapshot-end", None)]
            assert end.id == str(node.keyspace.token)


async def test_a_token_that_the_log_does_not_reach_gets_a_gap_and_a_snapshot(serving):
    async with serving(keyspace__log_bytes=1, watch__ring_bytes=1) as node:
        start = node.keyspace.token
        for number in range(50):
            await node.put("a", str(number))
        await node.keyspace.upkeep.tidy()
        async with node.watch(since=str(start)) as reader:
            events = await reader.until("snapshot-end")
            assert told(events) == [("gap", None), ("put", "a"), ("snapshot-end", None)]
            assert events[1].data["value"] == "49"


@pytest.mark.parametrize(
    ("params", "status", "code"),
    [
        ({"since": "rubbish"}, 400, "invalid_token"),
        ({"since": ""}, 400, "invalid_token"),
        ({"since": "2-0123456789abcdef-1"}, 400, "invalid_token"),
        ({"pattern": ""}, 400, "invalid_pattern"),
        ({"pattern": "a\x00b"}, 400, "invalid_pattern"),
        ({"mode": "some"}, 400, "bad_request"),
        ({"snapshot": "maybe"}, 400, "bad_request"),
    ],
)
async def test_what_makes_no_sense_is_refused_with_a_problem_document(
    serving, params, status, code
):
    async with serving() as node:
        answer = await node.client.get("/v1/watch", params=params)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"] == code
        assert answer.json()["detail"]
        assert node.hub.watchers() == []


async def test_a_token_ahead_of_the_history_is_refused(serving):
    async with serving() as node:
        ahead = Token(node.keyspace.history, 999)
        for asked in (
            {"params": {"since": str(ahead)}},
            {"headers": {"Last-Event-ID": str(ahead)}},
        ):
            answer = await node.client.get("/v1/watch", **asked)
            assert (answer.status_code, answer.json()["code"]) == (400, "invalid_token")


async def test_head_and_other_methods_leave_no_watcher_behind(serving):
    async with serving() as node:
        answer = await node.client.head("/v1/watch")
        assert answer.headers["content-type"] == "text/event-stream"
        assert (await node.client.post("/v1/watch")).status_code == 405
        assert node.hub.watchers() == []


async def test_an_answer_that_somebody_replaces_leaves_no_watcher_behind(serving):
    def replace(event):
        event.outcome = {"instead": True}

    async with serving() as node:
        node.node.on(RequestComplete, replace)
        assert (await node.client.get("/v1/watch")).json() == {"instead": True}
        assert node.hub.watchers() == []


# --- snapshots ------------------------------------------------------------------------------------


async def test_a_snapshot_and_what_follows_are_the_store_under_constant_writing(serving):
    async with serving(watch__page_bytes=2000) as node:
        await node.keyspace.batch([Put(f"k.{n:03}", b"0" * 50) for n in range(200)])
        written, done = 0, False

        async def write():
            nonlocal written
            while not done:
                written += 1
                key = f"k.{written * 7 % 250:03}"
                if written % 5:
                    await node.put(key, str(written))
                else:
                    await node.keyspace.delete(key)
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            for _ in range(5):
                async with node.watch(pattern="k.*", snapshot=1) as reader:
                    store, ended, versions = {}, False, []
                    aim = written + 100
                    while True:
                        event = await reader.next()
                        ended = ended or event.name == "snapshot-end"
                        if event.name == "put":
                            store[event.data["key"]] = event.data["value"]
                        elif event.name == "delete":
                            store.pop(event.data["key"], None)
                        if ended and "version" in (event.data or {}):
                            versions.append(int(event.data["version"].rpartition("-")[2]))
                        if ended and written > aim:
                            break
                    assert versions == sorted(set(versions))
            done = True
        async with node.watch(pattern="k.*", last_event_id=reader.id) as reader:
            while reader.id != str(node.keyspace.token):
                event = await reader.next()
                if event.name == "put":
                    store[event.data["key"]] = event.data["value"]
                else:
                    store.pop(event.data["key"], None)
        page = await node.keyspace.scan(limit=1000)
        assert store == {record.key: record.value.decode() for record in page.records}


async def test_since_makes_a_snapshot_needless_where_it_can_be_resumed(serving):
    async with serving() as node:
        await node.put("a")
        start = node.keyspace.token
        await node.put("b")
        async with node.watch(since=str(start), snapshot="1") as reader:
            assert (await reader.next()).data["key"] == "b"


# --- slow, idle and vanished clients --------------------------------------------------------------


async def raw(node, target="/v1/watch", headers=""):
    stream = await node.connect()
    await stream.send(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode())
    return stream


async def until(stream, mark):
    seen = b""
    while mark not in seen:
        seen += await stream.receive()
    return seen


async def test_a_client_that_never_reads_delays_nobody_and_holds_a_cursor_only(serving):
    async with serving() as node, node.watch(mode="latest") as reader:
        deaf = await raw(node)
        async with deaf:
            await until(deaf, b"retry")
            value = "x" * 100_000
            for number in range(300):
                await node.put("k", value + str(number))
            while True:
                event = await reader.next()
                if event.data["value"] == value + "299":
                    break
            behind = max(node.hub.watchers(), key=lambda each: each.behind)
            assert behind.behind > 100
            assert behind.state == "behind"


async def test_a_client_that_vanishes_leaves_no_watcher_behind(serving):
    async with serving() as node:
        for _ in range(3):
            stream = await raw(node)
            await until(stream, b"retry")
            assert len(node.hub.watchers()) == 1
            await stream.aclose()
            await node.watchers_gone()


async def test_an_idle_stream_shows_that_it_lives_and_moves_its_place_on(serving):
    async with serving(notifier__sse__heartbeat=0.02) as node:
        stream = await raw(node, "/v1/watch?pattern=mine.*")
        async with stream:
            await until(stream, b":\n\n")
            await node.put("others.1")
            seen = await until(stream, b":\nid: " + str(node.keyspace.token).encode() + b"\n\n")
            assert b"event:" not in seen
            # Nothing new happened: signs of life only.
            assert b"id:" not in await until(stream, b":\n\n")


async def test_many_events_at_once_are_all_told(serving):
    async with serving() as node, node.watch() as reader:
        await node.keyspace.batch([Put(f"k.{n}", b"v" * 2000) for n in range(1000)])
        events = await reader.take(1000)
        assert [event.data["key"] for event in events] == [f"k.{n}" for n in range(1000)]


# --- the end --------------------------------------------------------------------------------------


@pytest.mark.parametrize("plugin", ["nkv_notifier_sse", "nkv_transport_http"])
async def test_a_replaced_plugin_says_goodbye_and_the_next_generation_resumes(serving, plugin):
    total, seen = 200, []
    async with serving() as node:

        async def write():
            for number in range(total):
                await node.put("k", str(number))
                await anyio.sleep(0.001)

        async with anyio.create_task_group() as tasks:
            start = str(node.keyspace.token)
            tasks.start_soon(write)
            for _ in range(3):
                async with node.watch(since=start) as reader:
                    seen.append((await reader.next()).data["value"])
                    tasks.start_soon(node.plugins.replace, plugin)
                    *events, end = await reader.rest()
                seen += [event.data["value"] for event in events]
                assert end.name == "end"
                assert end.data["code"] == "stopping"
                start = end.id
            async with node.watch(since=start) as reader:
                while len(seen) < total:
                    seen.append((await reader.next()).data["value"])
    assert seen == [str(number) for number in range(total)]


async def test_a_node_that_stops_says_goodbye_with_the_place(serving):
    ends = []

    async def follow(node, began):
        async with node.watch(pattern="mine.*") as reader:
            began.set()
            ends.extend(await reader.rest())

    async with anyio.create_task_group() as tasks, serving() as node:
        for _ in range(3):
            began = anyio.Event()
            tasks.start_soon(follow, node, began)
            await began.wait()
        await node.put("others.1")
        token = str(node.keyspace.token)
    assert [(end.name, end.id, end.data["code"]) for end in ends] == [
        ("end", token, "stopping")
    ] * 3


async def test_a_goodbye_within_a_snapshot_has_no_place(serving):
    async with serving(watch__page_bytes=1000) as node:
        await node.keyspace.batch([Put(f"k.{n}", b"v" * 60_000) for n in range(400)])
        stream = await raw(node, "/v1/watch?snapshot=1")
        async with stream, anyio.create_task_group() as tasks:
            seen = await until(stream, b"event: put")
            tasks.start_soon(node.plugins.unload, "nkv_notifier_sse")
            with anyio.move_on_after(10):
                seen += await until(stream, b"0\r\n\r\n")
        assert b"id:" not in seen
        assert b"snapshot-end" not in seen
        assert b'event: end\ndata: {"code":"stopping"' in seen


async def test_a_watcher_that_the_hub_ends_is_told_why(serving):
    async with serving() as node, node.watch() as reader:
        token = node.keyspace.token
        (watcher,) = node.hub._watchers
        watcher.end("storage_failed", "It broke.")
        end = await reader.next()
        assert (end.name, end.id) == ("end", str(token))
        assert end.data == {"code": "storage_failed", "detail": "It broke."}
        assert await reader.next() is None


# --- rights ---------------------------------------------------------------------------------------


async def test_watching_needs_the_right_to_read_all_that_could_match(serving, tmp_path):
    file = tmp_path / "tokens.toml"
    secret, line = new_token("reader", [Right("mine.", read=True, write=False)])
    file.write_text(line)
    file.chmod(0o600)
    async with serving(auth__tokens=str(file)) as node:
        own = {"Authorization": f"Bearer {secret}"}
        answer = await node.client.get("/v1/watch")
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
        for pattern in ("*", "others.*", "min*"):
            answer = await node.client.get("/v1/watch", params={"pattern": pattern}, headers=own)
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        async with node.watch(pattern="mine.*", headers=own) as reader:
            await node.put("others.1")
            await node.put("mine.1")
            assert (await reader.next()).data["key"] == "mine.1"
