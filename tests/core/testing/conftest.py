"""The plainest storage that keeps the contract, to wrap and to break."""

import threading

import pytest

from nkv_core.contracts.storage import TABLES
from nkv_core.errors import StorageFailed


class PlainStorage:
    """Dicts, sorted whenever order is asked for."""

    reads = "inline"
    writes = "inline"
    durable = False

    def __init__(self):
        self.tables = None
        self.lock = threading.Lock()

    def open(self):
        if self.tables is None:
            self.tables = {table: {} for table in TABLES}

    def close(self):
        with self.lock:
            self.tables = None

    def table(self, name):
        if self.tables is None:
            raise StorageFailed("not open")
        return self.tables[name]

    def get(self, table, key):
        with self.lock:
            return self.table(table).get(key)

    def get_many(self, table, keys):
        with self.lock:
            pairs = self.table(table)
            return {key: pairs[key] for key in keys if key in pairs}

    def apply(self, batch):
        with self.lock:
            for table, writes in batch.writes.items():
                for key, value in writes.items():
                    if value is None:
                        self.table(table).pop(key, None)
                    else:
                        self.table(table)[key] = value

    def keys(self, table, start, stop):
        return [
            key
            for key in sorted(self.table(table))
            if start <= key and (stop is None or key < stop)
        ]

    def scan(self, table, start=b"", stop=None, *, limit, reverse=False):
        with self.lock:
            keys = self.keys(table, start, stop)
            if reverse:
                keys.reverse()
            return [(key, self.table(table)[key]) for key in keys[:limit]]

    def count(self, table):
        with self.lock:
            return len(self.table(table))

    def delete_range(self, table, start, stop):
        with self.lock:
            keys = self.keys(table, start, stop)
            for key in keys:
                del self.table(table)[key]
            return len(keys)


@pytest.fixture
def plain_storage():
    """The class, for tests that break it."""
    return PlainStorage
