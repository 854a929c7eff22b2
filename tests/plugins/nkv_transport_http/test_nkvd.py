"""The nkvd dialect: every observed exchange, and what was never observed."""

import json
from pathlib import Path

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nkv_transport_http.nkvd import utf16_length

VECTORS = Path(__file__).parents[2] / "vectors" / "nkvd.jsonl"
EXCHANGES = [json.loads(line) for line in VECTORS.read_text().splitlines()]
OWN = ("version", "hostname", "port")  # what every node says of itself

pytestmark = pytest.mark.anyio


def comparable(body):
    """A body without the order of insertion, which is nkvd's, and what is the node's own."""
    if isinstance(body, dict):
        return {key: value for key, value in body.items() if key not in OWN}
    if isinstance(body, list):
        return sorted(body, key=json.dumps)
    return body


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_every_observed_exchange_is_answered_alike(serving, method):
    async with serving() as node, node.client() as client:
        for exchange in EXCHANGES:
            target = exchange["request"].removeprefix("GET ")
            answer = await client.request(method, target)
            assert answer.status_code == exchange["status"], target
            assert answer.headers["content-type"] == exchange["content_type"], target
            assert comparable(answer.json()) == comparable(exchange["body"]), target


async def test_lists_are_in_key_order(serving):
    async with serving() as node, node.client() as client:
        for key in ("b", "10", "a", "ключ", "2"):
            await client.get("/set", params={"k": key, "v": key.upper()})
        assert (await client.get("/getKeys")).json() == ["10", "2", "a", "b", "ключ"]
        assert (await client.get("/getValues")).json() == ["10", "2", "A", "B", "КЛЮЧ"]


async def test_the_status_names_the_port_and_the_node(serving):
    async with serving() as node, node.client() as client:
        status = (await client.get("/status")).json()
        assert status["port"] == node.port
        assert status["hostname"] == "test"


async def test_head_is_answered_without_a_body(serving):
    async with serving() as node, node.client() as client:
        answer = await client.head("/healthcheck")
        assert answer.status_code == 200
        assert answer.headers["content-length"] == str(len('{"status":"ok"}'))
        assert answer.content == b""


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_other_methods_are_refused_in_the_dialect(serving, method):
    async with serving() as node, node.client() as client:
        answer = await client.request(method, "/get?k=a")
        assert answer.status_code == 405
        assert answer.headers["content-type"] == "text/json"
        assert answer.headers["allow"] == "GET, HEAD, POST"
        assert answer.json() == {"error": "METHOD_NOT_ALLOWED"}


async def test_a_value_that_is_not_text_is_refused_and_left_out_of_lists(serving):
    async with serving() as node, node.client() as client:
        await node.keyspace.put("bytes", b"\xff")
        await node.keyspace.put("text", b"t")
        answer = await client.get("/get?k=bytes")
        assert (answer.status_code, answer.json()) == (406, {"error": "NOT_TEXT"})
        assert (await client.get("/getAll")).json() == [{"k": "text", "v": "t"}]
        assert (await client.get("/getKeys")).json() == ["text"]
        assert (await client.get("/getValues")).json() == ["t"]
        status = (await client.get("/v1/status")).json()
        assert status["http"]["left_out_not_text"] == 3


@pytest.mark.parametrize("count", [0, 999, 1000, 1001, 2500])
async def test_long_lists_are_whole(serving, count):
    async with serving() as node, node.client() as client:
        keys = [f"key.{index:05}" for index in range(count)]
        for key in keys:
            await node.keyspace.put(key, b"v")
        assert (await client.get("/getKeys")).json() == keys
        assert (await client.get("/getAll")).json() == [{"k": key, "v": "v"} for key in keys]
        await node.keyspace.clear()
        assert (await client.get("/getAll")).json() == []


async def test_a_long_list_of_nothing_but_bytes_is_an_empty_list(serving):
    async with serving() as node, node.client() as client:
        for index in range(1500):
            await node.keyspace.put(f"{index}", b"\xff")
        assert (await client.get("/getAll")).json() == []


async def test_limits_are_settings_and_count_utf16_units(serving):
    async with (
        serving(nkvd_max_key_length=4, nkvd_max_value_length=3) as node,
        node.client() as client,
    ):

        async def code(**params):
            return (await client.get("/set", params=params)).json().get("error")

        assert await code(k="abc", v="12") is None
        assert await code(k="a🙂", v="🙂") is None
        assert await code(k="abcd", v="1") == "MAXIMUM_KEY_LENGTH_REACHED"
        assert await code(k="🙂🙂", v="1") == "MAXIMUM_KEY_LENGTH_REACHED"
        assert await code(k="abc", v="1🙂") == "MAXIMUM_VALUE_LENGTH_REACHED"
        status = (await client.get("/status")).json()
        assert (status["maxKeyLength"], status["maxValueLength"]) == (4, 3)


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("/set?v=1", "MISSING_KEY_PARAM"),
        ("/set?k=&v=", "EMPTY_KEY"),
        ("/set?k=" + "x" * 64, "MAXIMUM_KEY_LENGTH_REACHED"),  # before the value is looked at
        ("/set?k=%01&v=1", "INVALID_KEY"),
        ("/set?k=..&v=1", "INVALID_KEY"),
        ("/set?k=%FF&v=1", "BAD_REQUEST"),
        ("/is?k=" + "x" * 64, "MAXIMUM_KEY_LENGTH_REACHED"),
        ("/rm?k=", "EMPTY_KEY"),
    ],
)
async def test_checks_are_made_in_order(serving, target, code):
    async with serving() as node, node.client() as client:
        answer = await client.get(target)
        assert (answer.status_code, answer.json()) == (400, {"error": code})
        assert answer.headers["content-type"] == "text/json"


async def test_of_several_parameters_of_a_name_the_first_counts(serving):
    async with serving() as node, node.client() as client:
        await client.get("/set?k=a&v=1&k=b&v=2")
        assert (await client.get("/getAll")).json() == [{"k": "a", "v": "1"}]


async def test_there_is_no_ping_without_a_mesh(serving):
    async with serving() as node, node.client() as client:
        answer = await client.get("/ping?nodes=127.0.0.1:1")
        assert answer.status_code == 404
        assert answer.json() == {"error": "No register handler for [/ping]"}


async def test_a_set_value_does_not_expire(serving):
    async with serving() as node, node.client() as client:
        await client.put("/v1/kv/a?ttl=1000", content="1")
        await client.get("/set?k=a&v=2")
        assert (await node.keyspace.get("a")).expires is None


async def test_a_plugin_refuses_with_its_own_code(serving):
    from nkv_core.errors import Rejected
    from nkv_core.events import RequestStart

    def refuse(event):
        if event.params.get("k") == "secret":
            raise Rejected(403, "keep_out")

    async with serving() as node, node.client() as client:
        node.dispatcher.on(RequestStart, refuse)
        answer = await client.get("/set?k=secret&v=1")
        assert (answer.status_code, answer.json()) == (403, {"error": "keep_out"})
        assert (await client.get("/set?k=open&v=1")).status_code == 200


async def test_commands_are_told_to_listeners(serving):
    from nkv_core.events import RequestEnd

    ended = []
    async with serving() as node, node.client() as client:
        node.dispatcher.on(RequestEnd, lambda event: ended.append((event.command, event.path)))
        for path in ("/set?k=a&v=1", "/get?k=a", "/is?k=a", "/rm?k=a", "/clear", "/getAll", "/x"):
            await client.get(path)
    assert ended == [
        ("put", "/set"),
        ("get", "/get"),
        ("exists", "/is"),
        ("delete", "/rm"),
        ("clear", "/clear"),
        ("list", "/getAll"),
        ("", "/x"),
    ]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_the_length_is_that_of_utf16(text):
    assert utf16_length(text) == sum(2 if ord(character) > 0xFFFF else 1 for character in text)


async def test_what_a_form_writes_is_read_back(serving):
    text = "a b+c&d=e?f/%\u20ac🙂"
    async with serving() as node, node.client() as client:
        body = httpx2.QueryParams({"k": text, "v": text})
        assert (await client.get(f"/set?{body}")).status_code == 200
        assert (await client.get("/get", params={"k": text})).json() == text
