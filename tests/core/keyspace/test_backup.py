"""Backup and restore of a keyspace."""

import importlib
import io
import os
import random
import stat
from contextlib import asynccontextmanager

import anyio
import pytest

from nkv_core.contracts.keyspace import Clear, Delete, Put
from nkv_core.contracts.settings import KeyspaceSettings
from nkv_core.errors import (
    BadRequest,
    ConditionFailed,
    DataDamaged,
    NewerFormat,
    Overloaded,
    StorageFull,
    ValueTooLarge,
)
from nkv_core.keyspace import LocalKeyspace
from nkv_core.keyspace.backup import save_backup, write_backup
from nkv_core.keyspace.restoring import examine_backup, restore_backup
from nkv_core.records import Record, Token, Tombstone

pytestmark = pytest.mark.anyio

NOW = 1_800_000_000_000


class Clock:
    def __init__(self):
        self.now = NOW

    def __call__(self):
        return self.now


@pytest.fixture(params=["memory", "diskcache"])
def storage_factory(request, tmp_path):
    package = f"nkv_storage_{request.param}"
    if request.param == "diskcache":
        pytest.importorskip("diskcache")
    plugin = importlib.import_module(package)
    numbers = iter(range(100))

    def make():
        given = {"directory": str(tmp_path / str(next(numbers)))} if "disk" in package else {}
        return plugin.nkv_storage(request.param, plugin.nkv_settings()(**given))

    return make


@pytest.fixture
def open_keyspace(storage_factory):
    @asynccontextmanager
    async def opened(*, node_id=1, wall=None, **settings):
        keyspace = LocalKeyspace(
            storage_factory(), KeyspaceSettings(**settings), node_id=node_id, wall=wall or Clock()
        )
        await keyspace.open()
        try:
            yield keyspace
        finally:
            await keyspace.aclose()

    return opened


async def all_records(keyspace):
    found, after = {}, None
    while True:
        page = await keyspace.scan(after=after)
        for record in page.records:
            found[record.key] = (record.value, record.modified, record.origin, record.expires)
        after = page.after
        if after is None:
            return found


class Model:
    """What there was at a revision, by the changes that were told."""

    def __init__(self, keyspace):
        self._changes = []
        keyspace.tail(self._changes.extend)

    def at(self, token):
        records = {}
        for change in self._changes:
            if change.revision > token.revision:
                break
            if change.kind == "delete":
                records.pop(change.key, None)
            elif change.kind == "clear":
                records = {k: v for k, v in records.items() if not k.startswith(change.key)}
            else:
                records[change.key] = (
                    change.value,
                    change.modified,
                    change.origin,
                    change.expires,
                )
        return records


def some_writes(chance, count):
    """Writes of every kind, all over the keys."""
    for _ in range(count):
        key = f"k.{chance.randrange(40)}.{chance.randrange(50)}"
        what = chance.random()
        if what < 0.6:
            expires = None if chance.random() < 0.7 else NOW + chance.randrange(1, 10**6)
            yield Put(key, chance.randbytes(chance.randrange(60)), expires)
        elif what < 0.95:
            yield Delete(key)
        else:
            yield Clear(key.rpartition(".")[0] + ".")


async def backed_up(keyspace, **options):
    file = io.BytesIO()
    summary = await write_backup(keyspace, file, **options)
    assert summary.bytes == len(file.getvalue())
    file.seek(0)
    return file, summary


# --- what comes back ------------------------------------------------------------------------------


async def test_everything_comes_back_in_a_history_of_its_own(open_keyspace):
    async with open_keyspace() as keyspace, open_keyspace(node_id=2) as target:
        await keyspace.put("text", "größe".encode())
        await keyspace.put("bytes", bytes(range(256)), expires=NOW + 5000)
        await keyspace.put("empty", b"")
        await keyspace.put("gone", b"1")
        await keyspace.delete("gone")
        await keyspace.put("below.a", b"1")
        await keyspace.clear("below.")
        await keyspace.apply_foreign([Record("foreign", b"2", 9, NOW << 16, 77, NOW + 9000)])
        await keyspace.state("plugin").put("cursor", b"\x00\xff")
        file, summary = await backed_up(keyspace, node_id=1)
        contents = await restore_backup(target, file)

        assert summary.records == contents.records == 4
        assert contents.head.node_id == 1
        assert contents.end.token == summary.token == str(keyspace.token)
        assert await all_records(target) == await all_records(keyspace)
        assert target.history != keyspace.history
        assert await target.state("plugin").items() == [("cursor", b"\x00\xff")]
        # What was deleted stays so: an older copy from elsewhere does not get in.
        old = Record("gone", b"old", 1, 5, 5)
        cleared = Record("below.b", b"old", 2, 5, 5)
        assert await target.apply_foreign([old, cleared]) == 0


async def test_an_empty_keyspace_can_be_backed_up(open_keyspace):
    async with open_keyspace() as keyspace, open_keyspace() as target:
        file, summary = await backed_up(keyspace)
        await restore_backup(target, file)
        assert summary.records == 0
        assert await all_records(target) == {}


@pytest.mark.parametrize("seed", range(5))
async def test_a_backup_is_what_there_was_at_its_revision_while_others_write(open_keyspace, seed):
    chance = random.Random(seed)
    async with open_keyspace() as keyspace, open_keyspace() as target:
        model = Model(keyspace)
        await keyspace.batch([Put(f"k.{a}.{b}", b"first") for a in range(40) for b in range(50)])
        steps = 0

        async def write_between_pages(_):
            nonlocal steps
            steps += 1
            for one in some_writes(chance, 40):
                await keyspace.batch([one])

        file, summary = await backed_up(keyspace, progress=write_between_pages)
        assert steps >= 3
        await restore_backup(target, file)
        assert await all_records(target) == model.at(Token.parse(summary.token))


@pytest.mark.parametrize("seed", range(3))
async def test_a_backup_is_what_there_was_under_many_writers(open_keyspace, seed):
    async with open_keyspace() as keyspace, open_keyspace() as target:
        model = Model(keyspace)
        await keyspace.batch([Put(f"k.{a}.{b}", b"first") for a in range(40) for b in range(50)])
        await keyspace.batch([Put(f"later.{a}", b"x" * 500) for a in range(3000)])
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:

                async def write(number):
                    while True:
                        for one in some_writes(random.Random(seed * 100 + number), 200):
                            await keyspace.batch([one])
                            await anyio.lowlevel.checkpoint()

                for number in range(8):
                    tasks.start_soon(write, number)
                file, summary = await backed_up(keyspace)
                tasks.cancel_scope.cancel()
        await restore_backup(target, file)
        assert await all_records(target) == model.at(Token.parse(summary.token))


async def test_a_record_that_was_renewed_meanwhile_is_not_lost_with_its_old_expiry(open_keyspace):
    clock = Clock()
    async with open_keyspace(wall=clock) as keyspace, open_keyspace(wall=clock) as target:
        await keyspace.put("lease", b"mine", expires=NOW + 1000)
        renewed = False

        async def renew(_):
            nonlocal renewed
            if not renewed:
                renewed = True
                clock.now += 500
                await keyspace.touch("lease", NOW + 100_000)

        file, _ = await backed_up(keyspace, progress=renew)
        clock.now += 1000
        await restore_backup(target, file)
        assert (await target.get("lease")).expires == NOW + 100_000


async def test_what_expires_between_backup_and_restore_is_gone(open_keyspace):
    clock = Clock()
    async with open_keyspace(wall=clock) as keyspace, open_keyspace(wall=clock) as target:
        await keyspace.put("short", b"1", expires=NOW + 1000)
        file, _ = await backed_up(keyspace)
        clock.now += 2000
        await restore_backup(target, file)
        assert await all_records(target) == {}


async def test_more_writes_than_the_log_holds_are_told(open_keyspace):
    async with open_keyspace(log_bytes=100_000) as keyspace:
        await keyspace.put("a", b"1")

        async def flood(_):
            for number in range(20):
                await keyspace.put(f"big.{number}", b"x" * 50_000)

        with pytest.raises(Overloaded, match="log_bytes"):
            await write_backup(keyspace, io.BytesIO(), progress=flood)


# --- what is refused ------------------------------------------------------------------------------


async def test_only_an_empty_keyspace_takes_a_backup(open_keyspace):
    async with open_keyspace() as keyspace:
        await keyspace.put("a", b"1")
        file, _ = await backed_up(keyspace)
        with pytest.raises(ConditionFailed, match="empty"):
            await restore_backup(keyspace, file)


async def test_a_damaged_backup_changes_nothing(open_keyspace):
    async with open_keyspace() as keyspace, open_keyspace() as target:
        for number in range(20):
            await keyspace.put(f"k{number}", b"value")
        await keyspace.delete("k3")
        file, _ = await backed_up(keyspace)
        whole = file.getvalue()
        assert whole.count(b"\n") == 22  # beginning, one tombstone, 19 records, end
        chance = random.Random(1)
        cut = [whole[:at] for at in range(0, len(whole), 37)]
        flipped = []
        for _ in range(200):
            at = chance.randrange(len(whole))
            flipped.append(
                whole[:at] + bytes([whole[at] ^ (1 << chance.randrange(8))]) + whole[at + 1 :]
            )
        lines = whole.splitlines(keepends=True)
        others = [
            whole + whole,
            whole + b"\n",
            b"".join(lines[:3] + lines[4:]),
            b"".join([lines[0], lines[2], lines[1], *lines[3:]]),
            b"".join(lines[1:]),
            b"".join(lines[:-1]),
            b"",
            b"\n",
            b'{"key":"a","value":"1"}\n',
            b"\x00" * 1000,
            b"x" * 5000,
        ]
        for damaged in [*cut, *flipped, *others]:
            with pytest.raises((DataDamaged, NewerFormat)):
                await restore_backup(target, io.BytesIO(damaged), max_line=4000)
        assert target.token.revision == 0
        await restore_backup(target, io.BytesIO(whole), max_line=4000)


async def test_a_backup_of_a_later_release_is_refused():
    head = b'["nkv-backup",2,1,"2030-01-01T00:00:00.000Z"]\n'
    with pytest.raises(NewerFormat):
        examine_backup(io.BytesIO(head))


async def test_a_record_beyond_the_limits_of_this_node_is_refused(open_keyspace):
    async with open_keyspace() as keyspace, open_keyspace(max_value_bytes=10) as target:
        await keyspace.put("a", b"x" * 11)
        file, _ = await backed_up(keyspace)
        with pytest.raises(ValueTooLarge):
            await restore_backup(target, file)


# --- files ----------------------------------------------------------------------------------------


async def test_a_backup_file_is_for_its_owner_alone(open_keyspace, tmp_path):
    path = tmp_path / "backups" / "a.nkv"
    path.parent.mkdir()
    async with open_keyspace() as keyspace:
        await keyspace.put("a", b"1")
        summary = await save_backup(keyspace, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_size == summary.bytes
    assert [entry.name for entry in path.parent.iterdir()] == ["a.nkv"]


async def test_a_file_that_exists_is_replaced_by_force_only(open_keyspace, tmp_path):
    path = tmp_path / "a.nkv"
    path.write_bytes(b"precious")
    async with open_keyspace() as keyspace:
        with pytest.raises(ConditionFailed, match="--force"):
            await save_backup(keyspace, path)
        assert path.read_bytes() == b"precious"
        await save_backup(keyspace, path, force=True)
    with path.open("rb") as file:
        assert examine_backup(file).records == 0


async def test_a_file_that_appears_meanwhile_is_kept(open_keyspace, tmp_path):
    path = tmp_path / "folder" / "a.nkv"
    path.parent.mkdir()

    async def intrude(_):
        path.write_bytes(b"precious")

    async with open_keyspace() as keyspace:
        with pytest.raises(ConditionFailed):
            await save_backup(keyspace, path, progress=intrude)
    assert path.read_bytes() == b"precious"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.nkv"]


async def test_a_backup_that_is_cancelled_or_fails_leaves_nothing(open_keyspace, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()

    async def hang(_):
        await anyio.sleep_forever()

    async def fail(_):
        raise OSError(28, os.strerror(28))

    async with open_keyspace() as keyspace:
        with anyio.move_on_after(0.1) as scope:
            await save_backup(keyspace, folder / "a.nkv", progress=hang)
        assert scope.cancelled_caught
        with pytest.raises(StorageFull, match="no room"):
            await save_backup(keyspace, folder / "a.nkv", progress=fail)
    assert list(folder.iterdir()) == []


async def test_a_path_that_cannot_be_written_is_told(open_keyspace, tmp_path):
    from pathlib import Path

    async with open_keyspace() as keyspace:
        with pytest.raises(BadRequest, match="absolute"):
            await save_backup(keyspace, Path("a.nkv"))
        with pytest.raises(BadRequest, match="cannot be written"):
            await save_backup(keyspace, tmp_path / "nowhere" / "a.nkv")
        with pytest.raises(BadRequest, match="cannot be written"):
            await save_backup(keyspace, tmp_path, force=True)


async def test_tombstones_come_back_with_their_times(open_keyspace):
    async with open_keyspace() as keyspace, open_keyspace() as target:
        await keyspace.apply_foreign([Tombstone("gone", 1, NOW << 16, 9)])
        file, _ = await backed_up(keyspace)
        await restore_backup(target, file)
        before = Record("gone", b"1", 1, (NOW << 16) - 1, 9)
        behind = Record("gone", b"2", 1, (NOW << 16) + 1, 9)
        assert await target.apply_foreign([before]) == 0
        assert await target.apply_foreign([behind]) == 1
