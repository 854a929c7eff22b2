"""`/v1`: records as resources, batches, and the node's own paths."""

import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nkv_core.contracts.settings import KeyspaceSettings
from nkv_core.records import wall_clock
from nkv_core.times import parse_time, parse_timestamp

pytestmark = pytest.mark.anyio

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def problem(answer, status, code):
    """That the answer is a problem document, as RFC 9457 has it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document["status"] == status
    assert document["code"] == code
    assert document["title"]
    assert document["detail"]
    return document


# --- single records -------------------------------------------------------------------------------


async def test_a_value_is_created_read_changed_and_deleted(serving):
    async with serving() as node, node.client() as client:
        created = await client.put("/v1/kv/a", content=b"\x00\xff")
        assert (created.status_code, created.content) == (201, b"")
        read = await client.get("/v1/kv/a")
        assert (read.status_code, read.content) == (200, b"\x00\xff")
        assert read.headers["content-type"] == "application/octet-stream"
        assert read.headers["x-content-type-options"] == "nosniff"
        assert read.headers["etag"] == created.headers["etag"]
        assert read.headers["nkv-modified"] == created.headers["nkv-modified"]
        assert re.fullmatch(TIME + r"\+\d+", read.headers["nkv-modified"])
        assert "nkv-expires" not in read.headers
        changed = await client.put("/v1/kv/a", content=b"2")
        assert changed.status_code == 200
        assert changed.headers["etag"] != created.headers["etag"]
        deleted = await client.delete("/v1/kv/a")
        assert (deleted.status_code, deleted.content) == (204, b"")
        problem(await client.delete("/v1/kv/a"), 404, "not_found")
        problem(await client.get("/v1/kv/a"), 404, "not_found")


async def test_the_version_and_the_time_are_the_records(serving):
    async with serving() as node, node.client() as client:
        answer = await client.put("/v1/kv/a", content=b"1")
        record = await node.keyspace.get("a")
        assert answer.headers["etag"] == f'"{node.keyspace.history}-{record.revision}"'
        assert parse_timestamp(answer.headers["nkv-modified"]) == record.modified


async def test_head_is_get_without_the_body(serving):
    async with serving() as node, node.client() as client:
        await client.put("/v1/kv/a", content=b"12345")
        got, head = await client.get("/v1/kv/a"), await client.head("/v1/kv/a")
        assert (head.status_code, head.content) == (200, b"")
        for name in ("etag", "content-length", "content-type", "nkv-modified"):
            assert head.headers[name] == got.headers[name]
        assert (await client.head("/v1/kv/b")).status_code == 404


async def test_an_empty_value_is_a_value(serving):
    async with serving() as node, node.client() as client:
        assert (await client.put("/v1/kv/a")).status_code == 201
        answer = await client.get("/v1/kv/a")
        assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_if_match_holds_a_write_to_a_version(serving, method):
    async with serving() as node, node.client() as client:
        old = (await client.put("/v1/kv/a", content=b"1")).headers["etag"]
        new = (await client.put("/v1/kv/a", content=b"2")).headers["etag"]
        stale = await client.request(method, "/v1/kv/a", headers={"If-Match": old})
        problem(stale, 412, "condition_failed")
        assert (await node.keyspace.get("a")).value == b"2"
        foreign = {"If-Match": '"0123456789abcdef-1"'}
        problem(await client.request(method, "/v1/kv/a", headers=foreign), 412, "other_history")
        fresh = await client.request(method, "/v1/kv/a", headers={"If-Match": new})
        assert fresh.status_code in (200, 204)


async def test_if_none_match_creates_only(serving):
    async with serving() as node, node.client() as client:
        only_new = {"If-None-Match": "*"}
        assert (await client.put("/v1/kv/a", content=b"1", headers=only_new)).status_code == 201
        problem(
            await client.put("/v1/kv/a", content=b"2", headers=only_new), 412, "condition_failed"
        )
        assert (await node.keyspace.get("a")).value == b"1"


async def test_any_record_will_do_for_a_star(serving):
    async with serving() as node, node.client() as client:
        there = {"If-Match": "*"}
        problem(await client.put("/v1/kv/a", content=b"1", headers=there), 412, "condition_failed")
        await client.put("/v1/kv/a", content=b"1")
        assert (await client.put("/v1/kv/a", content=b"2", headers=there)).status_code == 200


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"If-Match": "*", "If-None-Match": "*"}, "conflicting_conditions"),
        ({"If-Match": '"no version"'}, "invalid_version"),
        ({"If-Match": "unquoted-1"}, "bad_request"),
        ({"If-None-Match": '"0123456789abcdef-1"'}, "bad_request"),
    ],
)
async def test_conditions_that_make_no_sense_are_refused(serving, headers, code):
    async with serving() as node, node.client() as client:
        problem(await client.put("/v1/kv/a", content=b"1", headers=headers), 400, code)
        problem(await client.delete("/v1/kv/a", headers=headers), 400, code)
        assert await node.keyspace.count() == 0


async def test_a_reader_who_has_the_version_gets_304(serving):
    async with serving() as node, node.client() as client:
        tag = (await client.put("/v1/kv/a", content=b"1")).headers["etag"]
        for have in (tag, f"W/{tag}", f'"x", {tag}', "*"):
            answer = await client.get("/v1/kv/a", headers={"If-None-Match": have})
            assert (answer.status_code, answer.content) == (304, b"")
            assert answer.headers["etag"] == tag
        await client.put("/v1/kv/a", content=b"2")
        answer = await client.get("/v1/kv/a", headers={"If-None-Match": tag})
        assert (answer.status_code, answer.content) == (200, b"2")


async def test_a_time_to_live_is_kept(serving):
    async with serving() as node, node.client() as client:
        before = wall_clock()
        answer = await client.put("/v1/kv/a?ttl=100.5", content=b"1")
        after = wall_clock()
        assert before + 100_500 <= parse_time(answer.headers["nkv-expires"]) <= after + 100_500
        assert (await client.get("/v1/kv/a")).headers["nkv-expires"] == answer.headers[
            "nkv-expires"
        ]
        await client.put("/v1/kv/a", content=b"1")
        assert "nkv-expires" not in (await client.get("/v1/kv/a")).headers


async def test_an_expiry_is_taken_as_it_is_given(serving):
    async with serving() as node, node.client() as client:
        moment = "2199-01-01T00:00:00.250Z"
        await client.put("/v1/kv/a", params={"expires": moment}, content=b"1")
        assert (await client.get("/v1/kv/a")).headers["nkv-expires"] == moment


@pytest.mark.parametrize("ttl", ["0", "-1", "x", "", "nan", "inf", "1e3", "99999999999999"])
async def test_a_ttl_that_is_no_positive_number_is_refused(serving, ttl):
    async with serving() as node, node.client() as client:
        answer = await client.put("/v1/kv/a", params={"ttl": ttl}, content=b"1")
        problem(answer, 400, "invalid_expiry")
        assert await node.keyspace.count() == 0


async def test_ttl_and_expires_exclude_each_other(serving):
    async with serving() as node, node.client() as client:
        params = {"ttl": "1", "expires": "2199-01-01T00:00:00Z"}
        answer = await client.put("/v1/kv/a", params=params, content=b"1")
        problem(answer, 400, "conflicting_conditions")


# --- keys in paths --------------------------------------------------------------------------------


async def raw_status(node, target, method="GET"):
    peer = await node.connect()
    async with peer.stream:
        await peer.send(f"{method} {target} HTTP/1.1\r\nHost: {node.host}\r\n\r\n".encode())
        status, headers, body = await peer.reply()
        if body and headers["content-type"] == "application/problem+json":
            return status, json.loads(body)["code"]
        return status, body


@pytest.mark.parametrize(
    ("written", "key"),
    [
        ("a%2Fb", "a/b"),
        ("a/b", "a/b"),
        ("a//b", "a//b"),
        ("a/", "a/"),
        ("a+b", "a+b"),
        ("a%2Bb%20c", "a+b c"),
        ("%25", "%"),
        ("...", "..."),
        ("a%3Fb%23c", "a?b#c"),
        ("%D0%BA", "к"),
        ("x/../y", "x/../y"),
        ("%7Bkey%7D", "{key}"),
    ],
)
async def test_keys_are_taken_from_the_path_as_it_was_sent(serving, written, key):
    async with serving() as node:
        await node.keyspace.put(key, key.encode())
        assert await raw_status(node, "/v1/kv/" + written) == (200, key.encode())


@pytest.mark.parametrize(
    "written", ["", "..", ".", "%2E%2E", "%00", "%0A", "%FF", "%C3", "%ED%A0%80", "x" * 513]
)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_what_is_no_key_is_refused_by_name(serving, method, written):
    async with serving() as node:
        target = "/v1/kv/" + written
        assert await raw_status(node, target, method) == (400, "invalid_key")


@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40))
async def test_every_key_can_be_written_and_read(serving, key):
    from urllib.parse import quote

    if key in (".", ".."):
        return
    async with serving() as node:
        peer = await node.connect()
        async with peer.stream:
            target = f"/v1/kv/{quote(key, safe='')} HTTP/1.1\r\nHost: localhost\r\n"
            await peer.send(f"PUT {target}Content-Length: 1\r\n\r\n1".encode())
            assert (await peer.reply())[0] == 201
            assert (await node.keyspace.get(key)).value == b"1"
            await peer.send(f"GET {target}\r\n".encode())
            assert (await peer.reply())[2] == b"1"


# --- lists ----------------------------------------------------------------------------------------


async def test_a_list_has_all_of_each_record(serving):
    async with serving() as node, node.client() as client:
        await client.put("/v1/kv/text?ttl=100", content="é".encode())
        await client.put("/v1/kv/bytes", content=b"\xff")
        document = (await client.get("/v1/kv")).json()
        assert document["after"] is None
        first, second = document["records"]
        assert (first["key"], first["value_base64"]) == ("bytes", "/w==")
        assert "value" not in first
        assert "expires" not in first
        assert (second["key"], second["value"]) == ("text", "é")
        read = await client.get("/v1/kv/text")
        assert f'"{second["version"]}"' == read.headers["etag"]
        assert second["modified"] == read.headers["nkv-modified"]
        assert second["expires"] == read.headers["nkv-expires"]


async def test_pages_follow_each_other(serving):
    async with serving() as node, node.client() as client:
        for index in range(5):
            await node.keyspace.put(f"k{index}", b"")
        found, params = [], {"limit": "2"}
        while True:
            page = (await client.get("/v1/kv", params=params)).json()
            assert len(page["records"]) <= 2
            found += [record["key"] for record in page["records"]]
            if page["after"] is None:
                break
            params["after"] = page["after"]
        assert found == ["k0", "k1", "k2", "k3", "k4"]


async def test_a_pattern_narrows_a_list(serving):
    async with serving() as node, node.client() as client:
        for key in ("a", "a.b", "a.b.c", "b"):
            await node.keyspace.put(key, b"")

        async def keys(pattern):
            page = (await client.get("/v1/kv", params={"pattern": pattern})).json()
            return [record["key"] for record in page["records"]]

        assert await keys("a.*") == ["a.b", "a.b.c"]
        assert await keys("a") == ["a"]
        assert await keys("*") == ["a", "a.b", "a.b.c", "b"]


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"limit": "0"}, "bad_request"),
        ({"limit": "many"}, "bad_request"),
        ({"pattern": ""}, "invalid_pattern"),
        ({"pattern": "\x01"}, "invalid_pattern"),
    ],
)
async def test_a_list_that_cannot_be_is_refused(serving, params, code):
    async with serving() as node, node.client() as client:
        problem(await client.get("/v1/kv", params=params), 400, code)


# --- batches --------------------------------------------------------------------------------------


async def test_a_batch_is_carried_out_together(serving):
    async with serving() as node, node.client() as client:
        await node.keyspace.put("gone", b"1")
        document = {
            "checks": [{"key": "new", "absent": True}],
            "operations": [
                {"op": "put", "key": "new", "value": "é"},
                {"op": "put", "key": "bytes", "value_base64": "/w==", "ttl": 100},
                {"op": "delete", "key": "gone", "if_present": True},
            ],
        }
        answer = await client.post("/v1/batch", json=document)
        assert answer.status_code == 200
        first, _, third = answer.json()["results"]
        tag = (await client.get("/v1/kv/new")).headers["etag"]
        assert (f'"{first["version"]}"', first["existed"]) == (tag, False)
        assert (third["version"], third["existed"]) == (None, True)
        assert (await node.keyspace.get("bytes")).value == b"\xff"
        assert await node.keyspace.get("gone") is None

        problem(await client.post("/v1/batch", json=document), 412, "condition_failed")
        assert await node.keyspace.count() == 2


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"operations": []}',
        b'{"operations": [{"op": "put", "key": "a", "value": "1"}, {"op": "fly"}]}',
        b'{"operations": [{"op": "put", "key": "a", "value": "1"}, {"op": "put", "key": "b"}]}',
        b'{"operations": [{"op": "put", "key": "a", "value": "1", "colour": "red"}]}',
        b"[" * 100_000,
    ],
)
async def test_a_malformed_batch_changes_nothing(serving, body):
    async with serving() as node, node.client() as client:
        json_type = {"Content-Type": "application/json"}
        problem(await client.post("/v1/batch", content=body, headers=json_type), 400, "bad_request")
        assert await node.keyspace.count() == 0


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx"]
)
async def test_a_batch_of_another_type_is_refused(serving, kind):
    async with serving() as node, node.client() as client:
        body = b'{"operations": [{"op": "put", "key": "a", "value": "1"}]}'
        headers = {} if kind is None else {"Content-Type": kind}
        answer = await client.post("/v1/batch", content=body, headers=headers)
        problem(answer, 415, "unsupported_media_type")
        assert await node.keyspace.count() == 0


async def test_the_type_of_a_batch_may_have_parameters(serving):
    async with serving() as node, node.client() as client:
        body = b'{"operations": [{"op": "put", "key": "a", "value": "1"}]}'
        headers = {"Content-Type": "Application/JSON; charset=utf-8"}
        assert (await client.post("/v1/batch", content=body, headers=headers)).status_code == 200


# --- limits ---------------------------------------------------------------------------------------


async def test_a_value_past_the_keyspaces_limit_is_refused(serving):
    limited = KeyspaceSettings(max_value_bytes=10)
    async with serving(keyspace_settings=limited) as node, node.client() as client:
        assert (await client.put("/v1/kv/a", content=b"x" * 10)).status_code == 201
        problem(await client.put("/v1/kv/a", content=b"x" * 11), 413, "value_too_large")


async def test_the_largest_value_can_be_written_and_read(serving):
    async with serving() as node, node.client() as client:
        value = bytes(range(256)) * 4096
        assert (await client.put("/v1/kv/a", content=value)).status_code == 201
        assert (await client.get("/v1/kv/a")).content == value


# --- the node's own paths -------------------------------------------------------------------------


async def test_unknown_paths_and_methods_have_problem_documents(serving):
    async with serving() as node, node.client() as client:
        for path in ("/v1", "/v1/", "/v1/nowhere"):
            problem(await client.get(path), 404, "no_handler")
        answer = await client.post("/v1/kv/a", content=b"1")
        problem(answer, 405, "method_not_allowed")
        assert answer.headers["allow"] == "DELETE, GET, HEAD, PUT"


async def test_the_status_is_the_nodes(serving):
    async with serving() as node, node.client() as client:
        status = (await client.get("/v1/status")).json()
        assert status["name"] == "test"
        assert status["http"]["port"] == node.port
        assert status["http"]["connections"] == 1


async def test_readiness_is_told(serving):
    async with serving() as node, node.client() as client:
        assert (await client.get("/readyz")).json() == {"status": "ok"}
        node.node.ready = False
        answer = await client.get("/readyz")
        problem(answer, 503, "stopping")
        assert answer.headers["retry-after"] == "1"
        assert (await client.get("/livez")).json() == {"status": "ok"}


async def test_metrics_are_what_prometheus_reads(serving):
    from prometheus_client.parser import text_string_to_metric_families

    async with serving() as node, node.client() as client:
        for _ in range(3):
            await client.get("/set?k=a&v=1")
        answer = await client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        families = {each.name: each for each in text_string_to_metric_families(answer.text)}
        (puts,) = [
            sample
            for sample in families["nkv_requests"].samples
            if sample.labels == {"transport": "http", "command": "put", "code": "ok"}
        ]
        assert (puts.name, puts.value) == ("nkv_requests_total", 3)


async def test_openapi_has_every_path_and_the_hot_ones(serving):
    def greet(_request):
        """Say hello.

        At length.
        """

    async with serving() as node, node.client() as client:
        document = (await client.get("/v1/openapi.json")).json()
        assert document["openapi"] == "3.1.0"
        put = document["paths"]["/v1/kv/{key}"]["put"]
        assert {"key", "ttl", "If-Match"} <= {each["name"] for each in put["parameters"]}
        assert set(put["responses"]) >= {"200", "201", "412", "default"}
        assert document["paths"]["/livez"]["get"]["security"] == []
        assert "/hello/{name}" not in document["paths"]

        node.load(lambda handlers: handlers.add("/hello/{name}", greet, ("GET", "POST")))
        document = (await client.get("/v1/openapi.json")).json()
        hello = document["paths"]["/hello/{name}"]
        assert hello["get"]["summary"] == "Say hello."
        assert hello["post"]["tags"] == ["other"]
        registered = {
            (route.path.replace(":path}", "}"), route.method.lower())
            for route in node.dispatcher.routes("http")
        }
        described = {(p, m) for p, methods in document["paths"].items() for m in methods}
        assert described == registered
        ids = [each["operationId"] for path in document["paths"].values() for each in path.values()]
        assert len(set(ids)) == len(ids)
