"""A real node that serves the socket dialects, and clients that speak them byte by byte."""

import base64
import json
import socket
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from nkv_core.config import load_settings
from nkv_core.node import Node

ROOT = Path(__file__).parents[3]
DEADLINE = 20  # seconds: nothing here takes as long unless it hangs


def b64(value):
    return base64.b64encode(value).decode()


JSON_VERBS = {
    "PUT": "Put",
    "GET": "Get",
    "DEL": "Delete",
    "SUB": "Subscribe",
    "UNSUB": "Unsubscribe",
}


class Client:
    """One connection, on a plain socket."""

    def __init__(self, connected):
        self.socket = connected
        self.seen = b""

    async def send(self, data):
        left = memoryview(data)
        while left:
            try:
                left = left[self.socket.send(left) :]
            except BlockingIOError:
                await anyio.wait_writable(self.socket)

    async def _more(self):
        while True:
            await anyio.wait_readable(self.socket)
            try:
                data = self.socket.recv(65536)
            except BlockingIOError:
                continue
            if not data:
                raise EOFError(self.seen)
            self.seen += data
            return

    async def line(self):
        """The next line, without its newline."""
        while b"\n" not in self.seen:
            await self._more()
        line, _, self.seen = self.seen.partition(b"\n")
        return line.decode()

    async def lines(self, count):
        return [await self.line() for _ in range(count)]

    async def frame(self):
        """What the next frame holds, without its newline."""
        while len(self.seen) < 4:
            await self._more()
        end = 4 + int.from_bytes(self.seen[:4], "little")
        while len(self.seen) < end:
            await self._more()
        message, self.seen = self.seen[4:end], self.seen[end:]
        assert message.endswith(b"\n")
        return message[:-1].decode()

    async def rest(self):
        """All that comes until the node closes the connection."""
        try:
            while True:
                await self._more()
        except (EOFError, ConnectionResetError):
            return self.seen

    def close(self):
        anyio.notify_closing(self.socket)
        self.socket.close()


class Line:
    """The line dialect, as clients speak it."""

    name = "line"

    def request(self, *fields):
        return (" ".join(fields) + "\n").encode()

    async def read(self, client):
        return await client.line()

    def ok(self, name):
        return f"{name} OK"

    def failed(self, name, kind="base"):
        return f"{name} FAILED"

    def update(self, key, value):
        return f"UPDATE {key} {b64(value)}"

    def close(self, key):
        return f"CLOSE {key}"

    hello = "HELLO"


class Framed(Line):
    """The framed dialect."""

    name = "framed"

    def request(self, *fields):
        message = super().request(*fields)
        return len(message).to_bytes(4, "little") + message

    async def read(self, client):
        return await client.frame()

    def ok(self, name):
        return f"base {name} OK"

    def failed(self, name, kind="base"):
        return f"{kind} {name} FAILED"


class Json:
    """The JSON dialect."""

    name = "json"

    def request(self, verb, name, *fields):
        if verb == "AUTH":
            return (json.dumps({"type": "Auth", "token": name}) + "\n").encode()
        message = {"type": JSON_VERBS[verb], "id": name, "client_uuid": fields[0], "key": fields[1]}
        if verb == "PUT":
            message["value"] = list(base64.b64decode(fields[2]))
        return (json.dumps(message) + "\n").encode()

    async def read(self, client):
        return json.loads(await client.line())

    def ok(self, name):
        return {"Base": {"id": name, "status": 200, "message": "No Error"}}

    def update(self, key, value):
        return {"Update": {"key": key, "value": list(value)}}

    def close(self, key):
        return {"Close": {"key": key}}

    hello = "Hello"


DIALECTS = {each.name: each for each in (Line(), Framed(), Json())}


@pytest.fixture(params=["line", "framed", "json"])
def dialect(request):
    return DIALECTS[request.param]


@pytest.fixture
def dialects():
    return DIALECTS


@pytest.fixture(params=["unix", "tcp"])
def family(request):
    return request.param


class Served:
    """A node, and where its sockets are."""

    def __init__(self, node, path):
        self.node, self.path = node, path
        self.keyspace = node.keyspace
        self.clients = []

    @property
    def port(self):
        (address,) = [each for each in self.node.addresses if each.startswith("nkv://")]
        return int(address.rpartition(":")[2])

    def connect(self, family="unix", buffer=None):
        """A connection: both kinds are made at once, as the node's socket listens."""
        if family == "unix":
            connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            address = str(self.path)
        else:
            connected = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            address = ("127.0.0.1", self.port)
        if buffer is not None:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        try:
            connected.connect(address)
        except OSError:
            connected.close()
            raise
        connected.setblocking(False)
        client = Client(connected)
        self.clients.append(client)
        return client

    async def ask(self, dialect, *fields, family="unix"):
        """One request over a connection of its own, as the existing clients do."""
        client = self.connect(family)
        await client.send(dialect.request(*fields))
        answer = await dialect.read(client)
        client.close()
        return answer

    async def subscribe(self, dialect, key, name="watcher", family="unix"):
        client = self.connect(family)
        await client.send(dialect.request("SUB", name, name, key))
        assert await dialect.read(client) == dialect.hello
        return client

    async def put(self, key, value=b"v"):
        await self.keyspace.put(key, value)


@pytest.fixture
def serving(tmp_path):
    """Serves while its block runs; settings are those of `transport.socket`."""

    @asynccontextmanager
    async def serving(tokens=None, drain=10.0, **settings):
        path = tmp_path / "nkv.sock"
        flags = {
            "node.data_dir": str(tmp_path / "data"),
            "storage.name": "memory",
            "plugins.disable": ["nkv_transport_http"],
            "plugins.load": [str(ROOT / "plugins" / "nkv_transport_socket")],
            "transport.socket.path": str(path),
            "transport.socket.port": 0,
            "plugins.transport_drain_deadline": drain,
        }
        flags |= {f"transport.socket.{name}": value for name, value in settings.items()}
        if tokens is not None:
            flags["auth.tokens"] = str(tokens)
        with anyio.fail_after(DEADLINE):
            async with Node(load_settings(flags=flags)) as node:
                served = Served(node, path)
                try:
                    yield served
                finally:
                    for client in served.clients:
                        client.close()

    return serving
