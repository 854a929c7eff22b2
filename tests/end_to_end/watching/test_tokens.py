"""Tokens that cannot be resumed from, over each protocol that takes one."""

import json

import anyio
import httpx2
import pytest

from nkv_core.client import AsyncClient, Changed, Gap, SnapshotEnd, SnapshotStart
from nkv_core.errors import InvalidToken

pytestmark = pytest.mark.anyio


async def over_sse(node, token):
    async with (
        httpx2.AsyncClient(base_url=node.url, timeout=60, trust_env=False) as http,
        http.stream("GET", "/v1/watch", params={"since": token}) as response,
    ):
        if response.status_code != 200:
            return json.loads(await response.aread())["code"]
        told = []
        async for line in response.aiter_lines():
            if line.startswith("event:"):
                told.append(line.removeprefix("event: "))
            elif line.startswith("data:") and told[-1] == "gap":
                told.append(json.loads(line.removeprefix("data: "))["after"])
            if told and told[-1] == "snapshot-end":
                return told
    raise AssertionError(f"ended after {told}")


async def over_websocket(node, token):
    url = node.url.replace("http", "ws") + "/v1/ws"
    request = {"op": "subscribe", "id": 1, "subscription": "s", "pattern": "*", "since": token}
    async with (
        httpx2.AsyncClient(timeout=60, trust_env=False) as http,
        http.websocket(url) as socket,
    ):
        await socket.send_text(json.dumps(request))
        answer = json.loads(await socket.receive_text())
        if "error" in answer:
            return answer["error"]["code"]
        told = []
        while "snapshot-end" not in told:
            message = json.loads(await socket.receive_text())
            told.append(message["event"])
            if message["event"] == "gap":
                told.append(message["data"]["after"])
        return told


NAMES = {Changed: "put", SnapshotEnd: "snapshot-end", Gap: "gap"}


async def over_the_client(node, token):
    told = []
    try:
        async with AsyncClient(node.url) as client, client.watch("*", since=token) as watch:
            async for item in watch:
                if not isinstance(item, SnapshotStart):  # of which the other two have none
                    told.append(NAMES[type(item)])
                if isinstance(item, Gap):
                    told.append(item.after)
                if isinstance(item, SnapshotEnd):
                    return told
    except InvalidToken as error:
        return error.code
    raise AssertionError(f"ended after {told}")


WAYS = {"sse": over_sse, "websocket": over_websocket, "client": over_the_client}


async def token_of(node):
    async with httpx2.AsyncClient(base_url=node.url, timeout=60, trust_env=False) as http:
        (await http.put("/v1/kv/a", content=b"1")).raise_for_status()
        return (await http.get("/v1/status")).json()["token"]


async def test_a_token_of_another_node_or_history_is_a_gap_and_a_snapshot(serve, tmp_path):
    node, other = serve(), serve(data_dir=tmp_path / "other")
    ours, theirs = await token_of(node), await token_of(other)
    assert ours.split(".")[0] == theirs.split(".")[0]
    assert ours != theirs
    # A history that nobody has ever had.
    for token in (theirs, f"{ours.split('.')[0]}.{'0' * 16}.12345"):
        for name, watch in WAYS.items():
            with anyio.fail_after(60):
                assert await watch(node, token) == ["gap", token, "put", "snapshot-end"], name


async def test_a_token_that_is_malformed_or_ahead_is_refused(serve):
    node = serve()
    form, history, revision = (await token_of(node)).split(".")
    for token in (
        "rubbish",
        f"{history}.{revision}",
        f"{int(form) + 1}.{history}.{revision}",
        f"{form}.{history}.",
        f"{form}.{history}.-1",
        f"{form}.{history}.1x",
        f"{form}.{history[:-1]}.{revision}",
        f"{form}.{history.upper()}x.{revision}",
        f"{form}.{history}.{10**30}",
        f"{form}.{history}.\u0661",
        f"{form}.{history}.{int(revision) + 1}",
        f"{form}.{history}.{2**62}",
    ):
        for name, watch in WAYS.items():
            with anyio.fail_after(60):
                assert await watch(node, token) == "invalid_token", (name, token)
