"""The hub over the keyspace and a storage that nodes use."""

import random
from contextlib import asynccontextmanager

import anyio
import pytest

from nkv_core.contracts.keyspace import Delete, Put
from nkv_core.contracts.settings import KeyspaceSettings
from nkv_core.contracts.watch import Changed, Gap, SnapshotEnd, SnapshotRecord
from nkv_core.keyspace.local import LocalKeyspace
from nkv_core.records import RangeTombstone, Token
from nkv_storage_memory.storage import MemorySettings, MemoryStorage


class Threaded(MemoryStorage):
    """As a storage on a disk: called in threads, so that it is ahead of what is told."""

    reads = "thread"
    writes = "thread"


class Kept(MemoryStorage):
    """Outlives the keyspace that closes it."""

    def close(self):
        pass


class Mirror:
    """What a client makes of the items, taken in order."""

    def __init__(self):
        self.records = {}
        self.place = -1
        self.token = None
        self.snapshots = 0

    def item(self, item):
        match item:
            case SnapshotRecord(record=record):
                self.records[record.key] = (record.value, record.revision)
            case SnapshotEnd(token=token):
                self.place = token.revision
                self.snapshots += 1
            case Gap(resync=True):
                self.records = {}
            case Changed():
                self._change(item)
        self.token = item.token or self.token

    def _change(self, item):
        change = item.change
        if item.token is not None:
            assert change.revision > self.place
            self.place = change.revision
        if change.kind == "clear":
            for key in [key for key in self.records if key.startswith(change.key)]:
                del self.records[key]
        elif change.kind == "delete":
            self.records.pop(change.key, None)
        else:
            known = self.records.get(change.key)
            assert known is None or known[1] < change.revision
            self.records[change.key] = (change.value, change.revision)


async def write(keyspace, dice, count):
    for number in range(count):
        key = f"{dice.choice('abc')}.{dice.randrange(40)}"
        match dice.randrange(12):
            case 0:
                await keyspace.clear(dice.choice(["a.1", "b.", "c.3"]))
            case 1 | 2:
                await keyspace.delete(key)
            case 3:
                await keyspace.batch(
                    [Put(key, b"batch"), Delete("a.7"), Put("a.8", b"%d" % number)]
                )
            case 4:
                await keyspace.touch(key, 4_000_000_000_000)
            case _:
                await keyspace.put(key, b"%d" % number)


@asynccontextmanager
async def opened(storage, **settings):
    keyspace = LocalKeyspace(storage, KeyspaceSettings(**settings), node_id=1)
    await keyspace.open()
    try:
        yield keyspace
    finally:
        await keyspace.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize("storage", [MemoryStorage, Threaded])
async def test_mirrors_that_come_and_go_under_writing_end_equal_to_the_store(storage, running):
    dice = random.Random(3)
    with anyio.fail_after(60):
        async with (
            opened(storage(MemorySettings())) as keyspace,
            running(keyspace, ring_bytes=20_000, page_bytes=6000) as hub,
        ):
            await write(keyspace, dice, 200)
            writing = 3
            mirrors = []

            async def writer():
                nonlocal writing
                await write(keyspace, dice, 300)
                writing -= 1

            async def follow(mode, pending):
                mirror = Mirror()
                mirrors.append(mirror)
                while writing or mirror.token != keyspace.token:
                    watcher = hub.watch(
                        "*", mode=mode, snapshot=True, since=mirror.token, pending=pending
                    )
                    if mirror.token is None:
                        mirror.records = {}
                    for _ in range(dice.randrange(2, 30)):
                        with anyio.move_on_after(0.01):
                            for item in await watcher.read(dice.choice([1, 7, 500])):
                                mirror.item(item)
                        if not writing and mirror.token == keyspace.token:
                            break
                    watcher.close()

            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(writer)
                for number in range(6):
                    tasks.start_soon(follow, ["every", "latest"][number % 2], [2, 100][number % 2])
            page = await keyspace.scan()
            store = {record.key: (record.value, record.revision) for record in page.records}
            for mirror in mirrors:
                assert mirror.snapshots > 0
                assert mirror.records == store


@pytest.mark.anyio
async def test_a_watcher_resumes_over_a_restart_without_a_gap(running):
    storage = Kept(MemorySettings())
    with anyio.fail_after(60):
        async with opened(storage) as keyspace:
            await keyspace.put("a", b"1")
            token = Token.parse(str(keyspace.token))
            await keyspace.put("b", b"2")
            await keyspace.clear("a")
        async with opened(storage) as keyspace, running(keyspace) as hub:
            items = await hub.watch("*", since=token).read()
            assert [item.change.kind for item in items] == ["put", "clear"]


@pytest.mark.anyio
async def test_a_token_behind_the_bound_of_the_log_tells_a_gap_and_a_snapshot(running):
    with anyio.fail_after(60):
        async with (
            opened(MemoryStorage(MemorySettings()), log_bytes=2000) as keyspace,
            anyio.create_task_group() as tasks,
        ):
            await tasks.start(lambda *, task_status: keyspace.run(task_status=task_status))
            token = keyspace.token
            for number in range(300):
                await keyspace.put(f"k.{number % 5}", b"x" * 100)
            while not (await keyspace.changes(token)).gap:
                await keyspace.put("k.0", b"x" * 1000)
                await anyio.sleep(0.01)
            async with running(keyspace) as hub:
                watcher = hub.watch("*", since=token)
                items = []
                while not items or not isinstance(items[-1], SnapshotEnd):
                    items += await watcher.read()
                assert isinstance(items[0], Gap)
                assert items[0].after == token
                assert [item.record.key for item in items[1:-1]] == [f"k.{n}" for n in range(5)]
            tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_what_other_nodes_wrote_and_cleared_is_told(running):
    with anyio.fail_after(60):
        async with (
            opened(MemoryStorage(MemorySettings())) as keyspace,
            running(keyspace) as hub,
        ):
            await keyspace.put("a.1", b"x")
            watcher = hub.watch("a", subtree=True)
            now = (await keyspace.get("a.1")).modified
            await keyspace.apply_foreign([RangeTombstone("a", 1, now + 1, 9)])
            (item,) = await watcher.read()
            assert (item.change.kind, item.change.cause) == ("clear", "replicated")
