"""What clients are told of changes, over whatever protocol these are made."""

import http.client
import json
import time

import hiredis
import pytest

pytest.importorskip("redis")
DEADLINE = 30  # seconds


@pytest.fixture
def web(served):
    """Asks over HTTP."""
    host, port = served.http.removeprefix("http://").split(":")

    def ask(method, path, body=None):
        connection = http.client.HTTPConnection(host, int(port), timeout=DEADLINE)
        try:
            connection.request(method, path, body)
            return connection.getresponse().status
        finally:
            connection.close()

    ask.place = (host, int(port))
    return ask


@pytest.fixture
def tracking(served):
    """A client of RESP3 that keeps copies."""

    def begin(*options):
        client = served.connect()
        assert client.ask("HELLO", "3")[b"proto"] == 3
        assert client.ask("CLIENT", "TRACKING", "ON", *options) == b"OK"
        return client

    return begin


def told(*keys):
    return hiredis.PushNotification([b"invalidate", list(keys) if keys else None])


def test_a_watcher_over_sse_sees_what_is_set_over_resp(served, web):
    connection = http.client.HTTPConnection(*web.place, timeout=DEADLINE)
    connection.request("GET", "/v1/watch?pattern=*")
    stream = connection.getresponse()
    client = served.connect()
    client.ask("SET", "a", "1")
    client.ask("INCR", "a")
    client.ask("PEXPIRE", "a", "50")
    seen = []
    while len(seen) < 4:
        line = stream.readline().decode()
        if line.startswith("event:"):
            name = line.split()[1]
        if line.startswith("data:"):
            data = json.loads(line.removeprefix("data:"))
            seen.append((name, data.get("cause"), data.get("value")))
    stream.close()
    connection.close()
    assert seen[:3] == [("put", "set", "1"), ("put", "incr", "2"), ("touch", "pexpire", "2")]
    assert seen[3][:2] == ("expire", "expire")


def test_a_client_that_caches_is_told_of_a_put_over_http(served, web, tracking):
    client = tracking()
    served.connect().ask("SET", "a", "1")
    assert client.ask("GET", "a") == b"1"
    assert web("PUT", "/v1/kv/a", b"2") == 200
    assert client.read() == told(b"a")
    assert web("PUT", "/v1/kv/a", b"3") == 200  # told once, until it reads again
    assert client.ask("MGET", "a", "b") == [b"3", None]
    assert web("DELETE", "/v1/kv/a") == 204
    assert client.read() == told(b"a")
    assert web("PUT", "/v1/kv/b", b"1") == 201
    assert client.read() == told(b"b")


def test_notifications_tell_of_other_protocols(served, web):
    client = served.connect()
    client.ask("PSUBSCRIBE", "__keyevent@0__:*")
    web("PUT", "/v1/kv/a?ttl=1000", b"1")
    web("DELETE", "/v1/kv/a")
    events = [client.read()[2:] for _ in range(3)]
    assert events == [
        [b"__keyevent@0__:set", b"a"],
        [b"__keyevent@0__:expire", b"a"],
        [b"__keyevent@0__:del", b"a"],
    ]


def test_broadcast_tells_of_prefixes(served, tracking):
    client, writer = tracking("BCAST", "PREFIX", "a", "PREFIX", "b."), served.connect()
    for key in ("c", "b", "a", "b.x", "abc"):
        writer.ask("SET", key, "1")
    assert [client.read() for _ in range(3)] == [told(b"a"), told(b"b.x"), told(b"abc")]
    everything = tracking("BCAST")
    writer.ask("SET", "c", "2")
    assert everything.read() == told(b"c")


def test_a_clear_invalidates_everything(served, tracking):
    client, broadcast = tracking(), tracking("BCAST", "PREFIX", "zz")
    client.ask("GET", "a")
    served.connect().ask("FLUSHALL")
    assert client.read() == told()
    assert broadcast.read() == told()


def test_the_clear_of_a_prefix_invalidates_what_lies_below(served, tracking):
    client, broadcast = tracking(), tracking("BCAST", "PREFIX", "a.b")
    client.ask("MGET", "a.x", "b.x")
    served.node.call(served.node.keyspace.clear, "a.")
    assert client.read() == told(b"a.x")
    assert broadcast.read() == told()
    served.connect().ask("SET", "b.x", "1")
    assert client.read() == told(b"b.x")


@pytest.mark.parametrize("storage", ["memory", "diskcache"])
def test_no_loop_leaves_out_what_the_client_changed(request, storage):
    served = request.getfixturevalue("_shared" if storage == "memory" else "_disk")
    client, other = served.connect(), served.connect()
    client.ask("HELLO", "3")
    client.ask("CLIENT", "TRACKING", "ON", "NOLOOP")
    client.ask("MGET", "a", "b", "c")
    client.ask("SET", "a", "1")
    client.ask("MULTI")
    client.ask("INCR", "b")
    client.ask("EXEC")
    other.ask("SET", "c", "1")
    assert client.read() == told(b"c")
    served.close_clients()


def test_opting_in_and_out(served, tracking):
    writer = served.connect()
    chosen = tracking("OPTIN")
    chosen.ask("GET", "a")
    assert chosen.ask("CLIENT", "CACHING", "YES") == b"OK"
    chosen.ask("GET", "b")
    chosen.ask("GET", "c")
    left = tracking("OPTOUT")
    assert left.ask("CLIENT", "CACHING", "NO") == b"OK"
    left.ask("GET", "a")
    left.ask("GET", "c")
    writer.ask("MSET", "a", "1", "b", "1", "c", "1")
    assert chosen.read() == told(b"b")
    assert left.read() == told(b"c")
    assert chosen.ask("PING") == b"PONG"  # and of nothing else
    assert left.ask("PING") == b"PONG"


def test_redirection_to_a_client_of_resp2(served):
    listener, client = served.connect(), served.connect()
    number = listener.ask("CLIENT", "ID")
    listener.ask("SUBSCRIBE", "__redis__:invalidate")
    assert client.ask("CLIENT", "TRACKING", "ON", "REDIRECT", number) == b"OK"
    client.ask("GET", "a")
    served.connect().ask("SET", "a", "1")
    assert listener.read() == [b"message", b"__redis__:invalidate", [b"a"]]


def test_too_many_tracked_keys_are_invalidated(start):
    with start(max_tracked_keys=2) as served:
        client = served.connect()
        client.ask("HELLO", "3")
        client.ask("CLIENT", "TRACKING", "ON")
        client.send(b"MGET a b c\r\n")
        assert {str(client.read()) for _ in range(2)} == {str(told(b"a")), str([None] * 3)}


def test_what_is_told_is_told_in_resp3_too(served):
    client = served.connect()
    client.ask("HELLO", "3")
    assert client.ask("SUBSCRIBE", "x") == hiredis.PushNotification([b"subscribe", b"x", 1])
    assert client.ask("GET", "nope") is None  # other commands stay possible
    served.connect().ask("PUBLISH", "x", "y")
    assert client.read() == hiredis.PushNotification([b"message", b"x", b"y"])


def test_nobody_follows_the_changes_for_nobody(served):
    def followers():
        return [one for one in served.node.call(_watchers, served.node) if one.label == "resp"]

    async def _watchers(node):
        return node.node.hub.watchers()

    client = served.connect()
    assert followers() == []
    client.ask("SUBSCRIBE", "x")
    assert followers() == []
    client.ask("SUBSCRIBE", "__keyevent@0__:set")
    assert len(followers()) == 1
    client.close()
    end = time.monotonic() + DEADLINE
    while followers():
        assert time.monotonic() < end
        time.sleep(0.005)
