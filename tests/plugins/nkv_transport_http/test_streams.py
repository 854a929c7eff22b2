"""Streams, WebSockets and mounted applications: what stays open, and how it ends."""

import json
import logging
import math

import anyio
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)

from nkv_core.contracts.handlers import Stream
from nkv_core.errors import Forbidden, Stopping
from nkv_core.events import RequestEnd

pytestmark = pytest.mark.anyio


class Ticks:
    """An endless iterator that a test drives, and sees closed."""

    def __init__(self):
        self.send, self.pieces = anyio.create_memory_object_stream(10)
        self.closed = anyio.Event()

    async def iterate(self):
        try:
            with self.send, self.pieces:
                async for piece in self.pieces:
                    yield piece
        finally:
            self.closed.set()


def streams(ticks, **options):
    def handler(_request):
        return Stream(ticks.iterate(), "text/event-stream", **options)

    return lambda handlers: handlers.add("/ticks", handler)


async def opened(node, path="/ticks", version="1.1"):
    peer = await node.connect()
    await peer.send(f"GET {path} HTTP/{version}\r\nHost: localhost\r\n\r\n".encode())
    head = (await peer.until(b"\r\n\r\n")).lower()
    return peer, head


# --- streams --------------------------------------------------------------------------------------


async def test_the_header_goes_out_before_the_first_piece(serving):
    ticks = Ticks()
    async with serving() as node:
        node.load(streams(ticks, headers={"X-A": "1"}, status=202))
        peer, head = await opened(node)
        async with peer.stream:
            assert head.startswith(b"http/1.1 202 ")
            assert b"content-type: text/event-stream\r\n" in head
            assert b"x-a: 1\r\n" in head
            await ticks.send.send(b"one")
            assert await peer.until(b"one\r\n") == b"3\r\none\r\n"
            await ticks.send.send(b"")
            await ticks.send.send(b"two")
            assert await peer.until(b"two\r\n") == b"3\r\ntwo\r\n"


async def test_a_stream_that_ends_leaves_the_connection_usable(serving):
    ticks = Ticks()
    async with serving() as node:
        node.load(streams(ticks))
        peer, _ = await opened(node)
        async with peer.stream:
            await ticks.send.send(b"one")
            await ticks.send.aclose()
            await peer.until(b"0\r\n\r\n")
            assert ticks.closed.is_set()
            await peer.send(b"GET /healthcheck HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await peer.reply())[0] == 200


async def test_a_client_that_goes_closes_the_iterator(serving):
    ticks, ended = Ticks(), []
    async with serving() as node:
        node.load(streams(ticks))
        node.dispatcher.on(RequestEnd, lambda event: ended.append(event.error.code))
        peer, _ = await opened(node)
        await peer.stream.aclose()
        await ticks.closed.wait()
        while not ended:
            await anyio.sleep(0.001)
        assert ended == ["client_gone"]


async def test_a_stream_says_goodbye_when_the_transport_stops(serving):
    ticks = Ticks()
    async with serving() as node:
        node.load(streams(ticks, goodbye=lambda: b"goodbye"))
        peer, _ = await opened(node)
        async with peer.stream, anyio.create_task_group() as tasks:
            await ticks.send.send(b"one")
            await peer.until(b"one\r\n")
            tasks.start_soon(node.stop)
            assert await peer.rest() == b"7\r\ngoodbye\r\n0\r\n\r\n"
            await ticks.closed.wait()


async def test_a_stream_says_goodbye_when_its_own_plugin_goes(serving):
    ticks = Ticks()
    async with serving() as node:
        owner = node.load(streams(ticks, goodbye=lambda: b"goodbye"))
        peer, _ = await opened(node)
        async with peer.stream:
            idle = anyio.Event()
            owner.drain(idle.set)
            await idle.wait()
            assert await peer.until(b"0\r\n\r\n") == b"7\r\ngoodbye\r\n0\r\n\r\n"
            await peer.send(b"GET /healthcheck HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await peer.reply())[0] == 200  # the connection is the transport's


async def test_a_plugin_that_is_cut_breaks_its_streams_off(serving):
    async def deaf():
        yield b"one"
        with anyio.CancelScope(shield=True):
            await release.wait()

    release = anyio.Event()
    async with serving() as node:
        owner = node.load(lambda handlers: handlers.add("/ticks", lambda _: Stream(deaf())))
        peer, _ = await opened(node)
        async with peer.stream:
            await peer.until(b"one\r\n")
            owner.drain(lambda: None)
            owner.cut()
            release.set()
            assert b"0\r\n\r\n" not in await peer.rest()


async def test_an_iterator_that_fails_breaks_the_response_off(serving, caplog):
    async def failing():
        yield b"one"
        raise ZeroDivisionError

    async with serving() as node:
        node.load(lambda handlers: handlers.add("/ticks", lambda _: Stream(failing())))
        with caplog.at_level(logging.CRITICAL, "nkv_core"):
            peer, _ = await opened(node)
            async with peer.stream:
                rest = await peer.rest()
        assert rest == b"3\r\none\r\n"


async def test_the_head_of_a_stream_does_not_run_it(serving):
    ticks = Ticks()
    async with serving() as node, node.client() as client:
        node.load(streams(ticks))
        answer = await client.head("/ticks")
        assert answer.headers["content-type"] == "text/event-stream"
        assert (await client.get("/healthcheck")).status_code == 200
    ticks.send.close()
    ticks.pieces.close()


async def test_pieces_are_whole_and_in_order_up_to_the_goodbye(serving):
    """However it is timed, a goodbye comes between pieces and loses none that was taken."""
    taken = []

    async def counting():
        for number in range(10**9):
            await anyio.lowlevel.checkpoint()
            taken.append(number)
            yield b"%d\n" % number

    async with serving() as node:
        stream = lambda _: Stream(counting(), goodbye=lambda: b"%d!" % taken[-1])  # noqa: E731
        node.load(lambda handlers: handlers.add("/ticks", stream))
        async with (
            node.client() as client,
            client.stream("GET", "/ticks") as answer,
            anyio.create_task_group() as tasks,
        ):
            text, stopping = "", False
            async for piece in answer.aiter_text():
                text += piece
                if len(taken) > 100 and not stopping:
                    stopping = True
                    tasks.start_soon(node.stop)
        *lines, last = text.split("\n")
        assert [int(line) for line in lines] == taken
        assert last == f"{taken[-1]}!"


# --- WebSockets -----------------------------------------------------------------------------------


class Peer:
    """A client of one WebSocket."""

    def __init__(self, stream):
        self.stream = stream
        self.protocol = WSConnection(ConnectionType.CLIENT)

    async def open(self, target="/ws", host="localhost", headers=()):
        await self.say(Request(host=host, target=target, extra_headers=list(headers)))
        return await self.hear()

    async def say(self, event):
        await self.stream.send(self.protocol.send(event))

    async def hear(self):
        while True:
            for event in self.protocol.events():
                if not isinstance(event, Ping):
                    return event
            try:
                self.protocol.receive_data(await self.stream.receive())
            except anyio.EndOfStream:
                return None


async def websocket(node):
    return Peer(await anyio.connect_tcp("127.0.0.1", node.port))


async def echoing(_request, websocket):
    while (message := await websocket.receive()) is not None:
        await websocket.send(message)


async def test_a_websocket_carries_text_and_bytes(serving):
    async with serving() as node:
        node.load(lambda handlers: handlers.websocket("/ws/{name}", echoing))
        peer = await websocket(node)
        async with peer.stream:
            assert isinstance(await peer.open("/ws/a"), AcceptConnection)
            await peer.say(TextMessage("é"))
            assert (await peer.hear()).data == "é"
            await peer.say(BytesMessage(b"\xff"))
            assert (await peer.hear()).data == b"\xff"
            await peer.say(CloseConnection(1000))
            assert isinstance(await peer.hear(), CloseConnection)


async def test_a_handler_gets_the_request_and_may_close(serving):
    async def greeting(request, websocket):
        await websocket.send(f"{request.params['name']} {request.params['q']}")
        await websocket.close(4000, "enough" * 100)
        await websocket.close(4001)
        with pytest.raises(Stopping):
            await websocket.send("more")

    async with serving() as node:
        node.load(lambda handlers: handlers.websocket("/ws/{name}", greeting))
        peer = await websocket(node)
        async with peer.stream:
            await peer.open("/ws/you?q=1")
            assert (await peer.hear()).data == "you 1"
            closed = await peer.hear()
            assert (closed.code, closed.reason) == (4000, ("enough" * 100)[:123])


async def test_a_handler_that_only_sends_learns_that_the_client_went(serving):
    stopped = anyio.Event()

    async def ticking(_request, websocket):
        try:
            while True:
                await websocket.send("tick")
                await anyio.sleep(0.001)
        except Stopping:
            stopped.set()
            raise

    async with serving() as node:
        node.load(lambda handlers: handlers.websocket("/ws", ticking))
        peer = await websocket(node)
        await peer.open()
        await peer.stream.aclose()
        await stopped.wait()


@pytest.mark.parametrize("listens", [True, False])
async def test_a_websocket_is_closed_when_the_transport_stops(serving, listens):
    ended = anyio.Event()

    async def handler(_request, websocket):
        try:
            if listens:
                assert await websocket.receive() is None
            else:
                while True:
                    await websocket.send("tick")
                    await anyio.sleep(0.001)
        finally:
            ended.set()

    async with serving() as node:
        node.load(lambda handlers: handlers.websocket("/ws", handler))
        peer = await websocket(node)
        async with peer.stream, anyio.create_task_group() as tasks:
            await peer.open()
            tasks.start_soon(node.stop)
            while not isinstance(event := await peer.hear(), CloseConnection):
                assert event is not None
            assert event.code == 1001
            await peer.say(event.response())
            await ended.wait()


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [(Forbidden(), 1008, "forbidden"), (ZeroDivisionError(), 1011, "handler_failed")],
)
async def test_a_handler_that_raises_closes_with_a_reason(serving, caplog, error, code, reason):
    async def failing(_request, _websocket):
        raise error

    async with serving() as node:
        node.load(lambda handlers: handlers.websocket("/ws", failing))
        peer = await websocket(node)
        async with peer.stream:
            with caplog.at_level(logging.CRITICAL, "nkv.plugin"):
                await peer.open()
                closed = await peer.hear()
            assert (closed.code, closed.reason) == (code, reason)


@pytest.mark.parametrize(
    ("host", "headers", "status"),
    [
        ("localhost", [(b"Origin", b"http://evil.example")], 403),
        ("localhost", [(b"Sec-Fetch-Site", b"cross-site")], 403),
        ("evil.example", [], 421),
        ("localhost", [(b"Origin", b"http://localhost")], None),
        ("localhost", [], None),
    ],
)
async def test_a_foreign_page_opens_no_websocket(serving, host, headers, status):
    async with serving() as node:
        node.load(lambda handlers: handlers.websocket("/ws", echoing))
        peer = await websocket(node)
        async with peer.stream:
            event = await peer.open(host=host, headers=headers)
            if status is None:
                assert isinstance(event, AcceptConnection)
            else:
                assert isinstance(event, RejectConnection)
                assert event.status_code == status


async def test_an_unknown_websocket_is_refused_with_a_document(serving):
    async with serving() as node:
        peer = await websocket(node)
        async with peer.stream:
            event = await peer.open("/v1/nowhere")
            assert event.status_code == 404
            body = await peer.hear()
            assert isinstance(body, RejectData)
            assert json.loads(body.data)["code"] == "no_handler"


async def test_a_message_too_long_ends_the_websocket(serving):
    async with serving(max_message_bytes=10) as node:
        node.load(lambda handlers: handlers.websocket("/ws", echoing))
        peer = await websocket(node)
        async with peer.stream:
            await peer.open()
            await peer.say(BytesMessage(b"x" * 11))
            assert (await peer.hear()).code == 1009


async def test_a_handler_that_does_not_receive_slows_the_client_down(serving):
    async def lazy(_request, websocket):
        await release.wait()
        total = 0
        while (message := await websocket.receive()) is not None:
            total += len(message)
            if not message:
                await websocket.send(str(total))

    release = anyio.Event()
    async with serving() as node:
        node.load(lambda handlers: handlers.websocket("/ws", lazy))
        peer = await websocket(node)
        async with peer.stream, anyio.create_task_group() as tasks:
            await peer.open()
            sent = 0

            async def pour():
                nonlocal sent
                for _ in range(300):
                    await peer.say(BytesMessage(b"x" * 100_000))
                    sent += 1
                await peer.say(BytesMessage(b""))

            tasks.start_soon(pour)
            before = -1
            while sent != before:  # until the client can send no more
                before = sent
                await anyio.sleep(0.1)
            assert sent < 300
            release.set()
            assert (await peer.hear()).data == str(300 * 100_000)


# --- mounted applications -------------------------------------------------------------------------


async def endless(request):
    async def pieces():
        yield b"one"
        await anyio.sleep_forever()

    return StreamingResponse(pieces())


async def shown(request):
    return PlainTextResponse(f"{request.method} {request.url.path} {await request.body()!r}")


async def echo_websocket(websocket):
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())
    await websocket.receive()


APPLICATION = Starlette(
    routes=[
        Route("/shown/{rest:path}", shown, methods=["GET", "POST"]),
        Route("/endless", endless),
        WebSocketRoute("/ws", echo_websocket),
    ]
)


async def test_a_mounted_application_answers_below_its_prefix(serving):
    async with serving() as node, node.client() as client:
        owner = node.load(lambda handlers: handlers.mount("/sub/app/", APPLICATION))
        answer = await client.post("/sub/app/shown/a?b=1", content="c")
        assert answer.text == "POST /sub/app/shown/a b'c'"
        assert (await client.get("/sub/app/nowhere")).status_code == 404
        assert (await client.get("/sub/other")).status_code == 404
        assert (await client.get("/sub/app/shown/x", headers={"Host": "x"})).status_code == 421
        foreign = {"Origin": "http://evil.example"}
        assert (await client.post("/sub/app/shown/x", headers=foreign)).status_code == 403
        node.dispatcher.switch(leave=owner)
        assert (await client.get("/sub/app/shown/a")).status_code == 404


async def test_a_mounted_applications_websocket_works(serving):
    async with serving() as node:
        node.load(lambda handlers: handlers.mount("/sub", APPLICATION))
        peer = await websocket(node)
        async with peer.stream:
            assert isinstance(await peer.open("/sub/ws"), AcceptConnection)
            await peer.say(TextMessage("hello"))
            assert (await peer.hear()).data == "hello"


async def test_endless_answers_of_a_mounted_application_end_at_a_stop(serving):
    async with serving(deadline=math.inf) as node:
        node.load(lambda handlers: handlers.mount("/sub", APPLICATION))
        peer, _ = await opened(node, "/sub/endless")
        async with peer.stream:
            await peer.until(b"one\r\n")
            await node.stop()


async def test_an_application_that_sends_on_to_nobody_lets_others_run(serving):
    cancelled = anyio.Event()

    async def pouring(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})
        finally:
            cancelled.set()

    async with serving(deadline=1) as node:
        node.load(lambda handlers: handlers.mount("/sub", pouring))
        peer, _ = await opened(node, "/sub/x")
        await peer.stream.aclose()
        async with node.client() as client:
            assert (await client.get("/healthcheck")).status_code == 200
        await node.stop()
        await cancelled.wait()


async def test_a_mounted_application_that_fails_is_answered_for(serving, caplog):
    async def broken(scope, receive, send):
        raise ZeroDivisionError

    async with serving() as node, node.client() as client:
        node.load(lambda handlers: handlers.mount("/sub", broken))
        with caplog.at_level(logging.CRITICAL):
            assert (await client.get("/sub/x")).status_code == 500
