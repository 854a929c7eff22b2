"""The local keyspace passes the suite of keyspaces, over storages of every kind."""

import pytest

from nkv_core.testing import KeyspaceContract


class WithWall(KeyspaceContract):
    """The clock is the test's."""

    @pytest.fixture(autouse=True)
    def _wall(self, wall):
        self.wall = wall

    def now(self):
        return self.wall()

    async def pass_time(self, milliseconds):
        self.wall.now += milliseconds


class TestOverMemory(WithWall):
    @pytest.fixture
    async def keyspace(self, storage, open_keyspace):
        async with open_keyspace(storage, run=True, sweep_interval=0.01) as keyspace:
            yield keyspace


class TestOverDisk(WithWall):
    @pytest.fixture
    async def keyspace(self, disk_storage, open_keyspace, tmp_path):
        storage = disk_storage(tmp_path)
        async with open_keyspace(storage, run=True, sweep_interval=0.01) as keyspace:
            yield keyspace
