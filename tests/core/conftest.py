"""A server that answers what a test tells it to, and one that answers as a node does."""

import importlib
import socketserver
import threading
import time
from contextlib import suppress
from urllib.parse import parse_qsl, unquote

import anyio
import msgspec
import pytest
from anyio.from_thread import start_blocking_portal

from nkv_core import operations
from nkv_core.announcements import announce
from nkv_core.contracts.settings import KeyspaceSettings
from nkv_core.errors import BodyTooLarge, NkvError
from nkv_core.keys import Pattern
from nkv_core.keyspace import LocalKeyspace, WatchHub
from nkv_core.records import Token
from nkv_core.times import format_time, format_timestamp


class Asked:
    def __init__(self, method, target, headers, body):
        self.method = method
        self.target = target
        self.headers = headers
        self.body = body


class CannedServer:
    """Each connection's requests go to `answer`; what it returns is sent, None closes."""

    def __init__(self):
        self.asked = []
        self.answer = lambda asked: reply(404, b'{"code":"not_found"}')
        self.released = threading.Event()  # what a stalling answer waits for
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                with suppress(ConnectionError):  # whoever asked is gone
                    self.answer_all()

            def answer_all(self):
                while line := self.rfile.readline().decode("latin-1").split():
                    headers = {}
                    while (header := self.rfile.readline().decode("latin-1").strip()) != "":
                        name, _, value = header.partition(":")
                        headers[name.lower()] = value.strip()
                    body = self.rfile.read(int(headers.get("content-length", 0)))
                    asked = Asked(line[0], line[1], headers, body)
                    outer.asked.append(asked)
                    answer = outer.answer(asked)
                    if answer is None:
                        return
                    for piece in [answer] if isinstance(answer, bytes) else answer:
                        try:
                            self.wfile.write(piece)
                        except OSError:
                            return

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 128

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self):
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def reply(status, body=b"", **headers):
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunk(data):
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.fixture
def canned():
    server = CannedServer()
    yield server
    server.close()


@pytest.fixture
def canned_reply():
    return reply


@pytest.fixture
def closed_url():
    """An address where nobody listens."""
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        return f"http://127.0.0.1:{server.server_address[1]}"


MAX_BODY = 2 * 1024 * 1024


class PlainNode:
    """The paths of `/v1` over a keyspace in memory: as much of a node as the clients need."""

    def __init__(self, server, portal, keyspace, hub):
        self.url = server.url
        self.server = server
        self.keyspace = keyspace
        self.hub = hub
        self.portal = portal
        self.streams = []
        server.answer = self.answer

    def run(self, function, *args):
        return self.portal.call(function, *args)

    def answer(self, asked):
        path, _, query = asked.target.partition("?")
        try:
            if len(asked.body) > MAX_BODY:
                raise BodyTooLarge
            if path == "/v1/watch":
                return self._stream(self.portal.call(self._watch, dict(parse_qsl(query))))
            return self.portal.call(self._answer, asked, path, dict(parse_qsl(query)))
        except NkvError as error:
            document = {"code": error.code, "detail": error.detail, "status": error.status}
            return reply(error.status, msgspec.json.encode(document))

    async def _watch(self, query):
        since = query.get("since")
        return self.hub.watch(
            query["pattern"],
            subtree=query.get("subtree") == "1",
            mode=query["mode"],
            since=None if since is None else Token.parse(since),
            snapshot=query.get("snapshot") == "1",
        )

    async def _items(self, watcher):
        with anyio.move_on_after(0.1):
            return await watcher.read()
        return None

    def _stream(self, watcher):
        """Server-Sent Events, in a thread of the server, until either side has enough."""
        yield b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        yield b"Transfer-Encoding: chunked\r\n\r\n"
        self.streams.append(watcher)
        try:
            place = "" if watcher.token is None else f"id: {watcher.token}\n"
            yield chunk(f"retry: 1000\n{place}\n".encode())
            while not watcher.closed:
                items = self.portal.call(self._items, watcher)
                yield chunk(b":\n\n" if not items else b"".join(map(self._event, items)))
            yield chunk(b"")
        finally:
            self.portal.call(watcher.close)
            self.streams.remove(watcher)

    def _event(self, item):
        name, token, data = announce(item, self.hub.token.history)
        place = "" if token is None else f"id: {token}\n"
        return f"{place}event: {name}\ndata: {data.decode()}\n\n".encode()

    def close(self):
        """End all streams, and wait for the threads that send them."""
        self.portal.call(self.hub.close)
        end = time.monotonic() + 10
        while self.streams:
            assert time.monotonic() < end, "a stream does not end"
            time.sleep(0.01)

    async def _answer(self, asked, path, query):
        history = self.keyspace.history
        if path == "/v1/status":
            return reply(200, b'{"name":"plain"}')
        if path == "/v1/batch":
            parsed = operations.parse_batch(asked.body)
            results = await self.keyspace.batch(*parsed)
            return reply(200, msgspec.json.encode(operations.batch_json(results, history)))
        if path == "/v1/kv":
            page = await self.keyspace.scan(
                Pattern(query["pattern"]),
                after=query.get("after"),
                limit=operations.limit_of(query.get("limit")),
            )
            return reply(200, msgspec.json.encode(operations.page_json(page, history)))
        key = unquote(path.removeprefix("/v1/kv/"))
        expect = operations.condition(
            asked.headers.get("if-match"), asked.headers.get("if-none-match")
        )
        if asked.method == "GET":
            record = await operations.get(self.keyspace, key)
            return reply(200, record.value, **self._headers(record))
        if asked.method == "DELETE":
            await operations.delete(self.keyspace, key, expect=expect)
            return reply(204)
        expires = operations.expiry(query.get("ttl"), query.get("expires"))
        written = await self.keyspace.put(key, asked.body, expires=expires, expect=expect)
        status = 201 if written.previous is None else 200
        return reply(status, **self._headers(written.record))

    def _headers(self, record):
        headers = {
            "ETag": f'"{operations.version_of(record, self.keyspace.history)}"',
            "Nkv_Modified": format_timestamp(record.modified),
        }
        if record.expires is not None:
            headers["Nkv_Expires"] = format_time(record.expires)
        return headers


@pytest.fixture
def plain_node(canned):
    plugin = importlib.import_module("nkv_storage_memory")
    with start_blocking_portal() as portal:

        async def opened():
            storage = plugin.nkv_storage("memory", plugin.nkv_settings()())
            keyspace = LocalKeyspace(storage, KeyspaceSettings(), node_id=1)
            await keyspace.open()
            return keyspace, WatchHub(keyspace)

        keyspace, hub = portal.call(opened)
        running = [portal.start_task(part.run)[0] for part in (keyspace, hub)]
        node = PlainNode(canned, portal, keyspace, hub)
        yield node
        canned.answer = lambda asked: None
        node.close()
        for future in running:
            future.cancel()
        portal.call(keyspace.aclose)


@pytest.fixture
def node_url(plain_node):
    """The address of something that reads, writes and tells of changes as a node does."""
    return plain_node.url
