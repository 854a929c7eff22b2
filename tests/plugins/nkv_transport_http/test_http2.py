"""HTTP/2: negotiated over TLS, by prior knowledge and by upgrade; streams beside each other."""

import contextlib
import logging
import math

import anyio
import h2.config
import h2.connection
import h2.events
import pytest
from h2.errors import ErrorCodes

from nkv_core.contracts.handlers import Stream

GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError)

pytestmark = pytest.mark.anyio


class Http2Client:
    """A client of one connection, in the clear; events by stream."""

    def __init__(self, stream):
        self.stream = stream
        self.connection = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        )
        self.seen = []

    async def start(self):
        self.connection.initiate_connection()
        await self.flush()
        return self

    async def flush(self):
        await self.stream.send(self.connection.data_to_send())

    async def request(self, path, method="GET", body=None, headers=(), authority="localhost"):
        stream_id = self.connection.get_next_available_stream_id()
        head = [
            (":method", method),
            (":path", path),
            (":scheme", "http"),
            (":authority", authority),
            *headers,
        ]
        self.connection.send_headers(stream_id, head, end_stream=body is None)
        if body:
            self.connection.send_data(stream_id, body, end_stream=True)
        await self.flush()
        return stream_id

    async def read(self):
        """Take in what comes next; False at the end of the connection."""
        try:
            events = self.connection.receive_data(await self.stream.receive())
        except anyio.EndOfStream:
            return False
        for event in events:
            if isinstance(event, h2.events.DataReceived):
                self.connection.acknowledge_received_data(
                    event.flow_controlled_length, event.stream_id
                )
        self.seen += events
        await self.flush()
        return True

    def of(self, kind, stream_id=None):
        return [
            event
            for event in self.seen
            if isinstance(event, kind) and (stream_id is None or event.stream_id == stream_id)
        ]

    async def wait_for(self, kind, stream_id=None):
        while not self.of(kind, stream_id):
            assert await self.read(), self.seen
        return self.of(kind, stream_id)[0]

    async def answer(self, stream_id):
        await self.wait_for(h2.events.StreamEnded, stream_id)
        headers = dict(self.of(h2.events.ResponseReceived, stream_id)[0].headers)
        body = b"".join(each.data for each in self.of(h2.events.DataReceived, stream_id))
        return int(headers[":status"]), headers, body


async def connected(node):
    return await Http2Client(await anyio.connect_tcp("127.0.0.1", node.port)).start()


async def test_http2_is_negotiated_over_tls(serving, certificate):
    async with serving(**certificate) as node:
        async with node.client(http2=True) as client:
            answer = await client.put("/v1/kv/a", content=b"x" * 500_000)
            assert (answer.status_code, answer.http_version) == (201, "HTTP/2")
            assert (await client.get("/v1/kv/a")).content == b"x" * 500_000
        async with node.client() as client:
            answer = await client.get("/get?k=b")
            assert (answer.status_code, answer.http_version) == (404, "HTTP/1.1")


async def test_http2_is_spoken_by_prior_knowledge(serving):
    async with serving() as node, node.client(http1=False, http2=True) as client:
        answer = await client.put("/v1/kv/a?ttl=100", content=b"1")
        assert (answer.status_code, answer.http_version) == (201, "HTTP/2")
        answer = await client.get("/v1/kv/a")
        assert (answer.content, answer.headers["content-length"]) == (b"1", "1")
        assert (await client.delete("/v1/kv/a")).status_code == 204
        assert (await client.head("/healthcheck")).status_code == 200


async def test_http2_is_upgraded_to(serving):
    async with serving() as node:
        peer = await node.connect()
        async with peer.stream:
            client = Http2Client(peer.stream)
            settings = client.connection.initiate_upgrade_connection()
            await peer.send(
                b"GET /healthcheck HTTP/1.1\r\nHost: localhost\r\n"
                b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
                b"HTTP2-Settings: " + settings + b"\r\n\r\n"
            )
            head = await peer.until(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 101 ")
            await client.flush()
            client.seen += client.connection.receive_data(peer.seen)
            await client.flush()
            status, _, body = await client.answer(1)
            assert (status, body) == (200, b'{"status":"ok"}')
            again = await client.request("/healthcheck")
            assert (await client.answer(again))[0] == 200


async def test_requests_stand_beside_each_other(serving):
    release = anyio.Event()

    async def slow(_request):
        await release.wait()
        return "slow"

    async with serving() as node:
        node.load(lambda handlers: handlers.add("/slow", slow))
        client = await connected(node)
        async with client.stream:
            first = await client.request("/slow")
            second = await client.request("/healthcheck")
            assert (await client.answer(second))[0] == 200
            release.set()
            assert (await client.answer(first))[2] == b'"slow"'


async def test_a_body_refused_does_not_harm_the_other_requests(serving):
    async with serving() as node:
        client = await connected(node)
        async with client.stream:
            refused = client.connection.get_next_available_stream_id()
            head = {
                ":method": "PUT",
                ":path": "/v1/kv/a",
                ":scheme": "http",
                ":authority": "localhost",
                "content-length": "3000000",
            }
            client.connection.send_headers(refused, list(head.items()))
            client.connection.send_data(refused, b"x" * 16384)
            await client.flush()
            await client.wait_for(h2.events.ResponseReceived, refused)
            reset = await client.wait_for(h2.events.StreamReset, refused)
            assert reset.error_code == ErrorCodes.NO_ERROR
            (response,) = client.of(h2.events.ResponseReceived, refused)
            assert dict(response.headers)[":status"] == "413"
            for _ in range(3):
                other = await client.request("/healthcheck")
                assert (await client.answer(other))[0] == 200


async def test_what_still_comes_for_an_answered_request_harms_nobody(serving):
    """Bytes that were on their way when the answer went out."""
    async with serving() as node:
        client = await connected(node)
        async with client.stream:
            refused = client.connection.get_next_available_stream_id()
            head = [(":method", "POST"), (":path", "/v1/batch"), (":scheme", "http")]
            client.connection.send_headers(refused, [*head, (":authority", "evil.example")])
            await client.flush()
            for _ in range(3):
                client.connection.send_data(refused, b"x" * 10_000)
            other = await client.request("/healthcheck")
            assert (await client.answer(other))[0] == 200


async def test_a_wrong_authority_is_refused(serving):
    async with serving() as node:
        client = await connected(node)
        async with client.stream:
            wrong = await client.request("/v1/status", authority="evil.example")
            assert (await client.answer(wrong))[0] == 421
            right = await client.request("/v1/status", authority=node.host)
            assert (await client.answer(right))[0] == 200


async def test_a_path_that_is_not_ascii_resets_its_stream_alone(serving):
    async with serving() as node:
        client = await connected(node)
        async with client.stream:
            odd = await client.request("/caf\xe9")
            reset = await client.wait_for(h2.events.StreamReset, odd)
            assert reset.error_code == ErrorCodes.PROTOCOL_ERROR
            assert (await client.answer(await client.request("/healthcheck")))[0] == 200


@pytest.mark.parametrize(
    "frame",
    [
        b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00",  # a window grown by nothing
        b"\x00\x00\x00\x00\x00\x00\x00\x00\x01",  # data of a request that there is not
        b"\xff\xff\xff\xff\x00\x00\x00\x00\x00" + bytes(100_000),  # a frame of 16 MiB
    ],
)
async def test_nonsense_after_the_preface_ends_the_connection(serving, frame):
    async with serving() as node:
        settings = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
        await node.raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + frame)


async def test_a_stream_says_goodbye_and_the_connection_goes_away(serving):
    async def ticks():
        yield b"one"
        await anyio.sleep_forever()

    async with serving() as node:
        handler = lambda _: Stream(ticks(), goodbye=lambda: b"goodbye")  # noqa: E731
        node.load(lambda handlers: handlers.add("/ticks", handler))
        client = await connected(node)
        async with client.stream, anyio.create_task_group() as tasks:
            ticking = await client.request("/ticks")
            await client.wait_for(h2.events.DataReceived, ticking)
            tasks.start_soon(node.stop)
            status, _, body = await client.answer(ticking)
            assert (status, body) == (200, b"onegoodbye")
            terminated = await client.wait_for(h2.events.ConnectionTerminated)
            assert (terminated.error_code, terminated.last_stream_id) == (0, ticking)


async def test_new_requests_are_sent_elsewhere_while_old_ones_finish(serving):
    release = anyio.Event()

    async def slow(_request):
        await release.wait()
        return "slow"

    async with serving() as node:
        node.load(lambda handlers: handlers.add("/slow", slow))
        client = await connected(node)
        async with client.stream, anyio.create_task_group() as tasks:
            first = await client.request("/slow")
            tasks.start_soon(node.stop)
            while True:
                other = await client.request("/healthcheck")
                while not (client.of(h2.events.StreamReset, other) or ended(client, other)):
                    assert await client.read()
                if refused := client.of(h2.events.StreamReset, other):
                    assert refused[0].error_code == ErrorCodes.REFUSED_STREAM
                    break
            release.set()
            assert (await client.answer(first))[2] == b'"slow"'


def ended(client, stream_id):
    return client.of(h2.events.StreamEnded, stream_id)


async def test_a_client_that_resets_a_stream_closes_its_iterator(serving):
    closed = anyio.Event()

    async def ticks():
        try:
            yield b"one"
            await anyio.sleep_forever()
        finally:
            closed.set()

    async with serving() as node:
        node.load(lambda handlers: handlers.add("/ticks", lambda _: Stream(ticks())))
        client = await connected(node)
        async with client.stream:
            ticking = await client.request("/ticks")
            await client.wait_for(h2.events.DataReceived, ticking)
            client.connection.reset_stream(ticking)
            await client.flush()
            await closed.wait()
            assert (await client.answer(await client.request("/healthcheck")))[0] == 200


async def test_an_iterator_that_fails_resets_its_stream_alone(serving, caplog):

    async def failing():
        yield b"one"
        raise ZeroDivisionError

    async with serving() as node:
        node.load(lambda handlers: handlers.add("/ticks", lambda _: Stream(failing())))
        client = await connected(node)
        async with client.stream:
            with caplog.at_level(logging.CRITICAL, "nkv_core"):
                ticking = await client.request("/ticks")
                reset = await client.wait_for(h2.events.StreamReset, ticking)
            assert reset.error_code == ErrorCodes.INTERNAL_ERROR
            assert (await client.answer(await client.request("/healthcheck")))[0] == 200


async def test_a_client_that_goes_in_the_middle_of_a_large_answer_is_let_go(serving):
    """One who waits for a window that never opens is not waited for."""
    from nkv_core.events import RequestEnd

    ended = anyio.Event()
    async with serving(deadline=math.inf) as node:
        await node.keyspace.put("a", b"x" * 1_000_000)
        node.dispatcher.on(RequestEnd, lambda _: ended.set())
        client = await connected(node)
        async with client.stream:
            await client.request("/v1/kv/a")
            await client.stream.receive()
        await ended.wait()
        await node.stop()


async def test_header_lists_too_long_are_refused(serving):
    async with serving(max_header_bytes=1000) as node:
        client = await connected(node)
        async with client.stream:
            await client.request("/healthcheck", headers=[("x-a", "x" * 3000)])
            while await client.read():
                pass


async def test_a_websocket_runs_over_http2(serving):
    from wsproto.connection import Connection, ConnectionType
    from wsproto.events import TextMessage

    async def echo(_request, websocket):
        await websocket.send(await websocket.receive())

    async with serving() as node:
        node.load(lambda handlers: handlers.websocket("/ws", echo))
        client = await connected(node)
        async with client.stream:
            stream_id = client.connection.get_next_available_stream_id()
            head = [
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                (":path", "/ws"),
                (":scheme", "http"),
                (":authority", "localhost"),
                ("sec-websocket-version", "13"),
            ]
            client.connection.send_headers(stream_id, head)
            await client.flush()
            response = await client.wait_for(h2.events.ResponseReceived, stream_id)
            assert dict(response.headers)[":status"] == "200"
            protocol = Connection(ConnectionType.CLIENT)
            client.connection.send_data(stream_id, protocol.send(TextMessage("hello")))
            await client.flush()
            taken = 0
            while True:
                data = client.of(h2.events.DataReceived, stream_id)
                for event in data[taken:]:
                    protocol.receive_data(event.data)
                taken = len(data)
                texts = [e.data for e in protocol.events() if isinstance(e, TextMessage)]
                if texts:
                    break
                assert await client.read()
            assert texts == ["hello"]
            assert (await client.answer(await client.request("/healthcheck")))[0] == 200


async def test_one_who_resets_requests_and_makes_new_ones_is_cut(serving, caplog):
    """Handlers of abandoned requests run on, so that they have to be bounded by themselves."""
    running = 0

    async def slow(_request):
        nonlocal running
        running += 1
        await anyio.sleep_forever()

    async with serving(max_streams=10, deadline=1) as node:
        node.load(lambda handlers: handlers.add("/slow", slow))
        client = await connected(node)
        async with client.stream:
            with caplog.at_level(logging.CRITICAL, "nkv.plugin"), contextlib.suppress(*GONE):
                for _ in range(100):
                    stream_id = await client.request("/slow")
                    client.connection.reset_stream(stream_id)
                    await client.flush()
                while await client.read():
                    pass
        assert running <= 20
        async with node.client() as other:
            assert (await other.get("/healthcheck")).status_code == 200
