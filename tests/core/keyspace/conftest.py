"""Storages that outlive their closing, a clock that the test moves, and keyspaces that run."""

from contextlib import asynccontextmanager

import anyio
import pytest

from nkv_core.contracts.settings import KeyspaceSettings
from nkv_core.keyspace.local import LocalKeyspace
from nkv_core.testing import FaultyStorage

NODE = 0x1D
T0 = 1_800_000_000_000


class KeptStorage(FaultyStorage):
    """One in memory whose content stays when it is closed: a disk, as far as a keyspace can see."""

    def __init__(self, **where):
        from nkv_storage_memory.storage import MemoryStorage

        super().__init__(MemoryStorage(), **where)
        self.inside.open()

    def open(self):
        self.opened = True

    def close(self):
        self.opened = False


class Wall:
    """A wall clock that stands still until it is moved."""

    def __init__(self, now=T0):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def wall():
    return Wall()


@pytest.fixture
def kept_storage():
    """Makes storages in memory that stay; `writes` and `reads` say where they run."""
    pytest.importorskip("nkv_storage_memory")
    return KeptStorage


@pytest.fixture
def disk_storage():
    """Makes storages on a disk, in the folder given."""
    module = pytest.importorskip("nkv_storage_diskcache")
    pytest.importorskip("diskcache")

    def make(path):
        settings = module.nkv_settings()(directory=str(path))
        return module.nkv_storage("diskcache", settings)

    return make


@pytest.fixture
def open_keyspace(wall):
    """Opens a keyspace over a storage; in the background only its deadlines are watched."""

    @asynccontextmanager
    async def opened(storage, *, node_id=NODE, run=False, **settings):
        keyspace = LocalKeyspace(storage, KeyspaceSettings(**settings), node_id=node_id, wall=wall)
        await keyspace.open()
        try:
            async with anyio.create_task_group() as tasks:
                if run:
                    await tasks.start(keyspace.run)
                yield keyspace
                tasks.cancel_scope.cancel()
        finally:
            await keyspace.aclose()

    return opened


@pytest.fixture(params=["inline", "writes", "both"])
def storage(request, kept_storage):
    """One in memory, driven inline, with writes in a thread, and with everything in threads."""
    if request.param == "inline":
        return kept_storage()
    reads = "thread" if request.param == "both" else "inline"
    return kept_storage(writes="thread", reads=reads)
