"""Connections: their limits and deadlines, what comes malformed, and how all of it ends."""

import logging
import math
import socket
import ssl

import anyio
import pytest
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSStream

from nkv_core.contracts.handlers import Stream
from nkv_core.errors import SettingsError
from nkv_core.events import RequestEnd

pytestmark = pytest.mark.anyio

GET = b"GET /healthcheck HTTP/1.1\r\nHost: localhost\r\n\r\n"
HALF_BODY = b"PUT /v1/kv/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


# --- deadlines ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", GET, b"\r\n"])
async def test_an_idle_connection_ends_at_its_deadline(serving, sent):
    async with serving(keep_alive_timeout=0.2, header_timeout=0.2) as node:
        peer = await node.connect()
        async with peer.stream:
            await peer.send(sent)
            assert (await peer.rest()).count(b"HTTP/1.1 200") == (sent == GET)


@pytest.mark.parametrize("first", [b"", GET])
async def test_half_a_header_ends_at_its_deadline_however_it_drips(serving, first):
    async with serving(header_timeout=0.3) as node:
        peer = await node.connect()
        async with peer.stream, anyio.create_task_group() as tasks:

            async def drip():
                await peer.send(first + b"GET / HTTP/1.1\r\nX-A: ")
                try:
                    while True:
                        await peer.send(b"x")
                        await anyio.sleep(0.02)
                except anyio.BrokenResourceError:
                    pass

            tasks.start_soon(drip)
            await peer.rest()
            tasks.cancel_scope.cancel()


LOG = logging.getLogger(__name__)


async def test_a_bare_http2_preface_ends_at_its_deadline(serving):
    async with serving(keep_alive_timeout=0.2) as node:
        await node.raw(PREFACE)


async def test_a_handshake_that_never_ends_is_ended(serving, certificate):
    async with serving(handshake_timeout=0.2, **certificate) as node:
        assert await node.raw(b"") == b""
        assert await node.raw(b"\x16\x03\x01") == b""


async def test_what_is_no_handshake_is_closed(serving, certificate):
    async with serving(**certificate) as node:
        assert b"HTTP" not in await node.raw(GET)
        async with node.client() as client:
            assert (await client.get("/healthcheck")).status_code == 200


@pytest.mark.parametrize("http2", [False, True])
async def test_one_who_reads_nothing_is_cut_at_its_deadline(serving, http2):
    async def flood():
        while True:
            yield b"x" * 65536

    async with serving(send_timeout=0.3) as node:
        ended = anyio.Event()
        node.load(lambda handlers: handlers.add("/flood", lambda _: Stream(flood())))
        node.dispatcher.on(RequestEnd, lambda _: ended.set())
        peer = await node.connect()
        async with peer.stream:
            if http2:
                import h2.connection

                client = h2.connection.H2Connection()
                client.initiate_connection()
                head = {":method": "GET", ":path": "/flood", ":scheme": "http"}
                client.send_headers(
                    1, [*head.items(), (":authority", "localhost")], end_stream=True
                )
                await peer.send(client.data_to_send())
            else:
                await peer.send(GET.replace(b"/healthcheck", b"/flood"))
            await ended.wait()


async def test_a_slow_reader_that_reads_is_not_cut(serving):
    async def pieces():
        for _ in range(20):
            yield b"x" * 300_000

    async with serving(send_timeout=0.5) as node:
        node.load(lambda handlers: handlers.add("/much", lambda _: Stream(pieces())))
        peer = await node.connect()
        raw = peer.stream.extra(SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        async with peer.stream:
            await peer.send(GET.replace(b"/healthcheck", b"/much"))
            total = 0
            while total < 20 * 300_000:
                total += len(await peer.stream.receive(300_000))
                await anyio.sleep(0.02)


# --- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2000, 100_000])
async def test_a_header_too_long_is_refused(serving, size):
    async with serving(max_header_bytes=1000) as node:
        head = b"GET /healthcheck HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"x" * size + b"\r\n\r\n"
        assert (await node.raw(head)).startswith(b"HTTP/1.1 431 ")
        assert (await node.raw(GET[:-2] + b"Connection: close\r\n\r\n")).startswith(
            b"HTTP/1.1 200 "
        )


async def test_a_header_that_fits_is_taken(serving):
    async with serving(max_header_bytes=1000) as node:
        fill = (
            b"X-A: " + b"x" * (1000 - len(GET) - len(b"Connection: close\r\nX-A: \r\n")) + b"\r\n"
        )
        head = GET[:-2] + b"Connection: close\r\n" + fill + b"\r\n"
        assert len(head) == 1000
        assert (await node.raw(head)).startswith(b"HTTP/1.1 200 ")


async def test_one_connection_too_many_is_told_to_try_again(serving, caplog):
    async with serving(max_connections=2) as node:
        peers = [await node.connect() for _ in range(2)]
        for peer in peers:
            await peer.send(GET)
            assert (await peer.reply())[0] == 200
        with caplog.at_level(logging.CRITICAL, "nkv.plugin"):
            assert (await node.raw(b"")).startswith(b"HTTP/1.1 503 ")
        await peers[0].stream.aclose()
        while True:
            peer = await node.connect()
            async with peer.stream:
                await peer.send(GET)
                try:
                    status, _, _ = await peer.reply()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    continue
                if status == 200:
                    break
        await peers[1].stream.aclose()


async def test_a_connection_is_kept_for_more_than_a_thousand_requests(serving):
    async with serving() as node:
        peer = await node.connect()
        async with peer.stream:
            for _ in range(1100):
                await peer.send(GET)
                status, headers, _ = await peer.reply()
                assert status == 200
                assert "connection" not in headers


# --- what comes malformed -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"NONSENSE\r\n\r\n",
        b"GET /\r\n\r\n",
        b"\x00\x01\x02\x03\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nNo colon\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_refused(serving, request_bytes):
    async with serving() as node:
        answer = await node.raw(request_bytes)
        assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 "))


async def test_a_malformed_chunk_changes_nothing(serving):
    async with serving() as node:
        head = b"PUT /v1/kv/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        answer = await node.raw(head + b"zz\r\nhello\r\n0\r\n\r\n")
        assert b"HTTP/1.1 201" not in answer
        assert await node.keyspace.count() == 0


async def test_requests_sent_at_once_are_answered_in_order(serving):
    async with serving() as node:
        peer = await node.connect()
        async with peer.stream:
            requests = [
                f"PUT /v1/kv/k{n} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n{n % 10}"
                f"GET /v1/kv/k{n} HTTP/1.1\r\nHost: localhost\r\n\r\n"
                for n in range(20)
            ]
            await peer.send("".join(requests).encode())
            for n in range(20):
                assert (await peer.reply())[0] == 201
                assert (await peer.reply())[2] == str(n % 10).encode()


async def test_one_who_closes_his_side_still_gets_the_answer(serving):
    async with serving() as node:
        peer = await node.connect()
        async with peer.stream:
            await peer.send(GET)
            await peer.stream.send_eof()
            assert (await peer.rest()).startswith(b"HTTP/1.1 200 ")


async def test_old_http_is_answered_and_closed(serving):
    async with serving() as node:
        answer = await node.raw(b"GET /healthcheck HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b'{"status":"ok"}')


# --- TLS ------------------------------------------------------------------------------------------


async def test_tls_says_when_it_ends(serving, certificate):
    async with serving(**certificate) as node:
        context = ssl.create_default_context(cafile=certificate["tls_certificate"])
        stream = await anyio.connect_tcp("127.0.0.1", node.port)
        tls = await TLSStream.wrap(stream, hostname="localhost", ssl_context=context)
        async with stream:
            await tls.send(GET[:-2] + b"Connection: close\r\n\r\n")
            # The end is said, and not that the connection broke.
            received = b"".join([piece async for piece in tls])
            assert received.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_tls_carries_large_values(serving, certificate, version):
    async with serving(**certificate) as node:
        context = ssl.create_default_context(cafile=certificate["tls_certificate"])
        context.minimum_version = context.maximum_version = version
        stream = await anyio.connect_tcp("127.0.0.1", node.port)
        tls = await TLSStream.wrap(stream, hostname="localhost", ssl_context=context)
        value = bytes(1_000_000)
        async with stream:
            head = (
                f"PUT /v1/kv/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(value)}\r\n\r\n"
            )
            await tls.send(head.encode() + value)
            await tls.receive()
            await tls.send(b"GET /v1/kv/a HTTP/1.1\r\nHost: localhost\r\n\r\n")
            received = b""
            while len(received) < len(value):
                received += await tls.receive()
            assert received.endswith(value[:1000])


@pytest.mark.parametrize("missing", ["tls_certificate", "tls_key"])
async def test_the_tls_files_belong_together(serving, certificate, missing):
    with pytest.raises(SettingsError, match="belong together"):
        async with serving(**{**certificate, missing: None}):
            pass


async def test_tls_files_that_are_no_use_are_named(serving, certificate, tmp_path):
    from nkv_transport_http.server import Server
    from nkv_transport_http.settings import HttpSettings

    other = tmp_path / "other.pem"
    other.write_text("nothing")
    for path in (other, tmp_path / "absent.pem"):
        with pytest.raises(SettingsError, match=path.name):
            Server(None, HttpSettings(**{**certificate, "tls_key": str(path)}), LOG, None)


# --- stopping -------------------------------------------------------------------------------------


async def test_with_nobody_there_it_waits_for_nothing(serving, monkeypatch):
    monkeypatch.setattr("nkv_transport_http.server._CROSSING", math.inf)
    async with serving(deadline=math.inf) as node:
        await node.stop()


async def test_a_request_under_way_finishes(serving):
    running, go = anyio.Event(), anyio.Event()

    async def slow(_request):
        running.set()
        await go.wait()
        return "done"

    async with serving() as node:
        node.load(lambda handlers: handlers.add("/slow", slow))
        peer = await node.connect()
        async with peer.stream, anyio.create_task_group() as tasks:
            await peer.send(GET.replace(b"/healthcheck", b"/slow"))
            await running.wait()
            tasks.start_soon(node.stop)
            await anyio.sleep(0.4)  # long enough for idle connections to be closed
            go.set()
            status, headers, body = await peer.reply()
            assert (status, body) == (200, b'"done"')
            assert headers["connection"] == "close"
            assert await peer.rest() == b""


async def test_a_request_that_crosses_the_stop_is_answered(serving, monkeypatch):
    # Much longer than any pause of this process: what is shown is that it waits for such requests.
    monkeypatch.setattr("nkv_transport_http.server._CROSSING", 20.0)
    async with serving(deadline=40) as node:
        peer = await node.connect()
        async with peer.stream, anyio.create_task_group() as tasks:
            await peer.send(GET)
            assert (await peer.reply())[0] == 200
            tasks.start_soon(node.stop)
            await anyio.wait_all_tasks_blocked()
            await peer.send(GET)
            status, headers, _ = await peer.reply()
            assert status == 200
            assert headers["connection"] == "close"
            assert await peer.rest() == b""


async def test_idle_connections_are_closed_before_the_deadline(serving, certificate):
    async with serving(deadline=math.inf, **certificate) as node:
        context = ssl.create_default_context(cafile=certificate["tls_certificate"])
        stream = await anyio.connect_tcp("127.0.0.1", node.port)
        tls = await TLSStream.wrap(stream, hostname="localhost", ssl_context=context)
        async with stream:
            await tls.send(GET)
            await tls.receive()
            await node.stop()  # he neither reads nor closes


@pytest.mark.parametrize(
    "leftover",
    [
        HALF_BODY,
        PREFACE,
        b"GET / HT",
        GET.replace(b"/healthcheck", b"/deaf"),
        GET.replace(b"/healthcheck", b"/flood"),
        GET.replace(b"/healthcheck", b"/hangs"),
    ],
)
async def test_what_is_left_at_the_deadline_is_cut(serving, leftover, caplog):
    async def deaf():
        yield b"one"
        await anyio.sleep_forever()

    async def flood():
        while True:
            yield b"x" * 65536

    async def hangs(_request):
        await anyio.sleep_forever()

    def register(handlers):
        handlers.add("/deaf", lambda _: Stream(deaf()))
        handlers.add("/flood", lambda _: Stream(flood()))
        handlers.add("/hangs", hangs)

    async with serving(deadline=1.0) as node:
        node.load(register)
        peer = await node.connect()
        async with peer.stream:
            await peer.send(leftover)
            await anyio.wait_all_tasks_blocked()
            with caplog.at_level(logging.CRITICAL, "nkv.plugin"):
                await node.stop()


async def test_an_unfinished_handshake_is_not_waited_for(serving, certificate):
    async with serving(deadline=math.inf, **certificate) as node:
        peer = await node.connect()
        async with peer.stream:
            await peer.send(b"\x16\x03\x01")
            await anyio.wait_all_tasks_blocked()
            await node.stop()


async def test_nothing_is_accepted_after_the_stop_but_waits_for_who_follows(serving):
    """The broker keeps the socket: a connection that comes too late is the next generation's."""
    async with serving() as node:
        await node.stop()
        peer = await node.connect()
        async with peer.stream:
            await peer.send(GET)
            with anyio.move_on_after(0.1) as waiting:
                await peer.reply()
            assert waiting.cancelled_caught


async def test_a_server_that_is_cancelled_leaves_nothing_open(serving):
    """Whoever is blocked in a write to one who does not read is not waited for."""

    async def flood():
        while True:
            yield b"x" * 65536

    async with serving() as node:
        node.load(lambda handlers: handlers.add("/flood", lambda _: Stream(flood())))
        peer = await node.connect()
        await peer.send(GET.replace(b"/healthcheck", b"/flood"))
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(60):
            await node.life.cancel()
        await peer.rest()
        await peer.stream.aclose()
