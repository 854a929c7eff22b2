"""Tokens: who may do what."""

import hiredis
import pytest

from nkv_core.auth import new_token
from nkv_core.contracts.identity import Right

WRONG = "WRONGPASS invalid username-password pair or user is disabled."


@pytest.fixture
def guarded(start, tmp_path):
    """A node with tokens: of one who may do everything, and of one who may read `a.`."""
    tokens, lines = {}, []
    for name, rights in (("all", [Right("", write=True)]), ("reader", [Right("a.")])):
        tokens[name], line = new_token(name, rights)
        lines.append(line)
    path = tmp_path / "tokens.toml"
    path.write_text("\n".join(lines))
    path.chmod(0o600)
    with start(flags={"auth.tokens": str(path)}) as served:
        served.tokens = tokens
        yield served


def test_nothing_is_possible_without_a_token(guarded):
    client = guarded.connect()
    for words in (("GET", "a"), ("SET", "a", "1"), ("PING",), ("CLIENT", "LIST"), ("INFO",)):
        assert str(client.ask(*words)) == "NOAUTH Authentication required."
    assert str(client.ask("AUTH", "nope")) == WRONG
    assert str(client.ask("HELLO", "3")).startswith("NOAUTH HELLO must be called")
    assert str(client.ask("HELLO", "3", "AUTH", "default", "nope")) == WRONG
    assert client.ask("RESET") == b"RESET"
    assert client.ask("QUIT") == b"OK"


@pytest.mark.parametrize("form", ["password", "user", "hello"])
def test_a_token_lets_its_owner_in(guarded, form):
    client, token = guarded.connect(), guarded.tokens["all"]
    if form == "password":
        assert client.ask("AUTH", token) == b"OK"
    elif form == "user":
        assert client.ask("AUTH", "default", token) == b"OK"
    else:
        assert client.ask("HELLO", "3", "AUTH", "default", token)[b"proto"] == 3
    assert client.ask("SET", "a.x", "1") == b"OK"
    assert client.ask("INCR", "a.x") == 2
    assert client.ask("KEYS", "*") == [b"a.x"]
    assert client.ask("HELLO", "2")[1] == b"redis"
    assert client.ask("FLUSHALL") == b"OK"
    assert b"user=all" in client.ask("CLIENT", "INFO")
    assert client.ask("RESET") == b"RESET"
    assert str(client.ask("GET", "a.x")).startswith("NOAUTH")


def test_a_wrong_token_leaves_the_right_one_in_force(guarded):
    client = guarded.connect()
    client.ask("AUTH", guarded.tokens["all"])
    assert str(client.ask("AUTH", "nope")) == WRONG
    assert client.ask("PING") == b"PONG"


def test_rights_are_those_of_the_token(guarded):
    owner, reader = guarded.connect(), guarded.connect()
    owner.ask("AUTH", guarded.tokens["all"])
    owner.ask("MSET", "a.x", "1", "b", "2")
    reader.ask("AUTH", guarded.tokens["reader"])
    assert reader.ask("GET", "a.x") == b"1"
    assert reader.ask("KEYS", "a.*") == [b"a.x"]
    assert reader.ask("SCAN", "0", "MATCH", "a.*") == [b"0", [b"a.x"]]
    for words in (
        ("GET", "b"),
        ("MGET", "a.x", "b"),
        ("SET", "a.x", "2"),
        ("INCR", "a.x"),
        ("DEL", "a.x"),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("DBSIZE",),
        ("FLUSHALL",),
    ):
        reply = reader.ask(*words)
        assert isinstance(reply, hiredis.ReplyError), words
        assert str(reply).startswith("NOPERM"), words
    reader.ask("MULTI")
    reader.ask("GET", "a.x")
    reader.ask("SET", "a.x", "3")
    assert str(reader.ask("EXEC")).startswith("EXECABORT")
    assert owner.ask("GET", "a.x") == b"1"


def test_a_subscriber_is_told_of_what_it_may_read(guarded):
    owner, reader = guarded.connect(), guarded.connect()
    owner.ask("AUTH", guarded.tokens["all"])
    reader.ask("HELLO", "3", "AUTH", "x", guarded.tokens["reader"])
    reader.ask("PSUBSCRIBE", "__keyspace@0__:*")
    reader.ask("CLIENT", "TRACKING", "ON", "BCAST")
    for key in ("b", "a.x"):
        owner.ask("SET", key, "1")
    told = [reader.read(), reader.read()]
    assert [b"pmessage", b"__keyspace@0__:*", b"__keyspace@0__:a.x", b"set"] in told
    assert [b"invalidate", [b"a.x"]] in told


def test_others_are_not_shown_and_not_ended(guarded):
    owner, reader = guarded.connect(), guarded.connect()
    owner.ask("AUTH", guarded.tokens["all"])
    reader.ask("AUTH", guarded.tokens["reader"])
    assert len(reader.ask("CLIENT", "LIST").splitlines()) == 1
    assert len(owner.ask("CLIENT", "LIST").splitlines()) == 2
    number = owner.ask("CLIENT", "ID")
    assert reader.ask("CLIENT", "KILL", "ID", number) == 0
    assert owner.ask("PING") == b"PONG"
    assert owner.ask("CLIENT", "KILL", "USER", "reader") == 1
    assert reader.rest() == b""
