"""The keyspace of one node: records over a storage, their change log, and who watches it."""

from nkv_core.keyspace.hub import WatchHub
from nkv_core.keyspace.local import LocalKeyspace

__all__ = ["LocalKeyspace", "WatchHub"]
