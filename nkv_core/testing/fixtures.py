"""Fixtures for the tests of plugins: `pytest_plugins = ["nkv_core.testing"]` in a `conftest.py`.

`node`, `client`, `load_plugin`, `faulty_storage`, `clock`, `keyspace`, and `nkv_settings`, which a
test overrides to have its node set up otherwise.
"""

import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from nkv_core.contracts.settings import KeyspaceSettings
from nkv_core.keyspace import LocalKeyspace
from nkv_core.testing.clock import VirtualClock
from nkv_core.testing.faults import FaultyStorage, remembered
from nkv_core.testing.nodes import DEADLINE, TestNode, node_settings, running
from nkv_core.testing.storage_crash import make_storage

LoadPlugin = Callable[..., str]


@pytest.fixture
def nkv_settings() -> Mapping[str, Any]:
    """Settings of `node` by dotted name, over those that keep it to a folder of the test's own and
    to a free port. Override it.
    """
    return {}


@pytest.fixture
def node(tmp_path: Path, nkv_settings: Mapping[str, Any]) -> Iterator[TestNode]:
    """A whole node that serves on a free port, with the default plugins and a storage in memory."""
    with running({**node_settings(tmp_path), **nkv_settings}) as node:
        yield node


@pytest.fixture
def client(node: TestNode) -> Iterator[httpx2.Client]:
    """An HTTP client of the node."""
    url = next(one.url for one in node.addresses("http"))
    with httpx2.Client(base_url=url, timeout=DEADLINE) as client:
        yield client


@pytest.fixture
def load_plugin(node: TestNode) -> LoadPlugin:
    """`load_plugin(SPEC, **settings)` loads a plugin into the node and returns its name."""
    return lambda spec, **settings: node.load(str(spec), settings or None)


@pytest.fixture
def faulty_storage(tmp_path: Path) -> Iterator[FaultyStorage]:
    """The storage of a node of its own, `faulty_storage.node`, which fails when it is told to."""
    known_as = secrets.token_hex(8)
    settings = {
        **node_settings(tmp_path / "faulty"),
        "plugins.load": ["nkv_core.testing.faulty_plugin"],
        "plugin.faulty_plugin.known_as": known_as,
        "storage.name": "faulty",
    }
    (tmp_path / "faulty").mkdir()
    with running(settings) as node:
        storage = remembered(known_as)
        storage.node = node
        yield storage
        storage.heal()


@pytest.fixture
def clock() -> VirtualClock:
    """The clock of `keyspace`, which stands still until the test moves it."""
    return VirtualClock()


@pytest.fixture
async def keyspace(clock: VirtualClock) -> AsyncIterator[LocalKeyspace]:
    """An empty keyspace in memory, in the test's own event loop, that lives by `clock`."""
    storage = make_storage("nkv_storage_memory", "memory", {})
    settings = KeyspaceSettings(sweep_interval=0.01)
    keyspace = LocalKeyspace(storage, settings, node_id=1, wall=clock)
    await keyspace.open()
    async with anyio.create_task_group() as tasks:
        await tasks.start(keyspace.run)
        yield keyspace
        tasks.cancel_scope.cancel()
    with anyio.CancelScope(shield=True):
        await keyspace.aclose()
