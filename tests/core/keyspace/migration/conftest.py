"""Migrations that run beside a test, and keyspaces on the machine's own clock."""

from contextlib import asynccontextmanager

import anyio
import pytest

from nkv_core.contracts.settings import KeyspaceSettings
from nkv_core.keyspace.local import LocalKeyspace
from nkv_core.keyspace.migration import Journal, Migration, Place


@pytest.fixture
def start_migration(tmp_path):
    """Starts a migration in a task group, from the storage `one` to `two` unless told otherwise."""

    def start(tasks, keyspace, storage, *, names=("one", "two"), bake=60.0):
        source, target = (Place(name) for name in names)
        migration = Migration(
            keyspace, storage, source=source, target=target, journal=Journal(tmp_path), bake=bake
        )
        tasks.start_soon(migration.run)
        return migration

    return start


@pytest.fixture
def running_keyspace():
    """A keyspace that expires and reclaims as that of a node does."""

    @asynccontextmanager
    async def running(storage, **settings):
        keyspace = LocalKeyspace(
            storage, KeyspaceSettings(sweep_interval=0.02, **settings), node_id=7
        )
        await keyspace.open()
        try:
            async with anyio.create_task_group() as tasks:
                await tasks.start(keyspace.run)
                with anyio.fail_after(60):
                    yield keyspace
                tasks.cancel_scope.cancel()
        finally:
            await keyspace.aclose()

    return running
