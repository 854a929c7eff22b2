"""The diskcache storage passes the suite of all storages."""

from nkv_core.testing import StorageContract


class TestDiskcacheStorage(StorageContract):
    plugin = "nkv_storage_diskcache"
    name = "diskcache"

    def settings(self, path):
        return {"directory": str(path)}
