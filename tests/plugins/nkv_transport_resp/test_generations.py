"""The transport is loaded, replaced and unloaded while clients work; and events of requests."""

import threading
import time

import hiredis
import pytest

from nkv_core.errors import Rejected
from nkv_core.events import RequestComplete, RequestEnd, RequestStart

redis = pytest.importorskip("redis")
from redis.backoff import ConstantBackoff  # noqa: E402
from redis.retry import Retry  # noqa: E402

DEADLINE = 30  # seconds
NAME = "nkv_transport_resp"


class Counting(threading.Thread):
    """A client that counts in a key of its own, and notes what was acknowledged."""

    def __init__(self, port, number):
        super().__init__(daemon=True)
        self.key, self.port = f"n{number}", port
        self.acknowledged, self.lost, self.failure = 0, 0, None
        self.over = threading.Event()

    def run(self):
        try:
            while not self.over.is_set():
                self.serve_once()
        except Exception as error:  # noqa: BLE001  # the test looks at it
            self.failure = error

    def serve_once(self):
        retry = Retry(ConstantBackoff(0.01), 500)
        with redis.Redis(port=self.port, socket_timeout=DEADLINE, retry=retry) as db:
            while not self.over.is_set():
                # One that is sent again may have been carried out twice, never less than once.
                number = db.incr(self.key)
                assert number > self.acknowledged
                self.acknowledged = number


@pytest.mark.parametrize("storage", ["memory", "diskcache"])
def test_no_acknowledged_write_is_lost_while_it_is_replaced(start, storage):
    with start(storage) as served:
        clients = [Counting(served.port, number) for number in range(4)]
        for client in clients:
            client.start()
        for _ in range(5):
            before = [client.acknowledged for client in clients]
            served.node.call(served.node.plugins.replace, NAME, NAME)
            end = time.monotonic() + DEADLINE
            while any(c.acknowledged < b + 5 for c, b in zip(clients, before, strict=True)):
                assert time.monotonic() < end
                assert not any(client.failure for client in clients), clients
                time.sleep(0.005)
        for client in clients:
            client.over.set()
            client.join(DEADLINE)
            assert client.failure is None
        with redis.Redis(port=served.port) as db:
            for client in clients:
                assert int(db.get(client.key)) >= client.acknowledged


def test_unloading_ends_connections_and_keeps_the_data(start):
    with start() as served:
        client = served.connect()
        client.ask("SET", "a", "1")
        client.ask("SUBSCRIBE", "__keyevent@0__:set")
        began = time.monotonic()
        served.node.call(served.node.plugins.unload, NAME)
        assert time.monotonic() - began < DEADLINE
        assert client.rest() == b""
        with pytest.raises(ConnectionRefusedError):
            served.connect()
        assert served.node.call(served.node.keyspace.get, "a").value == b"1"
        assert [one for one in served.node.node.hub.watchers() if one.label == "resp"] == []
        served.node.call(served.node.plugins.load, NAME)
        places = [url for url in served.node.addresses if url.startswith("redis")]
        served.port = int(places[0].rpartition(":")[2])
        assert served.connect().ask("GET", "a") == b"1"


def test_what_was_sent_before_is_answered_before_the_end(start):
    with start("diskcache") as served:
        client = served.connect()
        client.ask("PING")
        client.send(b"".join(b"SET k%d v\r\n" % n for n in range(500)))
        served.node.call(served.node.plugins.unload, NAME)
        replies = client.rest()
        assert replies == b"+OK\r\n" * (len(replies) // 5)
        kept = served.node.call(served.node.keyspace.count)
        assert kept >= len(replies) // 5


def test_a_client_that_reads_nothing_does_not_hold_up_the_end(start):
    with start(flags={"plugins.transport_drain_deadline": 1.0}) as served:
        client = served.connect(buffer=4096)
        client.ask("SET", "a", bytes(1_000_000))
        client.send(b"GET a\r\n" * 10)
        began = time.monotonic()
        served.node.call(served.node.plugins.unload, NAME)
        assert time.monotonic() - began < DEADLINE


def test_trio_is_refused_by_name(tmp_path):
    from nkv_core.config import load_settings
    from nkv_core.errors import NkvError
    from nkv_core.node import Node

    flags = {
        "node.backend": "trio",
        "node.data_dir": str(tmp_path / "data"),
        "plugins.load": [NAME],
    }
    flags |= {"storage.name": "memory", "transport.http.port": 0, "transport.resp.port": 0}
    with pytest.raises(NkvError, match="asyncio"), Node.in_thread(load_settings(flags=flags)):
        pass


# --- events ---------------------------------------------------------------------------------------


@pytest.fixture
def heard(served):
    """The events of requests, as a listener has them."""
    seen = []
    offs = [served.node.on(e, seen.append) for e in (RequestStart, RequestComplete, RequestEnd)]
    yield seen
    for off in offs:
        off()


def test_each_command_is_a_request(served, heard):
    client = served.connect()
    client.ask("SET", "a", "1")
    client.ask("GET", "a")
    client.ask("INCR", "nope", "x")
    client.ask("DEL", "a")
    client.ask("NOPE")
    ends = [event for event in heard if isinstance(event, RequestEnd)]
    assert [(e.command, dict(e.params)) for e in ends] == [
        ("put", {"key": "a"}),
        ("get", {"key": "a"}),
        ("incr", {"key": "nope"}),
        ("delete", {"key": "a"}),
        ("", {}),
    ]
    assert [e.outcome for e in ends] == ["OK", b"1", None, 1, None]
    assert [e.error is None for e in ends] == [True, True, False, True, False]
    assert {e.request.transport for e in ends} == {"resp"}
    assert len(heard) == 15


def test_a_listener_may_refuse_also_in_a_transaction(served):
    def refuse(event):
        if event.params.get("key") == "secret":
            raise Rejected(403, "no", "Not this one.")

    off = served.node.on(RequestStart, refuse)
    try:
        client = served.connect()
        assert str(client.ask("GET", "secret")) == "ERR Not this one. (no)"
        assert client.ask("MULTI") == b"OK"
        assert isinstance(client.ask("SET", "secret", "1"), hiredis.ReplyError)
        assert client.ask("SET", "open", "1") == b"QUEUED"
        assert str(client.ask("EXEC")).startswith("EXECABORT")
        assert client.ask("DBSIZE") == 0
    finally:
        off()


def test_an_async_listener_keeps_replies_in_order(served):
    import anyio

    async def slow(event):
        if event.path == "GET":
            await anyio.sleep(0.01)

    off = served.node.on(RequestStart, slow)
    try:
        client = served.connect()
        client.send(b"SET a 1\r\nGET a\r\nSET a 2\r\nGET a\r\nPING\r\n")
        assert [client.read() for _ in range(5)] == [b"OK", b"1", b"OK", b"2", b"PONG"]
    finally:
        off()


def test_a_strangers_command(served, tmp_path):
    path = tmp_path / "nkv_shout.py"
    path.write_text(
        "from nkv_core import hookimpl\n\n"
        "@hookimpl\n"
        "def nkv_handlers(handlers):\n"
        "    handlers.add('SHOUT', lambda r: [w.upper() for w in r.words[1:]], ('CALL',), 'resp')\n"
    )
    path.chmod(0o600)
    client = served.connect()
    served.node.call(served.node.plugins.load, str(path))
    try:
        assert client.ask("shout", "a", "b") == [b"A", b"B"]
    finally:
        served.node.call(served.node.plugins.unload, "nkv_shout")
    assert str(client.ask("SHOUT")).startswith("ERR unknown command")
