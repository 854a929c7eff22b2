"""From what a client sends to a request, and from an outcome to what it gets."""

import json
import logging

import anyio
import pytest

from nkv_core.auth import Auth, new_token
from nkv_core.contracts.handlers import Reply
from nkv_core.contracts.identity import Right
from nkv_core.errors import Forbidden, NkvError, Overloaded
from nkv_core.events import RequestComplete, RequestEnd, RequestStart

pytestmark = pytest.mark.anyio


async def echo(request):
    return {
        "method": request.method,
        "path": request.path,
        "params": dict(request.params),
        "headers": dict(request.headers),
        "body": request.body.decode(),
        "credential": request.credential,
        "peer": request.peer,
    }


def with_echo(handlers):
    handlers.add("/echo", echo, ("GET", "POST"))
    handlers.add("/small", echo, ("POST",), max_body=10)


# --- requests -------------------------------------------------------------------------------------


async def test_a_handler_gets_what_was_sent(serving):
    async with serving() as node, node.client() as client:
        node.load(with_echo)
        answer = await client.post(
            "/echo?a=1&b=%C3%A9&a=2&c",
            content="hé",
            headers=[("X-One", "1"), ("X-Two", "2"), ("x-two", "3")],
        )
        seen = answer.json()
        assert seen["method"] == "POST"
        assert seen["path"] == "/echo"
        assert seen["params"] == {"a": "1", "b": "é", "c": ""}
        assert seen["headers"]["x-one"] == "1"
        assert seen["headers"]["x-two"] == "2, 3"
        assert seen["body"] == "hé"
        assert seen["peer"].startswith("127.0.0.1:")


@pytest.mark.parametrize(
    ("headers", "credential"),
    [
        ({}, None),
        ({"Authorization": "Bearer abc"}, "abc"),
        ({"Authorization": "bearer  abc"}, "abc"),
        ({"X-Api-Key": "abc"}, "abc"),
        ({"Authorization": "Basic abc", "X-Api-Key": "def"}, "def"),
        ({"Authorization": "Basic abc"}, None),
    ],
)
async def test_a_token_comes_as_bearer_or_as_api_key(serving, headers, credential):
    async with serving() as node, node.client() as client:
        node.load(with_echo)
        assert (await client.get("/echo", headers=headers)).json()["credential"] == credential


async def test_an_absolute_target_is_its_path_and_its_host_counts(serving):
    async with serving() as node:
        node.load(with_echo)
        for authority, status in ((node.host, 200), ("evil.example", 421)):
            request = f"GET http://{authority}/echo?a=1 HTTP/1.1\r\nHost: {node.host}\r\n"
            answer = await node.raw(request.encode() + b"Connection: close\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 %d " % status)


async def test_the_name_of_websocket_routes_is_no_method(serving):
    async with serving() as node, node.client() as client:
        node.load(lambda handlers: handlers.websocket("/ws", echo))
        for method in ("WEBSOCKET", "websocket", "GET"):
            assert (await client.request(method, "/ws")).status_code == 404


# --- bodies ---------------------------------------------------------------------------------------


async def test_a_chunked_body_is_taken(serving):
    async def pieces():
        for piece in (b"one", b"two", b"three"):
            yield piece

    async with serving() as node, node.client() as client:
        node.load(with_echo)
        answer = await client.post("/echo", content=pieces())
        assert answer.json()["body"] == "onetwothree"


async def test_a_body_too_long_is_refused_by_its_length_before_it_is_sent(serving):
    async with serving() as node:
        node.load(with_echo)
        peer = await node.connect()
        async with peer.stream:
            head = f"POST /small HTTP/1.1\r\nHost: {node.host}\r\nContent-Length: 11\r\n\r\n"
            await peer.send(head.encode())
            status, headers, body = await peer.reply()
            assert status == 413
            assert headers["connection"] == "close"
            assert json.loads(body)["code"] == "body_too_large"
            assert await peer.rest() == b""


async def test_a_chunked_body_too_long_is_refused_before_its_end(serving):
    async with serving() as node:
        node.load(with_echo)
        peer = await node.connect()
        async with peer.stream:
            head = (
                f"POST /small HTTP/1.1\r\nHost: {node.host}\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            await peer.send(head.encode() + b"6\r\nsix...\r\n5\r\nfive.\r\n")
            status, _, body = await peer.reply()
            assert status == 413
            assert json.loads(body)["code"] == "body_too_large"
            assert await peer.rest() == b""


async def test_one_who_sends_on_after_a_refusal_can_still_read_it(serving):
    async with serving() as node:
        peer = await node.connect()
        async with peer.stream:
            head = (
                f"PUT /v1/kv/a HTTP/1.1\r\nHost: {node.host}\r\nContent-Length: 100000000\r\n\r\n"
            )
            await peer.send(head.encode())

            async def pour():
                piece = b"x" * 65536
                try:
                    while True:
                        await peer.send(piece)
                except anyio.BrokenResourceError:
                    pass

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pour)
                status, _, _ = await peer.reply()
                assert status == 413
                tasks.cancel_scope.cancel()


async def test_a_body_as_long_as_is_allowed_is_taken(serving):
    async with serving() as node, node.client() as client:
        node.load(with_echo)
        assert (await client.post("/small", content=b"x" * 10)).status_code == 200


async def test_one_who_asks_first_is_told_to_go_on(serving):
    async with serving() as node:
        peer = await node.connect()
        async with peer.stream:
            head = f"PUT /v1/kv/a HTTP/1.1\r\nHost: {node.host}\r\nContent-Length: 2\r\n"
            await peer.send(head.encode() + b"Expect: 100-continue\r\n\r\n")
            assert (await peer.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
            await peer.send(b"ok")
            assert (await peer.reply())[0] == 201
            assert (await node.keyspace.get("a")).value == b"ok"


async def test_half_a_body_changes_nothing(serving):
    async with serving() as node:
        peer = await node.connect()
        head = f"PUT /v1/kv/a HTTP/1.1\r\nHost: {node.host}\r\nContent-Length: 9\r\n\r\nhalf"
        ended = anyio.Event()
        node.dispatcher.on(RequestEnd, lambda _: ended.set())
        async with peer.stream:
            await peer.send(head.encode())
        await ended.wait()
        assert await node.keyspace.count() == 0


async def test_half_a_body_is_waited_for_until_its_deadline(serving):
    async with serving(body_timeout=0.2) as node:
        head = f"PUT /v1/kv/a HTTP/1.1\r\nHost: {node.host}\r\nContent-Length: 9\r\n\r\nhalf"
        answer = await node.raw(head.encode())
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"body_timeout" in answer
        assert await node.keyspace.count() == 0


# --- whom it answers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:{port}", 200),
        ("127.0.0.1:1", 200),  # behind a forwarded port
        ("localhost", 200),
        ("LOCALHOST:{port}", 200),
        ("localhost.", 200),
        ("kv.example", 200),
        ("KV.example:8080", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("evil.example:{port}", 421),
        ("127.0.0.1.evil.example", 421),
        ("127.0.0.1:x", 421),
        ("10.0.0.1", 421),
        ("[::1]", 421),
        ("0.0.0.0", 421),
        ("", 421),
        ("user@localhost", 421),
        ("localhost, evil.example", 421),
    ],
)
async def test_only_its_own_names_are_answered(serving, host, status):
    async with serving(hosts=("kv.example",)) as node:
        host = host.format(port=node.port)
        request = f"GET /v1/status HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        answer = await node.raw(request.encode())
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        if status == 421:
            assert b'"code":"misdirected_host"' in answer
            assert b"transport.http.hosts" in answer


async def test_the_address_that_a_request_came_in_at_is_a_name(serving):
    async with serving(host="0.0.0.0") as node:
        for host, status in (("127.0.0.1", 200), ("evil.example", 421)):
            request = f"GET /healthcheck HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
            assert (await node.raw(request.encode())).startswith(b"HTTP/1.1 %d " % status)


async def test_a_wrong_host_is_refused_in_the_paths_own_form(serving):
    async with serving() as node, node.client() as client:
        answer = await client.get("/get?k=a", headers={"Host": "evil.example"})
        assert (answer.status_code, answer.json()) == (421, {"error": "MISDIRECTED_HOST"})


@pytest.mark.parametrize(
    "lines", ["", "Host: localhost\r\nHost: localhost\r\n", "Host: localhost\r\nhost: x\r\n"]
)
async def test_there_is_just_one_host(serving, lines):
    async with serving() as node:
        answer = await node.raw(f"GET /healthcheck HTTP/1.1\r\n{lines}\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 400 ")


async def test_old_http_needs_a_host_as_well(serving):
    async with serving() as node:
        answer = await node.raw(b"GET /healthcheck HTTP/1.0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400 ")


CHANGES = [
    ("GET", "/set?k=a&v=1"),
    ("HEAD", "/set?k=a&v=1"),
    ("POST", "/set?k=a&v=1"),
    ("GET", "/rm?k=b"),
    ("GET", "/clear"),
    ("PUT", "/v1/kv/a"),
    ("DELETE", "/v1/kv/b"),
    ("POST", "/v1/batch"),
    ("POST", "/get?k=b"),
]


@pytest.mark.parametrize(("method", "target"), CHANGES)
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
async def test_a_foreign_page_changes_nothing(serving, method, target, headers):
    async with serving() as node, node.client() as client:
        await node.keyspace.put("b", b"1")
        answer = await client.request(method, target, headers=headers)
        assert answer.status_code == 403
        if method != "HEAD":
            code = answer.json().get("code") or answer.json()["error"].lower()
            assert code == "foreign_origin"
        assert [record.key for record in (await node.keyspace.scan()).records] == ["b"]


@pytest.mark.parametrize("own", ["http://{host}", "https://{host}", None])
@pytest.mark.parametrize("site", ["same-origin", "none", None])
async def test_a_page_of_its_own_may_change_data(serving, own, site):
    async with serving() as node, node.client() as client:
        headers = {} if own is None else {"Origin": own.format(host=node.host)}
        headers |= {} if site is None else {"Sec-Fetch-Site": site}
        assert (await client.get("/set?k=a&v=1", headers=headers)).status_code == 200
        assert (await client.put("/v1/kv/b", content=b"1", headers=headers)).status_code == 201


async def test_reading_is_free_for_all_since_a_page_sees_no_answer(serving):
    async with serving() as node, node.client() as client:
        await node.keyspace.put("a", b"1")
        headers = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
        for path in ("/get?k=a", "/v1/kv/a"):
            answer = await client.get(path, headers=headers)
            assert answer.status_code == 200
            assert "access-control-allow-origin" not in answer.headers


async def test_where_tokens_are_used_all_but_health_needs_one(serving, tmp_path):
    token, line = new_token("reader", [Right("a.")])
    file = tmp_path / "tokens"
    file.write_text(line + "\n")
    file.chmod(0o600)
    async with serving(auth=Auth.load(file)) as node, node.client() as client:
        await node.keyspace.put("a.b", b"1")
        for path in ("/livez", "/readyz", "/healthcheck"):
            assert (await client.get(path)).status_code == 200
        answer = await client.get("/v1/kv/a.b")
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["code"] == "unauthenticated"
        assert (await client.get("/get?k=a.b")).json() == {"error": "UNAUTHENTICATED"}
        assert (await client.get("/metrics")).status_code == 401
        wrong = {"Authorization": "Bearer nonsense"}
        assert (await client.get("/v1/kv/a.b", headers=wrong)).status_code == 401
        for headers in ({"Authorization": f"Bearer {token}"}, {"X-Api-Key": token}):
            assert (await client.get("/v1/kv/a.b", headers=headers)).content == b"1"
            assert (await client.get("/v1/kv/b", headers=headers)).status_code == 403
            answer = await client.put("/v1/kv/a.b", content=b"2", headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


# --- outcomes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "status", "kind", "body"),
    [
        ({"a": [1, None]}, 200, "application/json", b'{"a":[1,null]}'),
        ([], 200, "application/json", b"[]"),
        ("text", 200, "application/json", b'"text"'),
        (None, 200, "application/json", b"null"),
        (b"\xff", 200, "application/octet-stream", b"\xff"),
        (Reply(201, {"Content-Type": "text/plain", "X-A": "é"}, b"x"), 201, "text/plain", b"x"),
        (Reply(202, body={"a": 1}), 202, "application/json", b'{"a":1}'),
        (Reply(404), 404, None, b""),
        (Reply(204, body=b"ignored"), 204, "application/octet-stream", b""),
    ],
)
async def test_what_a_handler_returns_is_sent(serving, outcome, status, kind, body):
    async with serving() as node, node.client() as client:
        node.load(lambda handlers: handlers.add("/x", lambda _: outcome))
        answer = await client.get("/x")
        assert (answer.status_code, answer.content) == (status, body)
        assert answer.headers.get("content-type") == kind
        assert "server" not in answer.headers
        assert "date" in answer.headers


@pytest.mark.parametrize(
    "outcome",
    [
        object(),
        Reply(200, {"X-A": "1\r\nX-B: 2"}),
        Reply(200, {"X A": "1"}),
        Reply(200, {"X-A": "\u20ac"}),
        Reply(200, {"Content-Length": "3"}, b"1"),
        Reply(200, {"Connection": "close"}),
        Reply(99),
        Reply(600),
    ],
)
async def test_what_cannot_be_sent_is_the_handlers_failure(serving, outcome, caplog):
    async with serving() as node, node.client() as client:
        node.load(lambda handlers: handlers.add("/x", lambda _: outcome))
        with caplog.at_level(logging.CRITICAL, "nkv.plugin"):
            answer = await client.get("/x")
        assert (answer.status_code, answer.json()["code"]) == (500, "handler_failed")
        assert (await client.get("/x")).status_code == 500  # the connection lives on


async def test_a_failure_tells_nothing_of_the_inside(serving):
    def fail(_request):
        raise ZeroDivisionError("secret in here")

    async with serving() as node, node.client() as client:
        node.load(lambda handlers: handlers.add("/x", fail))
        answer = await client.get("/x")
        assert (answer.status_code, answer.json()["code"]) == (500, "handler_failed")
        assert "secret" not in answer.text
        assert "Error" not in answer.json()["detail"]


async def test_an_error_of_nkv_is_answered_with_its_status_and_code(serving):
    class Teapot(NkvError):
        """I am a teapot."""

        code = "teapot"
        status = 418

    def refuse(request):
        raise {"a": Teapot, "b": Overloaded, "c": Forbidden}[request.params["x"]]

    async with serving() as node, node.client() as client:
        node.load(lambda handlers: handlers.add("/x", refuse))
        answer = await client.get("/x?x=a")
        assert (answer.status_code, answer.json()["code"]) == (418, "teapot")
        assert answer.headers["content-type"] == "application/problem+json"
        assert (await client.get("/x?x=b")).headers["retry-after"] == "1"
        assert (await client.get("/x?x=c")).status_code == 403


async def test_a_form_of_errors_that_fails_is_replaced(serving, caplog):
    def broken(_request, _error):
        raise ZeroDivisionError

    def refuse(_request):
        raise Forbidden

    async with serving() as node, node.client() as client:
        node.load(lambda handlers: handlers.add("/x", refuse, errors=broken))
        with caplog.at_level(logging.CRITICAL, "nkv.plugin"):
            answer = await client.get("/x")
        assert (answer.status_code, answer.json()["code"]) == (500, "handler_failed")


async def test_a_listener_replaces_the_outcome(serving):
    async with serving() as node, node.client() as client:
        node.dispatcher.on(RequestComplete, lambda event: event.replace(Reply(299, {}, b"other")))
        answer = await client.get("/healthcheck")
        assert (answer.status_code, answer.content) == (299, b"other")


async def test_an_unknown_path_goes_through_all_events(serving):
    seen = []
    async with serving() as node, node.client() as client:
        for kind in (RequestStart, RequestComplete, RequestEnd):
            node.dispatcher.on(kind, lambda event: seen.append((type(event).__name__, event.path)))
        assert (await client.get("/nope")).json() == {"error": "No register handler for [/nope]"}
    assert seen == [(name, "/nope") for name in ("RequestStart", "RequestComplete", "RequestEnd")]
