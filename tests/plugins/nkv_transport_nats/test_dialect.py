"""Every exchange of the dialect, and what is refused."""

import json

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nkv_core.auth import new_token
from nkv_core.config import load_settings
from nkv_core.contracts.identity import Right
from nkv_core.errors import PluginSetupFailed, SettingsError
from nkv_core.events import RequestEnd, RequestStart
from nkv_core.node import Node
from nkv_transport_nats.messages import Call, Malformed, read_request

OK = {"status": 200, "message": "No Error"}
GONE = {"status": 404, "message": "Not Found"}


def update(value):
    return {"Update": {"value": list(value)}}


@pytest.mark.anyio
async def test_a_transcript_of_the_dialect(serving, nats_server, connecting):
    server = nats_server()
    async with serving(server) as node, connecting(server) as client:
        assert await client.ask("Get", "a") == ("Get", {**GONE, "data": []})
        assert await client.ask("Delete", "a") == ("Base", GONE)
        assert await client.ask("Subscribe", "a") == ("Put", {**GONE, "data": []})
        assert await client.ask("Put", "a", b"\x00\xff") == ("Base", OK)
        assert await client.ask("Get", "a") == ("Get", {**OK, "data": [0, 255]})
        assert (await node.keyspace.get("a")).value == b"\x00\xff"
        told = await client.hear("a")
        assert await client.ask("Subscribe", "a") == ("Put", {**OK, "data": list(b"pub-a")})
        await client.until(lambda: told == ["Hello"])
        await client.ask("Put", "a", b"1")
        await client.until(lambda: len(told) == 2)
        await node.keyspace.put("a", b"2")
        await client.until(lambda: len(told) == 3)
        await node.keyspace.touch("a", 2**42)
        await node.keyspace.put("a", b"")
        await client.until(lambda: len(told) == 4)
        assert await client.ask("Delete", "a") == ("Base", OK)
        await client.until(lambda: len(told) == 5)
        assert told == ["Hello", update(b"1"), update(b"2"), update(b""), "Close"]
        assert any(address.startswith("nats://127.0.0.1:") for address in node.addresses)


@pytest.mark.anyio
async def test_a_clear_and_an_expiry_close(serving, shown, nats_server, connecting):
    server = nats_server()
    async with serving(server) as node, connecting(server) as client:
        for key in ("a.b", "c"):
            await node.keyspace.put(key, b"1")
            await client.hear(key)
            await client.ask("Subscribe", key)
        await node.keyspace.clear("a.")
        await client.until(lambda: client.told["a.b"] == ["Hello", "Close"])
        await node.keyspace.touch("c", 1)
        await client.until(lambda: client.told["c"] == ["Hello", "Close"])
        with anyio.fail_after(30):
            while (await shown(node))["subscribed_keys"]:
                await anyio.sleep(0.01)


@pytest.mark.anyio
@pytest.mark.parametrize("key", ["a b", "a..b", "a.", "a*", "a.>"])
async def test_keys_that_no_subject_can_have_are_kept_but_not_subscribed_to(
    serving, nats_server, connecting, key
):
    server = nats_server()
    async with serving(server), connecting(server) as client:
        assert await client.ask("Put", key, b"v") == ("Base", OK)
        assert await client.ask("Get", key) == ("Get", {**OK, "data": list(b"v")})
        assert await client.ask("Subscribe", key) == ("Put", {**GONE, "data": []})


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("verb", "body", "form", "number"),
    [
        ("get", b"", "Get", 0),
        ("get", b"\x00\xff\xfe rubbish", "Get", 0),
        ("put", b'{"type":"Put","id":7,"key":"a"}', "Base", 7),
        ("put", b'{"type":"Put","id":7,"key":"a","value":[256]}', "Base", 7),
        ("put", b'{"type":"Put","id":7,"key":"a","value":"text"}', "Base", 7),
        ("put", b'{"type":"Put","id":7,"value":[1]}', "Base", 7),
        ("put", b'{"type":"Put","id":-1,"key":"a","value":[1]}', "Base", 0),
        ("put", b'{"type":"Put","id":"x","key":"a","value":[1]}', "Base", 0),
        ("put", b'{"type":"Put","id":18446744073709551616,"key":"a","value":[]}', "Base", 0),
        ("get", b'{"type":"Put","id":7,"key":"a","value":[1]}', "Get", 7),
        ("get", b'{"type":"Get","id":7,"key":"a","value":[1]}', "Get", 7),
        ("get", b'{"type":"Get","id":7,"key":"\xff"}', "Get", 7),
        ("put", rb'{"type":"Put","id":7,"key":"\ud800","value":[]}', "Base", 0),
        ("subscribe", b"[" * 100_000, "Put", 0),
        ("delete", b"null", "Base", 0),
    ],
)
async def test_what_cannot_be_read_is_answered_and_changes_nothing(  # noqa: PLR0917
    serving, nats_server, connecting, verb, body, form, number
):
    server = nats_server()
    async with serving(server) as node, connecting(server) as client:
        (answer,) = (await client.raw(verb, body)).items()
        assert answer[0] == form
        assert answer[1]["id"] == number
        assert answer[1]["status"] == 400
        assert answer[1].get("data", []) == []
        assert await node.keyspace.count() == 0
        assert await client.ask("Put", "a", b"1") == ("Base", OK)


@pytest.mark.anyio
@pytest.mark.parametrize("key", ["", "..", "a\n", "x" * 513])
async def test_what_cannot_be_a_key_is_refused(serving, nats_server, connecting, key):
    server = nats_server()
    async with serving(server), connecting(server) as client:
        form, fields = await client.ask("Put", key, b"v")
        assert (form, fields["status"]) == ("Base", 400)
        assert fields["message"] not in ("No Error", "Not Found")


@given(st.binary(max_size=200), st.sampled_from(["get", "put", "delete", "subscribe"]))
def test_any_bytes_are_read_as_something(body, verb):
    assert isinstance(read_request(verb, body), Call | Malformed)


@given(st.integers(0, 2**64 - 1), st.text(st.characters(exclude_categories=["Cs"])), st.binary())
def test_a_request_is_read_as_it_was_written(number, key, value):
    body = {"type": "Put", "id": number, "key": key, "value": list(value)}
    assert read_request("put", json.dumps(body).encode()) == Call("put", number, key, value)


@pytest.mark.anyio
async def test_a_value_that_no_message_can_carry_is_refused_and_left_out(
    serving, shown, nats_server, connecting
):
    server = nats_server()
    async with serving(server) as node, connecting(server) as client:
        await node.keyspace.put("a", b"small")
        told = await client.hear("a")
        await client.ask("Subscribe", "a")
        await client.until(lambda: told == ["Hello"])
        await node.keyspace.put("a", b"\xff" * 1_000_000)  # four characters a byte
        form, fields = await client.ask("Get", "a")
        assert (form, fields["status"], fields["data"]) == ("Get", 413, [])
        with anyio.fail_after(30):
            while not (await shown(node))["left_out_too_large"]:
                await anyio.sleep(0.01)
        await node.keyspace.put("a", b"small again")
        await client.until(lambda: told[1:] == [update(b"small again")])


@pytest.mark.anyio
async def test_the_events_of_requests_fire_as_for_every_transport(serving, nats_server, connecting):
    server, seen = nats_server(), []
    async with serving(server) as node, connecting(server) as client:
        node.on(RequestStart, seen.append)
        node.on(RequestEnd, seen.append)
        await client.ask("Put", "a", b"1")
        await client.ask("Get", "b")
        with anyio.fail_after(30):
            while len(seen) < 4:
                await anyio.sleep(0.01)
    start, end, _, failed = seen
    assert (start.command, start.transport, start.params["key"]) == ("put", "nats", "a")
    assert start.peer == f"nats:127.0.0.1:{server.port}"
    assert end.error is None
    assert failed.error.status == 404


@pytest.mark.anyio
async def test_too_many_requests_and_too_many_keys_are_refused(
    serving, shown, nats_server, connecting
):
    server = nats_server()
    async with serving(server, max_requests=2, max_keys=1) as node, connecting(server) as client:
        await node.keyspace.put("a", b"1")
        await node.keyspace.put("b", b"1")
        assert (await client.ask("Subscribe", "a"))[1]["status"] == 200
        assert (await client.ask("Subscribe", "a"))[1]["status"] == 200
        assert (await client.ask("Subscribe", "b"))[1]["status"] == 503
        await node.keyspace.delete("a")
        with anyio.fail_after(30):
            while (await client.ask("Subscribe", "b"))[1]["status"] != 200:
                await anyio.sleep(0.01)

        release = anyio.Event()
        node.on(RequestStart, lambda _: release.wait())
        statuses = []

        async def put(number):
            statuses.append((await client.ask("Put", f"k{number}", b"1"))[1]["status"])

        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(put, number)
            with anyio.fail_after(30):
                while len(statuses) < 8:
                    await anyio.sleep(0.01)
            assert statuses == [503] * 8
            release.set()
        assert statuses[8:] == [200, 200]
        assert (await shown(node))["refused_requests"] == 8


@pytest.mark.anyio
async def test_where_tokens_are_used_each_request_brings_one_in_its_header(
    serving, nats_server, connecting, flags, tmp_path
):
    token, line = new_token("me", [Right("mine.", read=True, write=True)])
    tokens = tmp_path / "tokens"
    tokens.write_text(line + "\n")
    tokens.chmod(0o600)
    flags["auth.tokens"] = str(tokens)
    server = nats_server()
    mine = {"Nkv-Token": token}
    async with serving(server) as node, connecting(server) as client:
        assert (await client.ask("Put", "mine.a", b"1"))[1]["status"] == 401
        assert (await client.ask("Put", "mine.a", b"1", {"Nkv-Token": "x"}))[1]["status"] == 401
        assert (await client.ask("Put", "mine.a", b"1", mine))[1]["status"] == 200
        assert (await client.ask("Put", "other", b"1", mine))[1]["status"] == 403
        assert (await client.ask("Subscribe", "mine.a", headers=mine))[1]["status"] == 200
        assert (await client.ask("Subscribe", "other", headers=mine))[1]["status"] == 403
        assert await node.keyspace.count() == 1


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"group": "a b"}, "group"),
        ({"servers": ["nats://me:secret@localhost"]}, "no password"),
        ({"max_keys": 0}, "max_keys"),
    ],
)
async def test_settings_that_cannot_be_used_are_refused_by_name(flags, changed, said):
    flags |= {f"transport.nats.{name}": value for name, value in changed.items()}
    with pytest.raises(SettingsError, match=said) as refused:
        async with Node(load_settings(flags=flags)):
            pass
    assert "secret" not in str(refused.value)


def test_a_node_on_trio_is_told_that_this_needs_asyncio(flags):
    flags["node.backend"] = "trio"

    async def serve():
        async with Node(load_settings(flags=flags)):
            pass

    with pytest.raises(PluginSetupFailed, match="nats does not run on trio"):
        anyio.run(serve, backend="trio")
