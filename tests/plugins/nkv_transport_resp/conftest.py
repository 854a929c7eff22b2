"""Real nodes that speak Redis' protocol, Redis' own server beside them, and clients of both."""

import shutil
import socket
import subprocess
import time
from contextlib import contextmanager

import pytest

from nkv_core.config import load_settings
from nkv_core.node import Node

pytest.importorskip("hiredis")
import hiredis

DEADLINE = 30  # seconds: nothing here takes as long unless it hangs


class Raw:
    """One connection, byte by byte."""

    def __init__(self, connected):
        self.socket = connected
        self.socket.settimeout(DEADLINE)
        self.reader = hiredis.Reader(notEnoughData=Ellipsis)

    def send(self, data):
        self.socket.sendall(data)

    def ask(self, *words):
        """Send a command as an array, and return its reply."""
        self.send(packed(*words))
        return self.read()

    def read(self):
        """The next reply; an error is returned as the exception."""
        while (reply := self.reader.gets()) is Ellipsis:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError
            self.reader.feed(data)
        return reply

    def rest(self):
        """All bytes until the other side closes the connection."""
        seen = b""
        try:
            while data := self.socket.recv(65536):
                seen += data
        except ConnectionResetError:
            pass
        return seen

    def close(self):
        self.socket.close()


def packed(*words):
    """A command as clients send it."""
    encoded = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in encoded)


class Served:
    """A node in a thread."""

    def __init__(self, node):
        self.node = node
        places = [url.rpartition(":") for url in node.addresses]
        self.port = next(int(port) for head, _, port in places if head.startswith("redis"))
        self.http = next((url for url in node.addresses if url.startswith("http")), None)
        self.clients = []

    def connect(self, *, buffer=None):
        connected = socket.socket()
        if buffer is not None:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        client = Raw(connected)
        self.clients.append(client)
        connected.connect(("127.0.0.1", self.port))
        return client

    def clear(self):
        self.node.call(self.node.keyspace.clear)

    def close_clients(self):
        while self.clients:
            self.clients.pop().close()


@contextmanager
def running(folder, storage="memory", flags=None):
    given = {
        "node.data_dir": str(folder),
        "storage.name": storage,
        "plugins.load": ["nkv_transport_resp"],
        "transport.resp.port": 0,
        "transport.http.port": 0,
        **(flags or {}),
    }
    with Node.in_thread(load_settings(flags=given)) as node:
        served = Served(node)
        try:
            yield served
        finally:
            served.close_clients()


@pytest.fixture
def start(tmp_path):
    """Starts a node of its own, with settings of `transport.resp`."""

    @contextmanager
    def start(storage="memory", flags=None, **settings):
        named = {f"transport.resp.{name}": value for name, value in settings.items()}
        with running(tmp_path / "data", storage, {**named, **(flags or {})}) as served:
            yield served

    return start


@pytest.fixture(scope="session")
def _shared(tmp_path_factory):
    with running(tmp_path_factory.mktemp("node") / "data") as served:
        yield served


@pytest.fixture
def served(_shared):
    """An empty node, shared by many tests."""
    _shared.clear()
    yield _shared
    _shared.close_clients()


@pytest.fixture(scope="session")
def _disk(tmp_path_factory):
    pytest.importorskip("diskcache")
    with running(tmp_path_factory.mktemp("disk") / "data", "diskcache") as served:
        yield served


@pytest.fixture(params=["memory", "diskcache"])
def either(request):
    """An empty node, with each storage."""
    served = request.getfixturevalue("_shared" if request.param == "memory" else "_disk")
    served.clear()
    yield served
    served.close_clients()


@pytest.fixture
def client(served):
    return served.connect()


@pytest.fixture(scope="session")
def _redis(tmp_path_factory):
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    folder = tmp_path_factory.mktemp("redis")
    path = folder / "redis.sock"
    command = [
        program,
        "--port",
        "0",
        "--unixsocket",
        str(path),
        "--save",
        "",
        "--dir",
        str(folder),
    ]
    command += ["--notify-keyspace-events", "AKE", "--daemonize", "no"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + DEADLINE
            while not path.exists():
                assert time.monotonic() < end
                assert process.poll() is None
                time.sleep(0.01)
            yield path
        finally:
            process.terminate()


class Peer:
    """Redis itself."""

    def __init__(self, path):
        self.path = path
        self.clients = []

    def connect(self):
        connected = socket.socket(socket.AF_UNIX)
        connected.connect(str(self.path))
        client = Raw(connected)
        self.clients.append(client)
        return client


@pytest.fixture
def peer(_redis):
    """Redis' own server, empty."""
    peer = Peer(_redis)
    assert peer.connect().ask("FLUSHALL") == b"OK"
    yield peer
    for client in peer.clients:
        client.close()


@pytest.fixture(scope="session")
def served_for_hypothesis(_shared, _redis):
    """One client of each server; what it gives first makes both as new, for each example."""
    peer = Peer(_redis)
    ours, theirs = _shared.connect(), peer.connect()

    def begin():
        for client in (ours, theirs):
            assert client.ask("RESET") == b"RESET"
            assert client.ask("FLUSHALL") == b"OK"

    yield begin, ours, theirs
    ours.close()
    theirs.close()


@pytest.fixture(scope="session")
def two_for_hypothesis(_shared, _redis):
    """Two clients of each server."""
    peer = Peer(_redis)
    ours = [_shared.connect(), _shared.connect()]
    theirs = [peer.connect(), peer.connect()]

    def begin():
        for client in (*ours, *theirs):
            assert client.ask("RESET") == b"RESET"
            assert client.ask("FLUSHALL") == b"OK"

    yield begin, ours, theirs
    for client in (*ours, *theirs):
        client.close()
