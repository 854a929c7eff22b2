"""What clients send that they should not, and how they and the node go away."""

import logging
import socket

import anyio
import pytest

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"PUT 1 me k not*base64\n", b"1 FAILED\n"),
        (b"PUT 1 me k dg=\n", b"1 FAILED\n"),
        (b"PUT 1 me k dg== extra\n", b"1 FAILED\n"),
        (b"PUT 1 me k\n", b"1 FAILED\n"),
        (b"PUT 1 me  dg==\n", b"1 FAILED\n"),
        (b"PUT 1 me .. dg==\n", b"1 FAILED\n"),
        (b"PUT 1 me \xff dg==\n", b"1 FAILED\n"),
        (b"PUT 1 me a\tb dg==\n", b"1 FAILED\n"),
        (b"PUT 1 me " + b"k" * 600 + b" dg==\n", b"1 FAILED\n"),
        (b"GET 1 me k extra\n", b"1 FAILED\n"),
        (b"GET 1  k\n", b"1 FAILED\n"),
        (b"GET 1\n", b"1 FAILED\n"),
        (b"GET  me k\n", b"- FAILED\n"),
        (b"GET \xff me k\n", b"- FAILED\n"),
        (b"GETS 1 me k\n", b"1 FAILED\n"),
        (b"get 1 me k\n", b"1 FAILED\n"),
        (b"hello\n", b"- FAILED\n"),
        (b"AUTH\n", b"- FAILED\n"),
        (b"AUTH a b\n", b"- FAILED\n"),
        (b"A\n", b"- FAILED\n"),
        (b"\x00\x00\x00\x00", b"\x0e\x00\x00\x00base - FAILED\n"),
        (b"\x04\x00\x00\x00\xff\xfe\x00\n", b"\x0e\x00\x00\x00base - FAILED\n"),
        (b"\x0a\x00\x00\x00PUT 1 me k", b"\x0e\x00\x00\x00base 1 FAILED\n"),
        (b"\x0d\x00\x00\x00GET 1 me a\nb\n", b"\x0e\x00\x00\x00data 1 FAILED\n"),
        (b"{}\n", b'{"Base":{"id":"-","status":400,'),
        (b"{nonsense\n", b'{"Base":{"id":"-","status":400,'),
        (b'{"type":"Put","id":"1","key":"k","client_uuid":"c","value":[256]}\n', b'{"Base":'),
        (b'{"type":"Put","id":"1","key":"k","client_uuid":"c"}\n', b'{"Base":{"id":"1",'),
        (b'{"type":"Get","id":"1","key":"k"}\n', b'{"Base":{"id":"1","status":400,'),
        (b'{"type":"Trace","id":"1","key":"k","client_uuid":"c"}\n', b'{"Base":'),
        (b'{"type":"Put","id":"1","key":"a*","client_uuid":"c","value":[]}\n', b'{"Base":'),
        (b'{"a":' * 5000 + b"\n", b'{"Base":{"id":"-","status":400,'),
    ],
)  # fmt: skip
async def test_what_cannot_be_read_is_answered_and_the_connection_serves_on(serving, sent, answer):
    async with serving() as served:
        client = served.connect()
        await client.send(sent)
        while len(client.seen) < len(answer):
            await client._more()
        assert client.seen.startswith(answer)
        while answer[:1] == b"{" and not client.seen.endswith(b"\n"):
            await client._more()
        client.seen = b""
        await client.send(b"PUT 9 me k dg==\n")
        assert await client.line() == "9 OK"


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n",
        b"GET http://127.0.0.1/ HTTP/1.1\r\n",
        b"POST / HTTP/1.1\r\nHost: 127.0.0.1:4222\r\n\r\nPUT 1 me k dg==\n",
        b"POST /",
        b"PUT /k",
        b"OPTIONS * HTTP/1.1\r\n",
        b"DELETE /k HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n\r\n",
        b"Host: 127.0.0.1\r\n",
        b"host: x",
        b"\x20\x00\x00\x00POST / HT",
        b"\x20\x00\x00\x00Host: localhost",
        b"GET 1 me k\nPOST / HTTP/1.1\r\n\r\nPUT 2 me k dg==\n",
    ],
)
async def test_what_looks_like_http_closes_the_connection_at_once(serving, family, sent):
    async with serving() as served:
        client = served.connect(family)
        await client.send(sent)
        rest = await client.rest()
        assert rest in (b"", b"1 FAILED\n")
        assert await served.keyspace.count() == 0


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"PUT 1 me k " + b"A" * 2000, b"- FAILED\n"),
        (b"PUT 1 me k " + b"A" * 2000 + b"\nPUT 2 me k dg==\n", b"- FAILED\n"),
        (b'{"type":"Put","value":[' + b"1," * 1000, b'{"Base":{"id":"-","status":400,'),
        (b"\xe9\x03\x00\x00", b"\x0e\x00\x00\x00base - FAILED\n"),
        (b"\x89PNG\r\n\x1a\n" * 100, b"\x0e\x00\x00\x00base - FAILED\n"),
        (b"\xff" * 10_000, b"\x0e\x00\x00\x00base - FAILED\n"),
    ],
)
async def test_what_is_too_long_or_endless_is_answered_and_the_connection_closed(
    serving, family, sent, answer
):
    async with serving(max_request_bytes=1000) as served:
        client = served.connect(family)
        await client.send(sent)
        assert (await client.rest()).startswith(answer)
        assert await served.keyspace.count() == 0


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"PUT 1 me k dg=", b"- FAILED\n"),
        (b"G", b"- FAILED\n"),
        (b'{"type":', b'{"Base":{"id":"-","status":400,'),
        (b"\x10\x00\x00\x00PUT 1", b"\x0e\x00\x00\x00base - FAILED\n"),
        (b"\x10\x00", b"\x0e\x00\x00\x00base - FAILED\n"),
    ],
)
@pytest.mark.parametrize("then", ["nothing", "end"])
async def test_half_a_request_is_answered_when_the_rest_does_not_come(serving, sent, answer, then):
    async with serving(request_timeout=0.2 if then == "nothing" else 10) as served:
        client = served.connect()
        await client.send(sent)
        if then == "end":
            client.socket.shutdown(socket.SHUT_WR)
        assert (await client.rest()).startswith(answer)


async def test_an_idle_connection_is_closed_one_with_a_subscription_is_not(serving, dialects):
    async with serving(idle_timeout=0.2) as served:
        watcher = await served.subscribe(dialects["line"], "k")
        idle = served.connect()
        assert await idle.rest() == b""
        await served.put("k", b"v")
        assert await watcher.line() == "UPDATE k dg=="


async def test_a_line_may_come_in_pieces(serving):
    async with serving() as served:
        client = served.connect("tcp")
        for piece in (b"P", b"UT 1 m", b"e k d", b"g==", b"\n\x0b\x00", b"\x00\x00GET 2 me k\n"):
            await client.send(piece)
            await anyio.sleep(0.01)
        assert await client.line() == "1 OK"
        assert await client.frame() == "data 2 OK k dg=="


async def test_ten_thousand_requests_in_one_write_are_answered_in_order(serving, dialect):
    async with serving() as served:
        client = served.connect()
        requests = [
            dialect.request(*(("PUT", str(n), "me", f"k{n % 7}", "dg==") if n % 2 else
                              ("GET", str(n), "me", "nobody")))
            for n in range(10_000)
        ]  # fmt: skip
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.send, b"".join(requests))
            for n in range(10_000):
                answer = await dialect.read(client)
                if n % 2:
                    assert answer == dialect.ok(str(n))
                else:
                    assert f"{n}" in str(answer)


async def test_a_client_that_stops_reading_is_closed_and_costs_a_bounded_buffer(
    serving, dialects, family
):
    async with serving(send_timeout=0.5) as served:
        value = b"x" * 100_000
        await served.put("k", value)
        client = served.connect(family, buffer=4096)
        request = dialects["line"].request("GET", "1", "me", "k")
        async with anyio.create_task_group() as tasks:

            async def ask_for_ever():
                try:
                    while True:
                        await client.send(request * 100)
                except OSError:
                    tasks.cancel_scope.cancel()

            tasks.start_soon(ask_for_ever)
        # Others have not noticed.
        assert (await served.ask(dialects["line"], "GET", "2", "me", "k")).startswith("2 OK ")


async def test_a_subscriber_that_stops_reading_is_closed_and_holds_up_nobody(serving, dialects):
    line = dialects["line"]
    async with serving(send_timeout=0.5) as served:
        client = served.connect("tcp", buffer=4096)
        await client.send(line.request("SUB", "1", "slow", "a"))
        other = await served.subscribe(line, "a")
        value = b"x" * 200_000
        for number in range(60):
            await served.put(f"a.{number}", value)
            assert await other.line() == line.update(f"a.{number}", value)
        while len(served.node.hub.watchers()) > 1:
            await anyio.sleep(0.01)
        rest = await client.rest()
        assert len(rest) < 60 * 200_000


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_nothing_is_left_of_a_client_that_vanishes(serving, dialect, how):
    async with serving() as served:
        client = await served.subscribe(dialect, "a.b.c")
        assert len(served.node.hub.watchers()) == 3  # the key, and the two levels above
        if how == "reset":
            tcp = await served.subscribe(dialect, "a.b.c", family="tcp")
            tcp.socket.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
            )
            tcp.close()
        client.close()
        while served.node.hub.watchers():
            await anyio.sleep(0.01)


async def test_a_client_that_vanishes_in_the_middle_of_its_requests_harms_nobody(
    serving, dialect, caplog
):
    with caplog.at_level(logging.WARNING):
        async with serving() as served:
            for family in ("unix", "tcp"):
                client = served.connect(family)
                await client.send(dialect.request("PUT", "1", "me", "k", "dg==") * 200)
                client.close()
            assert await served.ask(dialect, "PUT", "2", "me", "k", "dg==") == dialect.ok("2")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_one_connection_too_many_is_told_so(serving):
    async with serving(max_connections=1) as served:
        first = served.connect()
        await first.send(b"PUT 1 me k dg==\n")
        assert await first.line() == "1 OK"
        assert await served.connect().rest() == b"- FAILED\n"


async def test_one_subscription_too_many_is_refused(serving, dialect):
    async with serving(max_subscriptions=1) as served:
        client = await served.subscribe(dialect, "a")
        await client.send(dialect.request("SUB", "2", "watcher", "b"))
        assert "2" in str(await dialect.read(client))
        await served.put("a", b"v")
        assert await dialect.read(client) == dialect.update("a", b"v")


async def test_an_answer_that_is_too_long_fails(serving, dialects):
    async with serving(max_answer_bytes=1000) as served:
        for number in range(20):
            await served.put(f"a.{number}", b"x" * 100)
        framed = dialects["framed"]
        assert await served.ask(framed, "GET", "1", "me", "a.*") == "data 1 FAILED"
        answer = await served.ask(dialects["json"], "GET", "2", "me", "a.*")
        assert answer["Base"]["status"] == 413


# --- the end of the node, and of a generation -----------------------------------------------------


async def test_a_stop_ends_connections_in_good_order(serving, dialect):
    async with serving() as served:
        idle = served.connect()
        watcher = await served.subscribe(dialect, "k")
        await served.put("k", b"v")
        half = served.connect()
        await half.send(b"PUT 1")
        await served.node.plugins.unload("nkv_transport_socket")
        assert await idle.rest() == b""
        assert await half.rest() == b"- FAILED\n"
        assert await dialect.read(watcher) == dialect.update("k", b"v")
        assert await watcher.rest() == b""
        assert not served.node.hub.watchers()
        with pytest.raises(OSError, match="No such file"):
            served.connect()


async def test_what_does_not_end_is_cut_at_the_deadline(serving, dialects, caplog):
    async with serving(drain=1.0) as served:
        await served.put("k", b"x" * 500_000)
        client = served.connect(buffer=4096)
        await client.send(dialects["line"].request("GET", "1", "me", "k") * 50)
        while not client.seen:
            await client._more()
        with anyio.fail_after(60):
            await served.node.plugins.unload("nkv_transport_socket")
        assert "at the deadline" in caplog.text


async def test_a_replaced_transport_refuses_nobody(serving, dialects):
    line = dialects["line"]
    async with serving() as served:
        watcher = await served.subscribe(line, "k")
        refused = []

        async def ask():
            for number in range(200):
                try:
                    answer = await served.ask(line, "PUT", str(number), "me", "k", "dg==")
                except (EOFError, OSError) as error:
                    answer = repr(error)
                if answer != f"{number} OK":
                    refused.append(answer)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await served.node.plugins.replace("nkv_transport_socket")
        assert refused == []
        assert await watcher.rest() is not None
        again = await served.subscribe(line, "k")
        assert await again.line() == "UPDATE k dg=="
