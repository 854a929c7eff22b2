"""The fixtures for the tests of plugins."""

# ruff: noqa: F811  # fixtures are imported, and asked for by name

from concurrent.futures import CancelledError

import anyio
import pytest

from nkv_core.errors import PluginSetupFailed, StorageFailed
from nkv_core.events import RequestEnd
from nkv_core.testing import (  # noqa: F401  # fixtures
    client,
    clock,
    eventually,
    faulty_storage,
    keyspace,
    load_plugin,
    nkv_settings,
    node,
    running,
)
from nkv_core.testing.nodes import OTHERS, in_background, node_settings


def plugin(tmp_path, source):
    path = tmp_path / "mine.py"
    path.write_text(source)
    return path


HELLO = """
from nkv_core import hookimpl

@hookimpl
def nkv_handlers(handlers):
    handlers.add("/hello", lambda request: {"hello": "there"})
"""


def test_a_node_serves_a_client(node, client):
    node.put("a", b"1")
    assert client.get("/v1/kv/a").content == b"1"
    assert eventually(lambda: node.seen(RequestEnd))[0].error is None
    node.delete("a")
    assert node.get("a") is None


def test_a_plugin_is_loaded_into_it_replaced_and_unloaded(tmp_path, load_plugin, node, client):
    name = load_plugin(plugin(tmp_path, HELLO))
    assert client.get("/hello").json() == {"hello": "there"}
    plugin(tmp_path, HELLO.replace("there", "again"))
    assert node.replace(name) == 2
    assert client.get("/hello").json() == {"hello": "again"}
    node.unload(name)
    assert client.get("/hello").status_code == 404
    assert node.states(name) == []
    assert node.leaked() == []


def test_what_holds_a_generation_is_named(tmp_path, load_plugin, node, client):
    name = load_plugin(plugin(tmp_path, HELLO))
    held = node.in_loop(lambda: node.inside.node._dispatcher.routes("http")[-1].target)
    node.unload(name)
    eventually(node.leaked)
    assert node.leaked()[0].startswith("mine is held by ")
    assert held is not None


class TestSettings:
    @pytest.fixture
    def nkv_settings(self):
        return {"keyspace.max_value_bytes": 10}

    def test_a_test_sets_its_node_up(self, client):
        assert client.put("/v1/kv/a", content=b"x" * 11).status_code == 413


def test_a_storage_fails_when_it_is_told_to(faulty_storage):
    node = faulty_storage.node
    node.put("a", b"1")
    faulty_storage.fail_next()
    with pytest.raises(StorageFailed):
        node.put("a", b"2")
    node.put("b", b"1")
    assert (node.get("a"), node.get("b"), faulty_storage.failed) == (b"1", b"1", 1)


@pytest.mark.anyio
async def test_a_keyspace_lives_by_a_clock_of_its_own(keyspace, clock):
    await keyspace.put("a", b"1", expires=clock.now + 1000)
    clock.advance(0.999)
    assert (await keyspace.get("a")).value == b"1"
    clock.advance(0.001)
    assert await keyspace.get("a") is None


def test_an_error_in_the_block_is_raised_as_it_is(tmp_path):
    with (
        pytest.raises(PluginSetupFailed, match="only on asyncio"),
        running(
            node_settings(tmp_path, node__backend="trio", plugins__disable=list(OTHERS))
        ) as node,
    ):
        node.load("nkv_transport_resp", {"port": 0})


def test_a_call_that_does_not_end_holds_nobody_up(tmp_path):
    with running(node_settings(tmp_path)) as node:
        call = in_background(node.inside.call, anyio.sleep_forever)
        eventually(lambda: node.in_loop(lambda: True))
    assert isinstance(call.exception(30), CancelledError)


def test_what_does_not_happen_is_named():
    with pytest.raises(AssertionError, match=r"a miracle did not happen within 0\.02 s"):
        eventually(lambda: False, "a miracle", 0.02)
