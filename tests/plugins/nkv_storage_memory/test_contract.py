"""The memory storage passes the suite of all storages."""

from nkv_core.testing import StorageContract


class TestMemoryStorage(StorageContract):
    plugin = "nkv_storage_memory"
    name = "memory"

    def settings(self, path):
        return {}
