"""Whatever goes wrong before the switch, the storage in charge serves on and nothing is left."""

import anyio
import pytest

from nkv_core.contracts.storage import Batch
from nkv_core.errors import DataDirError, MigrationFailed, NoMigration
from nkv_core.keyspace.layout import META_FENCE
from nkv_core.keyspace.local import LocalKeyspace
from nkv_core.keyspace.migration import Journal, migration, verifying
from nkv_core.keyspace.migration.following import Follower

pytestmark = pytest.mark.anyio

RECORDS = 300


async def filled(keyspace):
    for number in range(RECORDS):
        await keyspace.put(f"k{number:03}", b"%d" % number)


async def serves_on(keyspace, source, folder):
    """The storage of before is in charge, and takes writes as if nothing had been."""
    assert keyspace.storage is source
    assert (await keyspace.get("k007")).value == b"7"
    assert (await keyspace.put("later", b"1")).revision is not None
    assert source.get("meta", META_FENCE) is None
    assert Journal(folder).read() is None


async def test_a_target_that_hangs(
    kept_storage, running_keyspace, start_migration, tmp_path, monkeypatch
):
    monkeypatch.setattr(migration, "_STUCK", 0.2)
    monkeypatch.setattr(migration, "_CLOSE_DEADLINE", 0.2)
    source, target = kept_storage(), kept_storage(writes="thread")
    async with running_keyspace(source) as keyspace, anyio.create_task_group() as tasks:
        await filled(keyspace)
        monkeypatch.setattr(migration, "copy_all", held_copy(target, migration.copy_all))
        moved = start_migration(tasks, keyspace, target)
        await moved.over.wait()
        assert moved.progress.phase == "failed"
        assert "at one write" in moved.progress.error.detail
        await serves_on(keyspace, source, tmp_path)


def held_copy(target, copy):
    async def copy_all(follower, copied):
        with target.hold():
            await copy(follower, copied)

    return copy_all


async def test_barrier_timeout_keeps_old(
    kept_storage, running_keyspace, start_migration, tmp_path, monkeypatch
):
    monkeypatch.setattr(migration, "BARRIER", 0.02)
    monkeypatch.setattr(migration, "_BARRIERS", 3)
    source = kept_storage()
    async with running_keyspace(source) as keyspace, anyio.create_task_group() as tasks:
        await filled(keyspace)

        async def never(self):
            await anyio.sleep_forever()

        monkeypatch.setattr(Follower, "caught_up", never)
        moved = start_migration(tasks, keyspace, kept_storage(writes="thread"))
        while moved.progress.barriers < 1:
            await anyio.sleep(0.001)
        for number in range(20):
            await keyspace.put(f"meanwhile{number}", b"1")
        await moved.over.wait()
        assert moved.progress.barriers == 3
        assert "could not be held up" in moved.progress.error.detail
        await serves_on(keyspace, source, tmp_path)


@pytest.mark.parametrize("nth", [1, 2])
async def test_a_journal_that_cannot_be_written(  # noqa: PLR0917
    kept_storage, running_keyspace, start_migration, tmp_path, monkeypatch, nth
):
    written, write = [], Journal.write

    def failing(self, entry):
        written.append(entry)
        if len(written) == nth:
            raise OSError(28, "No space left on device")
        write(self, entry)

    monkeypatch.setattr(Journal, "write", failing)
    source = kept_storage()
    async with running_keyspace(source) as keyspace, anyio.create_task_group() as tasks:
        await filled(keyspace)
        moved = start_migration(tasks, keyspace, kept_storage())
        await moved.over.wait()
        assert moved.progress.phase == "failed"
        assert "No space left" in moved.progress.error.detail
        await serves_on(keyspace, source, tmp_path)


async def test_a_target_with_data_of_its_own_is_refused_untouched(
    kept_storage, running_keyspace, start_migration, tmp_path
):
    source, target = kept_storage(), kept_storage()
    async with running_keyspace(target) as other:
        await other.put("precious", b"1")
    async with running_keyspace(source) as keyspace, anyio.create_task_group() as tasks:
        await filled(keyspace)
        moved = start_migration(tasks, keyspace, target)
        await moved.over.wait()
        assert isinstance(moved.progress.error, DataDirError)
        await serves_on(keyspace, source, tmp_path)
    async with running_keyspace(target) as other:
        assert (await other.get("precious")).value == b"1"


async def test_it_can_be_called_off_before_the_switch(
    kept_storage, running_keyspace, start_migration, tmp_path, monkeypatch
):
    source, target = kept_storage(), kept_storage()
    verifying_now = anyio.Event()

    async def long(follower, compared):
        verifying_now.set()
        await anyio.sleep_forever()

    monkeypatch.setattr(migration, "verify", long)
    async with running_keyspace(source) as keyspace, anyio.create_task_group() as tasks:
        await filled(keyspace)
        moved = start_migration(tasks, keyspace, target)
        await verifying_now.wait()
        with pytest.raises(NoMigration):
            await moved.decide("commit")
        await moved.decide("rollback")
        assert moved.progress.phase == "rolled_back"
        assert moved.progress.error is None
        assert not target.opened
        await serves_on(keyspace, source, tmp_path)
        with pytest.raises(NoMigration):
            await moved.decide("rollback")


async def test_what_is_left_is_not_taken_for_the_latest_but_may_be_migrated_to(
    kept_storage, running_keyspace, start_migration
):
    source, target = kept_storage(), kept_storage()
    async with running_keyspace(source) as keyspace, anyio.create_task_group() as tasks:
        await filled(keyspace)
        moved = start_migration(tasks, keyspace, target)
        await moved.switched.wait()
        await keyspace.put("late", b"1")
        await moved.decide("commit")
        assert target.get("meta", META_FENCE) is None
        with pytest.raises(DataDirError, match="left behind"):
            await LocalKeyspace(source, keyspace.settings, node_id=7).open()
        back = start_migration(tasks, keyspace, source, names=("two", "one"))
        await back.switched.wait()
        assert back.progress.error is None
        assert keyspace.storage is source
        assert (await keyspace.get("late")).value == b"1"
        await back.decide("commit")


async def test_what_the_target_has_got_wrong_is_put_right(
    kept_storage, running_keyspace, start_migration, monkeypatch
):
    source, target = kept_storage(), kept_storage()
    whole = migration.verify

    async def tampered(follower, compared):
        batch = Batch()
        batch.delete("records", b"k001")
        batch.put("records", b"k002", target.get("records", b"k003"))
        batch.put("records", b"k999", target.get("records", b"k003"))
        target.inside.apply(batch)
        return await whole(follower, compared)

    monkeypatch.setattr(migration, "verify", tampered)
    async with running_keyspace(source) as keyspace, anyio.create_task_group() as tasks:
        await filled(keyspace)
        before = (await keyspace.scan()).records
        moved = start_migration(tasks, keyspace, target)
        await moved.switched.wait()
        assert moved.progress.repaired == 3
        assert keyspace.storage is target
        assert (await keyspace.scan()).records == before
        await moved.decide("commit")


async def test_too_many_differences_are_not_put_right(
    kept_storage, running_keyspace, start_migration, monkeypatch, tmp_path
):
    source, target = kept_storage(), kept_storage()
    whole = migration.verify
    monkeypatch.setattr(verifying, "MOST_DIFFERENT", 10)

    async def tampered(follower, compared):
        target.inside.delete_range("records", b"", b"k100")
        return await whole(follower, compared)

    monkeypatch.setattr(migration, "verify", tampered)
    async with running_keyspace(source) as keyspace, anyio.create_task_group() as tasks:
        await filled(keyspace)
        moved = start_migration(tasks, keyspace, target)
        await moved.over.wait()
        assert isinstance(moved.progress.error, MigrationFailed)
        assert "100 records differ" in moved.progress.error.detail
        await serves_on(keyspace, source, tmp_path)
