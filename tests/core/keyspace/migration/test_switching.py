"""A keyspace is moved to another storage while it is written, read and watched."""

from contextlib import asynccontextmanager

import anyio
import pytest

from nkv_core.keyspace.migration import Journal, Migration, Place
from nkv_core.records import Token

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def migrating(keyspace, storage, folder, *, bake=60.0):
    migration = Migration(
        keyspace,
        storage,
        source=Place("one"),
        target=Place("two"),
        journal=Journal(folder),
        bake=bake,
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(migration.run)
        with anyio.fail_after(60):
            await migration.switched.wait()
            yield migration
        tasks.cancel_scope.cancel()


async def test_everything_is_there_behind_the_switch(kept_storage, open_keyspace, tmp_path):
    source, target = kept_storage(), kept_storage()
    async with open_keyspace(source) as keyspace:
        place = keyspace.token
        versions = {}
        for number in range(100):
            versions[f"k{number}"] = (await keyspace.put(f"k{number}", b"%d" % number)).revision
        await keyspace.delete("k7")
        await keyspace.touch("k8", 1_900_000_000_000)
        await keyspace.state("plugin").put("cursor", b"1")
        before = keyspace.token
        async with migrating(keyspace, target, tmp_path) as migration:
            assert migration.progress.error is None
            assert keyspace.storage is target
            assert keyspace.token == before
            assert (await keyspace.get("k5")).revision == versions["k5"]
            assert await keyspace.get("k7") is None
            assert (await keyspace.get("k8")).expires == 1_900_000_000_000
            assert await keyspace.state("plugin").get("cursor") == b"1"
            page = await keyspace.changes(place)
            assert [change.revision for change in page.changes] == list(range(1, 103))
            assert not page.gap
            assert (await keyspace.put("new", b"1")).revision == before.revision + 1
            assert (await keyspace.changes(before)).token == Token(
                before.history, before.revision + 1
            )
            await migration.decide("commit")
        assert not source.opened
        assert Journal(tmp_path).read().in_charge == Place("two")
