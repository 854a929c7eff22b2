"""Each dialect as clients speak it, over Unix and TCP, with one request a connection and many."""

import stat

import anyio
import pytest

pytestmark = pytest.mark.anyio

V, W = b"value", b"\x00\xff\n other"
B, C = "dmFsdWU=", "AP8KIG90aGVy"  # the same in base64


def transcript(name):
    """Requests with their answers, in order."""
    if name == "json":
        base = {"status": 200, "message": "No Error"}
        lost = {"status": 404, "message": "Not Found"}
        found = [list(V), list(W)]
        return [
            (("GET", "1", "me", "a.b"), {"Get": {"id": "1", **lost, "data": []}}),
            (("PUT", "2", "me", "a.b", B), {"Base": {"id": "2", **base}}),
            (("PUT", "3", "me", "a.b.c", C), {"Base": {"id": "3", **base}}),
            (("GET", "4", "me", "a.b"), {"Get": {"id": "4", **base, "data": [list(V)]}}),
            (("GET", "5", "me", "a.b.*"), {"Get": {"id": "5", **base, "data": found}}),
            (("PUT", "6", "me", "e", ""), {"Base": {"id": "6", **base}}),
            (("GET", "7", "me", "e"), {"Get": {"id": "7", **base, "data": [[]]}}),
            (("DEL", "8", "me", "a.b"), {"Base": {"id": "8", **base}}),
            (("DEL", "9", "me", "a.b"), {"Base": {"id": "9", **lost}}),
            (("GET", "10", "me", "a.*"), {"Get": {"id": "10", **base, "data": [list(W)]}}),
            (("UNSUB", "11", "me", "a.b"), {"Base": {"id": "11", **lost}}),
        ]
    if name == "line":
        return [
            (("GET", "1", "me", "a.b"), "1 FAILED"),
            (("PUT", "2", "me", "a.b", B), "2 OK"),
            (("PUT", "3", "me", "a.b.c", C), "3 OK"),
            (("GET", "4", "me", "a.b"), f"4 OK {B}"),
            (("GET", "5", "me", "a.b.*"), f"5 OK {B} {C}"),
            (("PUT", "6", "me", "a.bb", ""), "6 OK"),
            (("GET", "7", "me", "a.*.ignored"), f"7 OK {B} {C} "),
            (("GET", "7a", "me", "a.bb"), "7a OK "),
            (("GET", "7b", "me", "*"), f"7b OK {B} {C} "),
            (("PUT", "8", "me", "a.*", B), "8 FAILED"),
            (("DEL", "9", "me", "a.b.*"), "9 FAILED"),
            (("DEL", "10", "me", "a.b"), "10 OK"),
            (("DEL", "11", "me", "a.b"), "11 FAILED"),
            (("GET", "12", "me", "a.b.c"), f"12 OK {C}"),
            (("UNSUB", "13", "me", "a.b"), "13 FAILED"),
            (("SUB", "14", "me", "a.*"), "14 FAILED"),
            (("TRACE", "15", "me", "a"), "15 FAILED"),
            (("VERSION", "16", "me", "DISCARDME"), "16 FAILED"),
        ]
    return [
        (("HEALTH", "0", "me", "HK"), "base 0 OK"),
        (("VERSION", "0", "me", "DISCARDME"), "version 0 OK 0.1.0"),
        (("GET", "1", "me", "a.b"), "data 1 FAILED"),
        (("PUT", "2", "me", "a.b", B), "base 2 OK"),
        (("PUT", "3", "me", "a.b.c", C), "base 3 OK"),
        (("GET", "4", "me", "a.b"), f"data 4 OK a.b {B}"),
        (("GET", "5", "me", "a.*"), f"data 5 OK a.b {B} a.b.c {C}"),
        (("PUT", "6", "me", "e", ""), "base 6 OK"),
        (("GET", "7", "me", "e"), "data 7 OK e "),
        (("PUT", "8", "me", "a.*", B), "base 8 FAILED"),
        (("DEL", "9", "me", "nobody"), "base 9 OK"),
        (("DEL", "10", "me", "a.b"), "base 10 OK"),
        (("GET", "11", "me", "a.b.*"), f"data 11 OK a.b.c {C}"),
        (("PUT", "12", "me", "a.bc", B), "base 12 OK"),
        (("PUT", "13", "me", "a.b", B), "base 13 OK"),
        (("DEL", "14", "me", "a.b.*"), "base 14 OK"),
        (("GET", "15", "me", "*"), f"data 15 OK a.bc {B} e "),
        (("TRACE", "16", "me", "a.b"), "trace 16 FAILED"),
        (("UNSUB", "17", "me", "a.b"), "base 17 FAILED"),
        (("SUB", "18", "me", "*"), "base 18 FAILED"),
    ]


async def test_one_request_a_connection_is_answered_as_the_clients_expect(serving, dialect, family):
    async with serving() as served:
        for request, answer in transcript(dialect.name):
            assert await served.ask(dialect, *request, family=family) == answer, request


async def test_many_requests_a_connection_are_answered_one_after_the_other(
    serving, dialect, family
):
    async with serving() as served:
        client = served.connect(family)
        for request, answer in transcript(dialect.name):
            await client.send(dialect.request(*request))
            assert await dialect.read(client) == answer, request


async def test_pipelined_requests_are_answered_in_order(serving, dialect, family):
    async with serving() as served:
        client = served.connect(family)
        pairs = transcript(dialect.name)
        await client.send(b"".join(dialect.request(*request) for request, _ in pairs))
        for request, answer in pairs:
            assert await dialect.read(client) == answer, request


async def test_one_connection_may_change_dialect_between_requests(serving, dialects):
    async with serving() as served:
        client = served.connect()
        for dialect in dialects.values():
            await client.send(dialect.request("PUT", "1", "me", "k", B))
        for dialect in dialects.values():
            assert await dialect.read(client) == dialect.ok("1")


async def test_a_key_may_have_a_space_in_json_and_is_left_out_in_frames(serving, dialects):
    async with serving() as served:
        json_, framed = dialects["json"], dialects["framed"]
        assert await served.ask(json_, "PUT", "1", "me", "a.two words", B) == json_.ok("1")
        await served.put("a.one", V)
        assert await served.ask(framed, "GET", "2", "me", "a.*") == f"data 2 OK a.one {B}"
        assert await served.ask(dialects["line"], "GET", "3", "me", "a.*") == f"3 OK {B} {B}"


async def test_the_socket_is_for_its_user_alone_unless_told_otherwise(serving):
    async with serving() as served:
        assert stat.S_IMODE(served.path.stat().st_mode) == 0o600
    async with serving(mode="0660") as served:
        assert stat.S_IMODE(served.path.stat().st_mode) == 0o660


async def test_without_host_and_port_there_is_no_tcp():
    from nkv_core.errors import SettingsError
    from nkv_transport_socket.settings import SocketSettings

    assert SocketSettings().tcp is None
    assert SocketSettings(port=0).tcp == ("127.0.0.1", 0)
    assert SocketSettings(host="::1").tcp == ("::1", 4222)
    with pytest.raises(SettingsError, match="nowhere to listen"):
        SocketSettings(path="")


async def test_events_tell_of_each_request_without_its_value(serving, dialects):
    from nkv_core.events import RequestEnd

    async with serving() as served:
        ends = []
        served.node.on(RequestEnd, ends.append)
        await served.ask(dialects["line"], "PUT", "7", "me", "k", B)
        await served.ask(dialects["line"], "GET", "8", "me", "nobody")
        while len(ends) < 2:
            await anyio.sleep(0.001)
        put, get = ends
        assert (put.request.transport, put.request.command) == ("socket", "put")
        assert put.request.params == {"id": "7", "client": "me", "key": "k", "dialect": "line"}
        assert put.request.peer.startswith("unix:")
        assert put.error is None
        assert get.error.code == "not_found"


async def test_a_listener_may_refuse_a_request(serving, dialects):
    from nkv_core.errors import Rejected
    from nkv_core.events import RequestStart

    def refuse(event):
        if event.command == "put":
            raise Rejected(451, "no", "not today")

    async with serving() as served:
        served.node.on(RequestStart, refuse)
        assert await served.ask(dialects["line"], "PUT", "1", "me", "k", B) == "1 FAILED"
        answer = await served.ask(dialects["json"], "PUT", "1", "me", "k", B)
        assert answer == {"Base": {"id": "1", "status": 451, "message": "not today"}}
        assert await served.keyspace.get("k") is None


async def test_an_opening_line_says_who_asks(serving, dialect, tmp_path):
    from nkv_core.auth import Right, new_token

    token, line = new_token("alice", [Right("a.", read=True, write=True)])
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(line + "\n")
    tokens.chmod(0o600)
    async with serving(tokens=tokens) as served:
        client = served.connect()

        async def ask(*fields):
            await client.send(dialect.request(*fields))
            return await dialect.read(client)

        def status(answer):
            if dialect.name != "json":
                return 200 if " OK" in answer else 0
            return answer.get("Base", answer.get("Get"))["status"]

        assert status(await ask("PUT", "1", "me", "a.k", B)) in (0, 401)
        assert status(await ask("AUTH", "wrong")) in (0, 401)
        assert await ask("AUTH", token) == dialect.ok("-")
        assert status(await ask("PUT", "2", "me", "a.k", B)) == 200
        assert status(await ask("PUT", "3", "me", "b.k", B)) in (0, 403)
        assert status(await ask("SUB", "4", "me", "b")) in (0, 403)
        await client.send(dialect.request("SUB", "5", "me", "a.k"))
        assert await dialect.read(client) == dialect.hello
        assert await dialect.read(client) == dialect.update("a.k", V)


async def test_health_needs_no_token(serving, dialects, tmp_path):
    from nkv_core.auth import Right, new_token

    tokens = tmp_path / "tokens.toml"
    tokens.write_text(new_token("a", [Right("")])[1])
    tokens.chmod(0o600)
    async with serving(tokens=tokens) as served:
        assert await served.ask(dialects["framed"], "HEALTH", "1", "me", "HK") == "base 1 OK"
        answer = await served.ask(dialects["framed"], "VERSION", "1", "me", "DISCARDME")
        assert answer == "base 1 FAILED"
