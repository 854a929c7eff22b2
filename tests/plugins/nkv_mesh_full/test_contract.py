"""The keyspace of a mesh passes the suite of all keyspaces."""

import importlib
import logging
from types import SimpleNamespace

import anyio
import pytest

from nkv_core.contracts.keyspace import Delete, Put
from nkv_core.contracts.settings import KeyspaceSettings
from nkv_core.errors import NotAcknowledged
from nkv_core.keyspace import LocalKeyspace
from nkv_core.testing import KeyspaceContract
from nkv_mesh_full.core import Core
from nkv_mesh_full.keyspace import MeshKeyspace
from nkv_mesh_full.members import Members
from nkv_mesh_full.messages import Rumour
from nkv_mesh_full.settings import FullSettings
from nkv_mesh_full.store import Store


def enclosed(within, **settings):
    """A mesh around a keyspace, of this node alone."""
    given = FullSettings(**settings)
    members = Members(
        Rumour(1, "127.0.0.1:1", "", "", 1), suspect_after=2, down_after=4, forget_after=100
    )
    context = SimpleNamespace(log=logging.getLogger("test"))
    core = Core(context, within, given, boot=b"1", members=members, store=Store(None))
    mesh = MeshKeyspace(given)
    mesh._begin(core)
    return mesh


@pytest.fixture
async def within():
    plugin = importlib.import_module("nkv_storage_memory")
    storage = plugin.nkv_storage("memory", plugin.nkv_settings()())
    keyspace = LocalKeyspace(storage, KeyspaceSettings(sweep_interval=0.05), node_id=1)
    await keyspace.open()
    async with anyio.create_task_group() as tasks:
        await tasks.start(keyspace.run)
        yield keyspace
        tasks.cancel_scope.cancel()
    with anyio.CancelScope(shield=True):
        await keyspace.aclose()


class TestFullMesh(KeyspaceContract):
    @pytest.fixture
    async def keyspace(self, within):
        return enclosed(within)


class TestFullMeshThatAcknowledges(KeyspaceContract):
    """One that waits for all nodes of the mesh, of which there is one."""

    @pytest.fixture
    async def keyspace(self, within):
        return enclosed(within, acknowledge="all")


@pytest.mark.anyio
async def test_conditions_hold_on_one_node(within):
    assert enclosed(within).capabilities.compare_and_set == "local"


@pytest.mark.anyio
async def test_what_does_not_wait_is_acknowledged_too(within):
    mesh = enclosed(within, acknowledge="majority", acknowledge_deadline=0.05)
    assert (await mesh.write_now(Put("a", b"1"))).revision == 1
    assert await mesh.transact_now(lambda view: view.put("b", b"1").revision, ["b"]) == 2
    assert mesh.get_now("a").value == b"1"
    mesh._core.members.learn([Rumour(2, "127.0.0.1:2", "", "", 1)], 3)
    with pytest.raises(NotAcknowledged, match="1 of 2 nodes"):
        await mesh.write_now(Delete("a"))
    assert mesh.get_now("a") is None
    with pytest.raises(NotAcknowledged, match="1 of 2 nodes"):
        await mesh.transact_now(lambda view: view.put("b", b"2"), ["b"])
    assert await mesh.transact_now(lambda view: view.get("b").value, ["b"]) == b"2"
