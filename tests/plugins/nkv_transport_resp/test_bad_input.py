"""Bad input and bad luck: the node goes on, and says what is wrong."""

import resource
import threading
import time

import hiredis
import pytest

DEADLINE = 30  # seconds


def packed(*words):
    """A command as clients send it."""
    encoded = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in encoded)


def eventually(true):
    end = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"*1\r\n$-1\r\n", b"-ERR Protocol error: invalid bulk length\r\n"),
        (b"*100000000\r\n", b"-ERR Protocol error: invalid multibulk length\r\n"),
        (b"*1\r\n*1\r\n$4\r\nPING\r\n", b"-ERR Protocol error: expected '$', got '*'\r\n"),
        (b"*1\r\n$536870912\r\n", b"-ERR Protocol error: invalid bulk length\r\n"),
        (b'"PING\r\n', b"-ERR Protocol error: unbalanced quotes in request\r\n"),
    ],
)
def test_what_is_no_command_is_answered_and_ends_the_connection(client, sent, told):
    client.send(packed("PING") + sent)
    assert client.rest() == b"+PONG\r\n" + told


@pytest.mark.parametrize("line", [b"POST / HTTP/1.1\r\n", b"Host: localhost\r\n", b"post /\r\n"])
def test_http_ends_the_connection_without_a_word(client, line):
    client.send(line + packed("SET", "a", "1"))
    assert client.rest() == b""


def test_a_get_of_http_never_comes_to_its_headers(served):
    client = served.connect()
    client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nSET hacked 1\r\n")
    assert client.rest() in (b"", b"-ERR wrong number of arguments for 'get' command\r\n")
    assert served.connect().ask("EXISTS", "hacked") == 0


def test_what_is_announced_and_never_sent_takes_no_memory(start):
    with start(max_bulk_bytes=2**30, max_query_bytes=2**30) as served:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        clients = [served.connect() for _ in range(20)]
        for client in clients:
            client.send(b"*100000\r\n$536870912\r\nabc")
        assert served.connect().ask("PING") == b"PONG"
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_half_commands_wait_for_the_rest(client):
    data = packed("SET", "a", "x\r\ny") + packed("GET", "a")
    for i in range(0, len(data), 5):
        client.send(data[i : i + 5])
    assert client.read() == b"OK"
    assert client.read() == b"x\r\ny"


def test_ten_thousand_commands_in_a_write(either):
    client = either.connect()
    count = 10_000
    data = b"".join(packed("INCR", "n") for _ in range(count))
    threading.Thread(target=client.send, args=(data,), daemon=True).start()
    assert [client.read() for _ in range(count)] == list(range(1, count + 1))


def test_other_clients_have_their_turn_meanwhile(served):
    busy, other = served.connect(), served.connect()
    busy.send(b"".join(packed("SET", f"k{n}", "v") for n in range(20_000)))
    assert other.ask("PING") == b"PONG"
    assert [busy.read() for _ in range(20_000)] == [b"OK"] * 20_000


def test_a_client_that_never_reads_is_cut_off(start):
    with start(max_output_bytes=1_000_000) as served:
        greedy = served.connect(buffer=4096)
        greedy.ask("SET", "a", bytes(100_000))
        try:
            for _ in range(1000):
                greedy.send(packed("GET", "a"))
        except OSError:
            pass  # it was cut off while it was still asking
        other = served.connect()
        eventually(lambda: b"client_output_buffer_limit_disconnections:1" in other.ask("INFO"))
        assert len(other.ask("CLIENT", "LIST").splitlines()) == 1


def test_a_subscriber_that_never_reads_is_cut_off(start):
    with start(max_output_bytes=1_000_000) as served:
        deaf, writer = served.connect(buffer=4096), served.connect()
        deaf.ask("SUBSCRIBE", "x")
        deadline = time.monotonic() + DEADLINE
        while writer.ask("PUBLISH", "x", bytes(100_000)):
            assert time.monotonic() < deadline


def test_a_transaction_ends_with_its_connection(served):
    client = served.connect()
    client.ask("MULTI")
    client.ask("SET", "a", "1")
    client.close()
    other = served.connect()
    eventually(lambda: len(other.ask("CLIENT", "LIST").splitlines()) == 1)
    assert other.ask("GET", "a") is None


def test_a_watched_key_that_expires_counts_as_changed(served):
    client, other = served.connect(), served.connect()
    client.ask("SET", "a", "1", "PX", "30")
    client.ask("WATCH", "a")
    eventually(lambda: other.ask("EXISTS", "a") == 0)
    client.ask("MULTI")
    client.ask("SET", "b", "1")
    assert client.ask("EXEC") is None
    assert client.ask("GET", "b") is None


def test_a_transaction_has_a_bound(start):
    with start(max_queued=3, max_query_bytes=10_000) as served:
        client = served.connect()
        client.ask("MULTI")
        for _ in range(3):
            assert client.ask("SET", "a", "1") == b"QUEUED"
        assert isinstance(client.ask("SET", "a", "1"), hiredis.ReplyError)
        assert str(client.ask("EXEC")).startswith("EXECABORT")
        client.ask("MULTI")
        assert client.ask("SET", "a", bytes(6000)) == b"QUEUED"
        assert isinstance(client.ask("SET", "a", bytes(6000)), hiredis.ReplyError)


@pytest.mark.parametrize("key", [b"\xff", b"", b"a\x00b", b"x" * 513, b".", b".."])
def test_a_key_that_the_node_cannot_have_changes_nothing(client, key):
    for words in (("SET", key, "1"), ("INCR", key), ("MSET", "a", "1", key, "1"), ("GET", key)):
        reply = client.ask(*words)
        assert isinstance(reply, hiredis.ReplyError), words
        assert str(reply).endswith("(invalid_key)")
    assert client.ask("DBSIZE") == 0


def test_a_value_that_is_too_large_changes_nothing(client):
    assert str(client.ask("SET", "a", bytes(2**20 + 1))).endswith("(value_too_large)")
    client.ask("SET", "a", bytes(2**20))
    assert str(client.ask("APPEND", "a", "x")).endswith("(value_too_large)")
    assert client.ask("STRLEN", "a") == 2**20


def test_what_the_keyspace_refuses_undoes_the_whole_transaction(client):
    client.ask("MULTI")
    client.ask("SET", "a", "1")
    client.ask("MSET", "b", "1", "c", bytes(2**20 + 1))
    assert str(client.ask("EXEC")).startswith("EXECABORT")
    assert client.ask("DBSIZE") == 0
    client.ask("MULTI")
    client.ask("SET", "a", "x")
    client.ask("INCR", "a")
    set_, incr = client.ask("EXEC")
    assert set_ == b"OK"
    assert isinstance(incr, hiredis.ReplyError)
    assert client.ask("GET", "a") == b"x"


def test_one_client_too_many_is_told(start):
    with start(max_clients=2) as served:
        first, second = served.connect(), served.connect()
        assert first.ask("PING") == b"PONG"
        assert second.ask("PING") == b"PONG"
        third = served.connect()
        assert third.rest() == b"-ERR max number of clients reached\r\n"
        second.close()
        eventually(lambda: len(first.ask("CLIENT", "LIST").splitlines()) == 1)
        assert served.connect().ask("PING") == b"PONG"


def test_an_idle_client_is_sent_away_and_a_subscriber_is_not(start):
    with start(idle_timeout=0.05) as served:
        idle, subscriber = served.connect(), served.connect()
        subscriber.ask("SUBSCRIBE", "x")
        assert idle.rest() == b""
        assert served.connect().ask("PUBLISH", "x", "y") == 1


def test_a_reply_that_is_too_large_is_refused(start):
    with start(max_output_bytes=20_000) as served:
        client = served.connect()
        client.ask("MSET", *(word for n in range(200) for word in (f"key.{n}" + "x" * 100, "v")))
        assert str(client.ask("KEYS", "*")).endswith("(value_too_large)")
        assert client.ask("KEYS", "key.1x*") == [b"key.1" + b"x" * 100]


def test_an_unknown_cursor_is_an_error(client):
    assert str(client.ask("SCAN", "12345")).startswith("ERR this cursor is not known")


def test_a_scan_gives_what_is_there_all_the_time(either):
    client, other = either.connect(), either.connect()
    stable = {f"s{n:03}".encode() for n in range(150)}
    client.ask("MSET", *(word for key in stable for word in (key, "v")))
    found, cursor, turn = [], b"0", 0
    while True:
        cursor, some = client.ask("SCAN", cursor, "COUNT", "7")
        found += some
        other.ask("SET", f"s{turn:03}x", "new")
        other.ask("DEL", f"s{turn - 3:03}x")
        turn += 1
        if cursor == b"0":
            break
    assert stable <= set(found)
    assert len(found) == len(set(found))
