"""The dialect's paths, byte for byte."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.anyio
VECTORS = Path(__file__).parents[2] / "vectors" / "flask-kv.jsonl"
EXCHANGES = [json.loads(line) for line in VECTORS.read_text().splitlines()]
FORM = "application/x-www-form-urlencoded"
MISSING = "Missing required parameter in the JSON body or the post body or the query string"


async def test_every_observed_exchange_is_answered_byte_for_byte(serving, web):
    assert len(EXCHANGES) == 12
    async with serving() as node, web(node) as client:
        for exchange in EXCHANGES:
            body = exchange["json"]
            reply = await client.request(
                exchange["method"],
                exchange["path"],
                **({} if body is None else {"json": body}),
            )
            assert reply.status_code == exchange["status"], exchange
            assert reply.headers["content-type"] == exchange["content_type"]
            assert reply.content == exchange["body"].encode(), exchange


async def ask(client, method, **how):
    reply = await client.request(method, "/kv", **how)
    assert reply.content.endswith(b"\n")
    assert reply.headers["content-type"] == "application/json"
    return reply.status_code, reply.json()


async def test_parameters_come_by_body_form_or_query_in_that_order(serving, web):
    async with serving() as node, web(node) as client:
        form = {"key": "k", "value": "of the form"}
        assert await ask(client, "PUT", data=form) == (200, {"k": "of the form"})
        assert await ask(client, "GET", data={"key": "k"}) == (200, {"value": "of the form"})
        assert await ask(client, "PUT", json={"key": "j"}, params={"value": "q", "key": "x"}) == (
            200,
            {"j": "q"},
        )
        assert await ask(client, "GET", params=[("key", "j"), ("key", "k")]) == (
            200,
            {"value": "q"},
        )
        assert await ask(client, "GET", content=b'{"key": "j"}') == (200, {"value": "q"})


@pytest.mark.parametrize(
    ("value", "text"),
    [(5, "5"), (-0.5, "-0.5"), (1e100, "1e+100"), (10**30, "1" + "0" * 30), (True, "True")],
)
async def test_numbers_are_taken_as_their_text(serving, web, value, text):
    async with serving() as node, web(node) as client:
        assert await ask(client, "PUT", json={"key": value, "value": value}) == (200, {text: text})
        assert await ask(client, "GET", json={"key": value}) == (200, {"value": text})


async def test_an_empty_value_is_a_value(serving, web):
    async with serving() as node, web(node) as client:
        assert await ask(client, "PUT", json={"key": "k", "value": ""}) == (200, {"k": ""})
        assert await ask(client, "GET", json={"key": "k"}) == (200, {"value": ""})


@pytest.mark.parametrize("body", [{"key": "k"}, {"key": "k", "value": None}])
async def test_a_put_without_value_is_refused(serving, web, body):
    async with serving() as node, web(node) as client:
        assert await ask(client, "PUT", json=body) == (400, {"message": {"value": MISSING}})
        assert await node.keyspace.get("k") is None


@pytest.mark.parametrize(
    ("status", "how"),
    [
        (400, {"content": b"{", "headers": {"content-type": "application/json"}}),
        (400, {"content": b"[1]"}),
        (400, {"content": b'{"key": "k", "value": NaN}'}),
        (400, {"content": b'{"key": "k", "value": ' + b"9" * 5000 + b"}"}),
        (400, {"content": b"[" * 100_000}),
        (400, {"content": b"\xff"}),
        (400, {"content": b'{"key": "k", "value": "\\ud800"}'}),
        (400, {"content": b'{"key": "\\ud800", "value": "v"}'}),
        (400, {"json": {"key": "k", "value": ["v"]}}),
        (400, {"json": {"key": {}, "value": "v"}}),
        (400, {"json": {"key": "", "value": "v"}}),
        (400, {"json": {"key": "a\nb", "value": "v"}}),
        (400, {"content": b"key=%ff&value=v", "headers": {"content-type": FORM}}),
        (413, {"json": {"key": "k", "value": "v" * (1024 * 1024 + 1)}}),
        (413, {"content": b" " * (8 * 1024 * 1024 + 1)}),
        (415, {"content": b"k", "headers": {"content-type": "text/plain"}}),
    ],
)
async def test_what_cannot_be_taken_is_refused_in_the_dialects_form(serving, web, status, how):
    async with serving() as node, web(node) as client:
        answered, body = await ask(client, "PUT", **how)
        assert answered == status
        assert isinstance(body["message"], str)
        assert await node.keyspace.count() == 0


async def test_a_value_that_is_not_text_is_not_acceptable(serving, web):
    async with serving() as node, web(node) as client:
        await node.keyspace.put("k", b"\xff")
        status, body = await ask(client, "GET", json={"key": "k"})
        assert status == 406
        assert "UTF-8" in body["message"]


async def test_other_methods_are_refused_in_the_dialects_form(serving, web):
    async with serving() as node, web(node) as client:
        status, body = await ask(client, "DELETE")
        assert status == 405
        assert "GET" in body["message"]
