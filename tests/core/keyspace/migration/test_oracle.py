"""Clients go on while the storage is exchanged below them, and an oracle finds nothing wrong."""

import os

import anyio
import pytest

from nkv_core.errors import StorageFailed, StorageFull
from nkv_core.testing import Oracle

SEEDS = range(20) if os.environ.get("NKV_SOAK") == "1" else [1]
FAULTS = 0.01
FIRST_COPIED = 10  # of all writes to a target, those before it are made while it is opened

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("seed", SEEDS)]


async def until(condition):
    while not condition():
        await anyio.sleep(0.002)


async def step_further(oracle, steps=200):
    before = oracle.steps
    await until(lambda: oracle.steps >= before + steps)


@pytest.mark.parametrize("faults", [0.0, FAULTS], ids=["sound", "faulty"])
async def test_from_storage_to_storage(
    kept_storage, running_keyspace, start_migration, seed, faults
):
    inline, threads = {}, {"writes": "thread", "reads": "thread"}
    async with running_keyspace(kept_storage(**inline)) as keyspace:
        oracle = Oracle(keyspace, seed)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(oracle.run)
            await step_further(oracle)
            for number, kind in enumerate([{"writes": "thread"}, inline, threads]):
                target = kept_storage(**kind)
                target.fail_randomly(faults, seed)
                names = (f"storage{number}", f"storage{number + 1}")
                migration = start_migration(tasks, keyspace, target, names=names)
                await migration.switched.wait()
                assert migration.progress.error is None
                assert keyspace.storage is target
                target.heal()
                await step_further(oracle)
                await migration.decide("commit")
                await step_further(oracle)
            oracle.stop()
        await oracle.check()
        assert oracle.unknown == 0
        if not faults:
            assert oracle.refused == 0


async def test_rollback_in_bake_keeps_new_writes(
    kept_storage, running_keyspace, start_migration, seed
):
    source = kept_storage()
    async with running_keyspace(source) as keyspace:
        oracle = Oracle(keyspace, seed)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(oracle.run)
            await step_further(oracle)
            for _ in range(3):
                migration = start_migration(tasks, keyspace, kept_storage(writes="thread"))
                await migration.switched.wait()
                await step_further(oracle)
                await migration.decide("rollback")
                assert keyspace.storage is source
                await step_further(oracle)
            oracle.stop()
        await oracle.check()
        assert (oracle.refused, oracle.unknown) == (0, 0)


async def test_the_target_fails_for_good(kept_storage, running_keyspace, start_migration, seed):
    source = kept_storage(writes="thread")
    async with running_keyspace(source) as keyspace:
        oracle = Oracle(keyspace, seed)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(oracle.run)
            await step_further(oracle, 1000)
            for error in (StorageFull("It is full."), StorageFailed("It is dead.")):
                target = kept_storage(writes="thread")
                for nth in range(FIRST_COPIED, 1000):
                    target.fail_nth(nth, error)
                migration = start_migration(tasks, keyspace, target)
                await migration.over.wait()
                assert migration.progress.phase == "failed"
                assert migration.progress.error.code == "migration_failed"
                assert keyspace.storage is source
                await step_further(oracle)
            oracle.stop()
        await oracle.check()
        assert (oracle.refused, oracle.unknown) == (0, 0)


async def test_the_new_storage_fails_while_it_bakes(
    kept_storage, running_keyspace, start_migration, seed
):
    source = kept_storage(writes="thread")
    async with running_keyspace(source) as keyspace:
        oracle = Oracle(keyspace, seed)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(oracle.run)
            await step_further(oracle)
            target = kept_storage(writes="thread")
            migration = start_migration(tasks, keyspace, target)
            await migration.switched.wait()
            assert keyspace.storage is target
            await step_further(oracle)
            target.fail_always()
            await migration.over.wait()
            assert migration.progress.phase == "rolled_back"
            assert keyspace.storage is source
            await step_further(oracle)
            oracle.stop()
        await oracle.check()
        assert oracle.refused > 0
