"""What tests of plugins use: a contract suite for each kind of plugin, and parts that fail.

The suites are written for pytest and hypothesis: `pip install 'nkv-core[test]'`.
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
    "oracle",
    "storage_contract",
    "storage_lives",
    "storage_model",
):
    pytest.register_assert_rewrite(f"nkv_core.testing.{_suite}")

from nkv_core.testing.faults import FaultyStorage, Held  # noqa: E402
from nkv_core.testing.keyspace_contract import KeyspaceContract  # noqa: E402
from nkv_core.testing.oracle import Oracle  # noqa: E402
from nkv_core.testing.storage_contract import StorageContract  # noqa: E402

__all__ = [
    "FaultyStorage",
    "Held",
    "KeyspaceContract",
    "Oracle",
    "StorageContract",
]
