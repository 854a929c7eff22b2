"""What subscribers are told, in each dialect."""

import anyio
import pytest

from nkv_core.contracts.keyspace import Delete, Put

pytestmark = pytest.mark.anyio

#: As bound for what must not come: a change behind it is awaited instead of a while.
MARK = "~mark"


async def told(served, dialect, client, mark):
    """All that a subscriber is told up to an update of `mark`, which is put now."""
    await served.put(mark, b"end")
    heard = []
    while (message := await dialect.read(client)) != dialect.update(mark, b"end"):
        heard.append(message)
    return heard


async def test_what_is_there_comes_first_and_then_what_changes(serving, dialect, family):
    async with serving() as served:
        await served.put("a.b", b"one")
        await served.put("a.b.c", b"")
        await served.put("ab", b"not below")
        client = await served.subscribe(dialect, "a.b", family=family)
        assert await dialect.read(client) == dialect.update("a.b", b"one")
        assert await dialect.read(client) == dialect.update("a.b.c", b"")
        await served.put("a.b.d", b"new")
        assert await dialect.read(client) == dialect.update("a.b.d", b"new")
        await served.keyspace.delete("a.b.d")
        assert await dialect.read(client) == dialect.close("a.b.d")
        await served.put("a.b.d", b"again")
        assert await dialect.read(client) == dialect.update("a.b.d", b"again")


async def test_every_row_of_the_table_of_who_is_told(serving, dialect, family):
    async with serving() as served:
        await served.put("a.b", b"0")
        keys = ("a", "a.b", "a.b.c1", "a.b.c2")
        clients = {}
        for key in keys:
            clients[key] = await served.subscribe(dialect, key, name=f"of-{key}", family=family)
        for key in ("a", "a.b"):
            assert await dialect.read(clients[key]) == dialect.update("a.b", b"0")

        for value in (b"created", b"changed"):
            await served.put("a.b.c2", value)
            for key in ("a", "a.b", "a.b.c2"):
                assert await dialect.read(clients[key]) == dialect.update("a.b.c2", value)

        assert await served.ask(dialect, "DEL", "1", "me", "a.b") == dialect.ok("1")
        for key in keys:
            assert await dialect.read(clients[key]) == dialect.close("a.b"), key
        # A subscription goes on, and nobody was told of more than that.
        for key in keys:
            mark = f"{key}.mark"
            heard = await told(served, dialect, clients[key], mark)
            assert all("mark" in str(message) for message in heard), key


async def test_a_line_to_subscribe_may_lack_its_newline(serving, dialects, family):
    async with serving() as served:
        await served.put("k", b"v")
        client = served.connect(family)
        await client.send(b"SUB 1 me k")
        assert await client.lines(2) == ["HELLO", "UPDATE k dg=="]
        await client.send(b"\nGET 2 me k\n")
        assert await client.line() == "2 OK dg=="


async def test_a_json_request_may_lack_its_newline(serving, dialects):
    async with serving() as served:
        client = served.connect("tcp")
        await client.send(dialects["json"].request("SUB", "1", "me", "k")[:-1])
        assert await client.line() == '"Hello"'


async def test_requests_go_on_over_a_connection_with_a_subscription(serving, dialect):
    async with serving() as served:
        client = await served.subscribe(dialect, "k")
        await client.send(dialect.request("PUT", "1", "me", "k", "dg=="))
        heard = [await dialect.read(client) for _ in range(2)]
        assert dialect.ok("1") in heard
        assert dialect.update("k", b"v") in heard


async def test_unsubscribing_over_another_connection_ends_the_clients_subscription(
    serving, dialect
):
    async with serving() as served:
        client = await served.subscribe(dialect, "k", name="one")
        other = await served.subscribe(dialect, "k", name="two")
        assert await served.ask(dialect, "UNSUB", "1", "nobody", "k") == dialect.ok("1")
        assert await served.ask(dialect, "UNSUB", "2", "one", "k") == dialect.ok("2")
        assert await dialect.read(client) == dialect.close("k")
        await served.put("k", b"v")
        assert await dialect.read(other) == dialect.update("k", b"v")
        # The connection serves on, and the first thing it says is the answer to what it asks.
        await client.send(dialect.request("PUT", "3", "one", "k", ""))
        assert await dialect.read(client) == dialect.ok("3")
        # Somebody did subscribe once; to another key nobody has.
        other.close()
        assert await served.ask(dialect, "UNSUB", "4", "one", "k") == dialect.ok("4")
        assert await served.ask(dialect, "UNSUB", "5", "one", "k2") != dialect.ok("5")


async def test_unsubscribing_over_the_same_connection_is_told_before_it_is_answered(
    serving, dialect
):
    async with serving() as served:
        client = await served.subscribe(dialect, "k", name="one")
        await client.send(dialect.request("UNSUB", "1", "one", "k"))
        assert await dialect.read(client) == dialect.close("k")
        assert await dialect.read(client) == dialect.ok("1")


async def test_two_watchers_may_have_one_client_id(serving, dialect):
    async with serving() as served:
        clients = [await served.subscribe(dialect, "k", name="same") for _ in range(2)]
        await served.put("k", b"v")
        for client in clients:
            assert await dialect.read(client) == dialect.update("k", b"v")
        assert await served.ask(dialect, "UNSUB", "1", "same", "k") == dialect.ok("1")
        for client in clients:
            assert await dialect.read(client) == dialect.close("k")


async def test_subscribing_twice_over_one_connection_begins_again_and_tells_once(serving, dialect):
    async with serving() as served:
        await served.put("k", b"1")
        client = await served.subscribe(dialect, "k", name="one")
        assert await dialect.read(client) == dialect.update("k", b"1")
        await client.send(dialect.request("SUB", "one", "one", "k"))
        assert await dialect.read(client) == dialect.hello
        assert await dialect.read(client) == dialect.update("k", b"1")
        await served.put("k", b"2")
        assert await dialect.read(client) == dialect.update("k", b"2")
        assert await told(served, dialect, client, "k.mark") == []


async def test_trace_names_the_clients_of_a_key_and_of_the_levels_above(serving, dialects):
    framed = dialects["framed"]
    async with serving() as served:
        for key, name in (("a", "top"), ("a.b", "mid"), ("a.b.c", "low"), ("a.b", "top")):
            await served.subscribe(framed, key, name=name)
        assert await served.ask(framed, "TRACE", "1", "me", "a.b") == "trace 1 OK top mid"
        assert await served.ask(framed, "TRACE", "2", "me", "a.b.c.d") == "trace 2 OK top mid low"
        assert await served.ask(framed, "TRACE", "3", "me", "b") == "trace 3 FAILED"


async def test_a_clear_is_told_as_one_close_for_each_record_that_was_known(serving, dialect):
    async with serving() as served:
        for key in ("a.x.1", "a.x.2", "a.y"):
            await served.put(key, b"v")
        client = await served.subscribe(dialect, "a")
        for key in ("a.x.1", "a.x.2", "a.y"):
            assert await dialect.read(client) == dialect.update(key, b"v")
        await served.put("a.x.3", b"v")
        assert await dialect.read(client) == dialect.update("a.x.3", b"v")
        await served.keyspace.clear("a.x.")
        closed = [await dialect.read(client) for _ in range(3)]
        assert closed == [dialect.close(f"a.x.{n}") for n in (1, 2, 3)]
        await served.keyspace.clear("")
        assert await dialect.read(client) == dialect.close("a.y")
        await served.keyspace.clear("")
        assert await told(served, dialect, client, "a.mark") == []


async def test_a_clear_of_a_level_above_is_a_notice_only_where_it_was_there(serving, dialect):
    async with serving() as served:
        await served.put("a.b", b"v")
        client = await served.subscribe(dialect, "a.b.c")
        await served.put("a.b.c", b"1")
        assert await dialect.read(client) == dialect.update("a.b.c", b"1")
        await served.keyspace.clear("a.")
        heard = [await dialect.read(client) for _ in range(2)]
        assert sorted(heard, key=str) == sorted(
            [dialect.close("a.b"), dialect.close("a.b.c")], key=str
        )
        await served.keyspace.clear("a")
        assert await told(served, dialect, client, "a.b.c.mark") == []


async def test_deleting_a_subtree_closes_each_of_its_records(serving, dialects):
    framed = dialects["framed"]
    async with serving() as served:
        for key in ("a.b", "a.b.c", "a.bc"):
            await served.put(key, b"v")
        client = await served.subscribe(framed, "a")
        for key in ("a.b", "a.b.c", "a.bc"):
            assert await client.frame() == framed.update(key, b"v")
        assert await served.ask(framed, "DEL", "1", "me", "a.b.*") == "base 1 OK"
        assert await client.frame() == "CLOSE a.b"
        assert await client.frame() == "CLOSE a.b.c"
        assert await told(served, framed, client, "a.mark") == []


async def test_an_expiry_is_told_as_a_close(serving, dialect):
    from nkv_core.records import wall_clock

    async with serving() as served:
        client = await served.subscribe(dialect, "k")
        await served.keyspace.put("k", b"v", expires=wall_clock() + 300)
        assert await dialect.read(client) == dialect.update("k", b"v")
        assert await dialect.read(client) == dialect.close("k")


async def test_a_touch_is_no_change_of_the_value_and_is_not_told(serving, dialect):
    from nkv_core.records import wall_clock

    async with serving() as served:
        await served.put("k", b"v")
        client = await served.subscribe(dialect, "k")
        assert await dialect.read(client) == dialect.update("k", b"v")
        await served.keyspace.touch("k", wall_clock() + 3_600_000)
        assert await told(served, dialect, client, "k.mark") == []


async def test_intermediate_values_may_be_skipped_the_last_one_never_is(serving, dialect):
    async with serving() as served:
        client = await served.subscribe(dialect, "k")
        for number in range(500):
            await served.put("k", str(number).encode())
        seen = [dialect.update("k", str(number).encode()) for number in range(500)]
        positions = [seen.index(await dialect.read(client))]
        while positions[-1] != 499:
            positions.append(seen.index(await dialect.read(client)))
        assert positions == sorted(set(positions))


async def test_a_key_with_a_space_is_left_out_and_counted(serving, dialects):
    async with serving() as served:
        await served.put("a.two words", b"v")
        clients = {n: await served.subscribe(d, "a") for n, d in dialects.items()}
        json_ = dialects["json"]
        assert await json_.read(clients["json"]) == json_.update("a.two words", b"v")
        await served.keyspace.batch([Put("a.x y", b"1"), Delete("a.two words")])
        assert await json_.read(clients["json"]) == json_.update("a.x y", b"1")
        assert await json_.read(clients["json"]) == json_.close("a.two words")
        for name in ("line", "framed"):
            assert await told(served, dialects[name], clients[name], f"a.mark-{name}") in (
                [],
                [dialects[name].update("a.mark-line", b"end")],
            )
        (route,) = [r for r in served.node.routes("http") if r.path == "/v1/status/socket"]
        figures = route.target(None)
        assert figures["left_out_spaces"] == 6
        assert figures["subscriptions"] == 3


async def test_a_subscription_that_covers_too_many_keys_is_ended_and_says_so(serving, dialect):
    async with serving(max_known_keys=3) as served:
        for number in range(5):
            await served.put(f"a.{number}", b"v")
        client = await served.subscribe(dialect, "a")
        for number in range(3):
            assert await dialect.read(client) == dialect.update(f"a.{number}", b"v")
        assert await dialect.read(client) == dialect.close("a")
        assert await client.rest() == b""


async def test_subscribers_have_what_the_store_has_after_a_thousand_writes(serving, dialect):
    import random

    random.seed(7)
    async with serving() as served:
        client = await served.subscribe(dialect, "a")
        model, seen = {}, {}

        async def write():
            for number in range(1000):
                key = f"a.{random.randrange(20)}"
                if random.random() < 0.02:
                    await served.keyspace.clear("a.1")
                    for each in [k for k in model if k.startswith("a.1")]:
                        del model[each]
                elif random.random() < 0.3:
                    await served.keyspace.delete(key)
                    model.pop(key, None)
                else:
                    model[key] = str(number).encode()
                    await served.put(key, model[key])
            await served.put("a.mark", b"end")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            closes = {str(dialect.close(f"a.{n}")): f"a.{n}" for n in range(20)}
            updates = {
                str(dialect.update(f"a.{n}", str(v).encode())): (f"a.{n}", str(v).encode())
                for n in range(20)
                for v in range(1000)
            }
            while (message := await dialect.read(client)) != dialect.update("a.mark", b"end"):
                if str(message) in closes:
                    seen.pop(closes[str(message)], None)
                else:
                    key, value = updates[str(message)]
                    seen[key] = value
        assert seen == model
