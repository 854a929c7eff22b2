"""The storage passes the suite that every storage of nkv passes."""

from nkv_core.testing import StorageContract


class TestSqliteStorage(StorageContract):
    plugin = "nkv_example"
    name = "sqlite"

    def settings(self, path):
        return {"directory": str(path)}
