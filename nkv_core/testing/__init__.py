"""What tests of plugins use: a contract suite for each kind of plugin, fixtures, parts that fail.

The suites are written for pytest and hypothesis: `pip install 'nkv-core[test]'`. As a plugin of
pytest (`pytest_plugins = ["nkv_core.testing"]`) it gives the fixtures of the module `fixtures`.
"""

try:
    import hypothesis  # noqa: F401
    import pytest
except ImportError as error:
    raise ImportError(
        f"nkv_core.testing needs {error.name}: pip install 'nkv-core[test]'", name=error.name
    ) from error

for _suite in (
    "keyspace_contract",
    "keyspace_streams",
    "keyspace_suite",
    "merger_contract",
    "mesh_contract",
    "notifier_contract",
    "oracle",
    "storage_contract",
    "storage_lives",
    "storage_model",
    "transport_contract",
):
    pytest.register_assert_rewrite(f"nkv_core.testing.{_suite}")

from nkv_core.testing.clock import VirtualClock  # noqa: E402
from nkv_core.testing.faults import FaultyStorage, Held  # noqa: E402
from nkv_core.testing.fixtures import (  # noqa: E402
    client,
    clock,
    faulty_storage,
    keyspace,
    load_plugin,
    nkv_settings,
    node,
)
from nkv_core.testing.keyspace_contract import KeyspaceContract  # noqa: E402
from nkv_core.testing.merger_contract import MergerContract  # noqa: E402
from nkv_core.testing.mesh_contract import MeshContract  # noqa: E402
from nkv_core.testing.nodes import TestNode, eventually, running  # noqa: E402
from nkv_core.testing.notifier_contract import NotifierContract, Receiver, Told  # noqa: E402
from nkv_core.testing.oracle import Oracle  # noqa: E402
from nkv_core.testing.storage_contract import StorageContract  # noqa: E402
from nkv_core.testing.transport_contract import TransportContract  # noqa: E402

__all__ = [
    # a suite for each kind of plugin
    "StorageContract",
    "TransportContract",
    "NotifierContract",
    "Receiver",
    "Told",
    "MeshContract",
    "MergerContract",
    "KeyspaceContract",
    # parts
    "FaultyStorage",
    "Held",
    "Oracle",
    "TestNode",
    "VirtualClock",
    "eventually",
    "running",
    # fixtures
    "client",
    "clock",
    "faulty_storage",
    "keyspace",
    "load_plugin",
    "nkv_settings",
    "node",
]
