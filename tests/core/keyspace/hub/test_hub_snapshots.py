"""A snapshot, then changes, while writing goes on all the time."""

import random

import anyio
import pytest
from anyio.lowlevel import checkpoint

from nkv_core.contracts.watch import Changed, Gap, SnapshotEnd, SnapshotRecord
from nkv_core.keys import Pattern
from nkv_core.keyspace.routing import selector

KEYS = [f"{first}.{number}" for first in "abc" for number in range(12)]


async def write_without_pause(keyspace, dice):
    while True:
        for _ in range(dice.randrange(3)):
            key = dice.choice(KEYS)
            match dice.randrange(20):
                case 0:
                    keyspace.clear(dice.choice(["a.", "b.1", "c"]))
                case 1 | 2 | 3 | 4:
                    keyspace.delete(key, cause=dice.choice(["delete", "expire"]))
                case 5 | 6:
                    keyspace.touch(key, dice.randrange(10**6))
                case _:
                    keyspace.put(key, b"%d" % dice.randrange(1000))
        if dice.random() < 0.7:
            keyspace.tell()
        await checkpoint()


@pytest.mark.anyio
@pytest.mark.parametrize("page_bytes", [1500, 10**6], ids=["many pages", "one page"])
async def test_200_snapshots_have_no_hole_and_no_repeat(
    fake_keyspace, follower, running, page_bytes
):
    dice = random.Random(7)
    keyspace = fake_keyspace()
    for key in KEYS:
        keyspace.put(key)
    keyspace.auto = False
    amended = 0
    with anyio.fail_after(60):
        async with running(keyspace, page_bytes=page_bytes) as hub, anyio.create_task_group() as tg:
            tg.start_soon(write_without_pause, keyspace, dice)
            for _ in range(200):
                for _ in range(dice.randrange(4)):
                    await checkpoint()
                text, subtree = dice.choice(
                    [("*", False), ("a", True), ("*.1", False), ("b.*", False)]
                )
                told = follower(keyspace, selector(Pattern(text), subtree=subtree))
                told.begin(snapshot=True)
                limit = dice.choice([1, 3, 100])
                watcher = hub.watch(text, subtree=subtree, snapshot=True)
                while not told.complete or len(told.changes) < 5:
                    for item in await watcher.read(limit):
                        amended += isinstance(item, Changed) and item.token is None
                        told.item(item)
                told.drain(watcher)
                watcher.close()
            tg.cancel_scope.cancel()
    assert (amended > 0) == (page_bytes == 1500)


@pytest.mark.anyio
async def test_a_small_snapshot_is_records_then_the_end_then_changes(fake_keyspace, running):
    keyspace = fake_keyspace()
    keyspace.put("a.1", b"x")
    keyspace.put("b.1", b"y")
    keyspace.put("a", b"z")
    with anyio.fail_after(60):
        async with running(keyspace) as hub:
            watcher = hub.watch("a", subtree=True, snapshot=True)
            assert watcher.token is None
            first = await watcher.next()
            second = await watcher.next()
            assert [item.record.key for item in (first, second)] == ["a", "a.1"]
            assert first.token is None
            assert await watcher.next() == SnapshotEnd(keyspace.token)
            assert watcher.token == keyspace.token
            keyspace.put("a.2", b"w")
            assert (await watcher.next()).change.key == "a.2"


@pytest.mark.anyio
async def test_the_snapshot_of_nothing_ends_at_once(fake_keyspace, running):
    keyspace = fake_keyspace()
    with anyio.fail_after(60):
        async with running(keyspace) as hub:
            watcher = hub.watch("missing", snapshot=True)
            assert await watcher.read() == [SnapshotEnd(keyspace.token)]


@pytest.mark.anyio
async def test_a_page_holds_no_more_than_its_bound_and_waits_to_be_taken(fake_keyspace, running):
    keyspace = fake_keyspace()
    for number in range(100):
        keyspace.put(f"k.{number:03}", b"x" * 1000)
    with anyio.fail_after(60):
        async with running(keyspace, page_bytes=20_000) as hub:
            watcher = hub.watch("*", snapshot=True)
            for _ in range(50):
                await checkpoint()
            assert keyspace.scans == 1
            items = watcher.take(1000)
            assert len(items) < 20
            while not isinstance(items[-1], SnapshotEnd):
                items += await watcher.read(1000)
            keys = [item.record.key for item in items if isinstance(item, SnapshotRecord)]
            assert keys == sorted(keyspace.records)


@pytest.mark.anyio
async def test_a_snapshot_too_slow_for_the_log_begins_anew(fake_keyspace, follower, running):
    keyspace = fake_keyspace(keep=3)
    for number in range(20):
        keyspace.put(f"k.{number:03}", b"x" * 100)
    told = follower(keyspace, Pattern("*"))
    told.begin(snapshot=True)
    with anyio.fail_after(60):
        async with running(keyspace, page_bytes=2000, ring_bytes=1) as hub:
            watcher = hub.watch("*", snapshot=True)
            for item in await watcher.read():
                told.item(item)
            for number in range(10):
                keyspace.put("k.000", b"%d" % number)
            while not told.complete:
                for item in await watcher.read():
                    told.item(item)
            assert [resync for _, _, resync in told.gaps] == [True]
            told.check_equal()


@pytest.mark.anyio
async def test_what_happens_meanwhile_to_records_already_sent_is_told_from_the_log(
    fake_keyspace, follower, running
):
    keyspace = fake_keyspace()
    for number in range(20):
        keyspace.put(f"k.{number:03}", b"x" * 100)
    told = follower(keyspace, Pattern("k.*"))
    told.begin(snapshot=True)
    with anyio.fail_after(60):
        async with running(keyspace, page_bytes=2000, ring_bytes=1) as hub:
            watcher = hub.watch("k.*", snapshot=True)
            for item in await watcher.read():
                told.item(item)
            assert sorted(told.store) == ["k.000", "k.001", "k.002"]
            keyspace.delete("k.000", cause="expire")
            keyspace.touch("k.001", 10_000)
            keyspace.clear("")
            keyspace.put("k.019", b"new")
            keyspace.put("z")
            while not told.complete:
                for item in await watcher.read():
                    told.item(item)
            assert told.gaps == []
            told.check_equal()


@pytest.mark.anyio
async def test_a_replicated_clear_spares_what_is_newer_while_a_page_is_read(
    fake_keyspace, running, monkeypatch
):
    keyspace = fake_keyspace()
    keyspace.put("a", b"old")
    keyspace.put("b", b"new")
    scan = keyspace.scan

    async def slow_scan(*args, **kwargs):
        page = await scan(*args, **kwargs)
        keyspace.clock -= 2  # the clear was made elsewhere, between the two puts
        keyspace.clear("")
        keyspace.records["b"] = page.records[1]
        return page

    monkeypatch.setattr(keyspace, "scan", slow_scan)
    with anyio.fail_after(60):
        async with running(keyspace) as hub:
            record, end = await hub.watch("*", snapshot=True).read()
            assert record.record.key == "b"
            assert end.token == hub.token


@pytest.mark.anyio
async def test_resuming_spares_the_snapshot(fake_keyspace, running):
    keyspace = fake_keyspace()
    keyspace.put("a")
    token = keyspace.token
    keyspace.put("b")
    with anyio.fail_after(60):
        async with running(keyspace) as hub:
            watcher = hub.watch("*", snapshot=True, since=token)
            assert [item.change.key for item in await watcher.read()] == ["b"]
            assert keyspace.scans == 0


@pytest.mark.anyio
async def test_a_gap_in_a_mirror_is_followed_by_a_snapshot(fake_keyspace, follower, running):
    keyspace = fake_keyspace(keep=2)
    told = follower(keyspace, Pattern("*"), "latest")
    told.begin(snapshot=False)
    with anyio.fail_after(60):
        async with running(keyspace, ring_bytes=1) as hub:
            watcher = hub.watch("*", mode="latest", pending=2)
            for number in range(30):
                keyspace.put(f"k.{number % 7}")
            items = await watcher.read()
            assert isinstance(items[0], Gap)
            assert items[0].resync
            for item in items:
                told.item(item)
            while not told.complete:
                for item in await watcher.read():
                    told.item(item)
            told.check_equal()
