"""Expiry: found, told and cleaned up, by whoever notices first."""

import anyio
import pytest

from nkv_core.contracts.keyspace import Put
from nkv_core.errors import StorageFailed
from nkv_core.keyspace.layout import expiry_key
from nkv_core.records import Record, timestamp_at

pytestmark = pytest.mark.anyio


def expiry_rows(storage):
    return [(int.from_bytes(k[:8], "big"), k[8:]) for k, _ in storage.scan("expiry", limit=10**5)]


async def test_every_record_that_expires_has_one_row(storage, open_keyspace, wall):
    async with open_keyspace(storage) as keyspace:
        now = wall()
        await keyspace.put("a", b"1", expires=now + 1)
        await keyspace.put("a", b"2", expires=now + 2)
        await keyspace.put("b", b"1", expires=now + 1)
        await keyspace.touch("b", now + 5)
        await keyspace.put("c", b"1", expires=now + 1)
        await keyspace.touch("c", None)
        await keyspace.put("d", b"1", expires=now + 1)
        await keyspace.delete("d")
        await keyspace.put("e", b"1", expires=now + 1)
        await keyspace.put("e", b"1")
        await keyspace.batch(
            [
                Put("f", b"1", now + 1),
                Put("f", b"1", now + 9),
                Put("g", b"1", now + 1),
                Put("g", b""),
            ]
        )
        assert expiry_rows(storage) == [(now + 2, b"a"), (now + 5, b"b"), (now + 9, b"f")]


async def test_a_sweep_makes_changes_of_what_is_due_and_of_nothing_else(
    storage, open_keyspace, wall
):
    told = []
    async with open_keyspace(storage) as keyspace:
        for number in range(1300):
            await keyspace.put(f"k.{number:04}", b"v", expires=wall() + 1000 + number % 2 * 9000)
        assert await keyspace.upkeep.sweep() == 0
        wall.now += 1000
        keyspace.tail(told.extend)
        assert await keyspace.count() == 650
        assert await keyspace.upkeep.sweep() == 650
        assert {(c.kind, c.cause) for c in told} == {("delete", "expire")}
        assert {c.key for c in told} == {f"k.{number:04}" for number in range(0, 1300, 2)}
        assert storage.count("records") == len(expiry_rows(storage)) == 650
        assert await keyspace.upkeep.sweep() == 0
        assert await keyspace.count() == 650
        assert keyspace.status()["expired"] == 650


async def test_the_sweeper_works_by_itself_and_looks_only_when_something_is_due(
    storage, open_keyspace, wall
):
    told = []
    async with open_keyspace(storage, run=True, sweep_interval=0.005) as keyspace:
        keyspace.tail(told.extend)
        await keyspace.put("a", b"v", expires=wall() + 100)
        scans = []
        scan = storage.scan
        storage.scan = lambda table, *a, **k: scans.append(table) or scan(table, *a, **k)
        await anyio.sleep(0.05)
        assert "expiry" not in scans
        wall.now += 100
        with anyio.fail_after(60):
            while len(told) < 2:
                await anyio.sleep(0.005)
        assert told[1].cause == "expire"
        await keyspace.put("b", b"v", expires=1)  # earlier than all that it waits for
        with anyio.fail_after(60):
            while len(told) < 4:
                await anyio.sleep(0.005)


async def test_what_expired_while_the_node_was_down_is_told_after_the_start(
    storage, open_keyspace, wall
):
    async with open_keyspace(storage) as keyspace:
        put = await keyspace.put("a", b"v", expires=wall() + 1000)
        token = keyspace.token
    wall.now += 5000
    async with open_keyspace(storage) as keyspace:
        assert await keyspace.get("a") is None
        assert await keyspace.upkeep.sweep() == 1
        (change,) = (await keyspace.changes(token)).changes
        assert (change.cause, change.previous) == ("expire", put.revision)


async def test_the_tombstone_of_an_expiry_is_the_same_on_every_node(
    kept_storage, open_keyspace, wall
):
    expires = wall() + 1000
    foreign = Record("a", b"v", 1, timestamp_at(wall()), 77, expires)
    found = []
    for node_id, waits in ((1, 0), (2, 5000)):
        storage, told = kept_storage(), []
        async with open_keyspace(storage, node_id=node_id) as keyspace:
            keyspace.tail(told.extend)
            await keyspace.apply_foreign([foreign])
            wall.now = expires + waits
            await keyspace.upkeep.sweep()
            found.append((told[1].modified, told[1].origin))
            assert await keyspace.apply_foreign([foreign]) == 0
    assert found == [(timestamp_at(expires), 77)] * 2


async def test_an_expiry_before_the_write_still_ends_it(storage, open_keyspace):
    async with open_keyspace(storage) as keyspace:
        put = await keyspace.put("a", b"v", expires=1)
        assert await keyspace.upkeep.sweep() == 1
        assert await keyspace.apply_foreign([put.record]) == 0
        assert storage.count("records") == storage.count("expiry") == 0
        again = await keyspace.put("a", b"v")
        assert await keyspace.get("a") == again.record


async def test_whether_the_sweeper_was_there_first_makes_no_difference(
    kept_storage, open_keyspace, wall
):
    start = wall()
    old = Record("a", b"old", 1, timestamp_at(start), 77, start + 1000)
    between = Record("a", b"between", 1, timestamp_at(start + 500), 78)
    after = Record("a", b"after", 1, timestamp_at(start + 1500), 78)
    for foreign, taken in ((between, 1), (after, 1)):
        outcomes = []
        for swept in (True, False):
            wall.now = start
            storage, told = kept_storage(), []
            async with open_keyspace(storage) as keyspace:
                keyspace.tail(told.extend)
                await keyspace.apply_foreign([old])
                wall.now = start + 2000
                if swept:
                    await keyspace.upkeep.sweep()
                assert await keyspace.apply_foreign([foreign]) == taken
                outcomes.append((told, await keyspace.get("a")))
        assert outcomes[0] == outcomes[1]


async def test_what_is_put_in_the_very_millisecond_of_an_expiry_is_newer(
    storage, open_keyspace, wall
):
    told = []
    async with open_keyspace(storage) as keyspace:
        keyspace.tail(told.extend)
        await keyspace.apply_foreign(
            [Record("a", b"1", 1, timestamp_at(wall()), 2**64 - 1, wall() + 1000)]
        )
        wall.now += 1000
        put = await keyspace.put("a", b"2")
        assert told[1].cause == "expire"
        assert put.record.modified > told[1].modified


async def test_a_put_that_comes_before_the_sweep_is_not_swept_away(storage, open_keyspace, wall):
    async with open_keyspace(storage) as keyspace:
        await keyspace.put("a", b"1", expires=wall() + 1000)
        await keyspace.put("b", b"1", expires=wall() + 1000)
        wall.now += 1000
        put = await keyspace.put("a", b"2")
        await keyspace.put("b", b"2", expires=wall() + 1000)
        assert await keyspace.upkeep.sweep() == 0
        assert await keyspace.get("a") == put.record
        assert expiry_rows(storage) == [(wall() + 1000, b"b")]


async def test_what_was_cleared_does_not_expire_besides(storage, open_keyspace, wall):
    told = []
    async with open_keyspace(storage) as keyspace:
        await keyspace.put("a.1", b"1", expires=wall() + 1000)
        await keyspace.clear("a.")
        keyspace.tail(told.extend)
        wall.now += 1000
        assert await keyspace.count() == 0
        assert await keyspace.upkeep.sweep() == 0
        assert told == []
        assert await keyspace.count() == 0
        await keyspace.upkeep.reclaim()
        assert storage.count("records") == storage.count("expiry") == 0
        assert await keyspace.count() == 0


@pytest.mark.parametrize("reclaimed", [False, True])
async def test_what_was_cleared_and_swept_may_be_put_again_with_the_same_expiry(
    storage, open_keyspace, wall, reclaimed
):
    async with open_keyspace(storage) as keyspace:
        expires = wall() + 1000
        await keyspace.put("a.1", b"1", expires=expires)
        await keyspace.clear("a.")
        wall.now += 1000
        await keyspace.upkeep.sweep()
        wall.now -= 500  # the clock is set back
        if reclaimed:
            await keyspace.upkeep.reclaim()
        await keyspace.put("a.1", b"2", expires=expires)
        assert expiry_rows(storage) == [(expires, b"a.1")]
        wall.now += 500
        assert await keyspace.count() == 0
        assert await keyspace.upkeep.sweep() == 1


async def test_a_row_that_belongs_to_nothing_is_removed(storage, open_keyspace, wall):
    from nkv_core.contracts.storage import Batch

    async with open_keyspace(storage) as keyspace:
        await keyspace.put("a", b"v", expires=wall() + 1000)
    stray = Batch()
    stray.put("expiry", expiry_key(5, b"a"), b"")
    stray.put("expiry", expiry_key(6, b"b"), b"")
    storage.apply(stray)
    async with open_keyspace(storage) as keyspace:
        assert await keyspace.upkeep.sweep() == 0
        assert expiry_rows(storage) == [(wall() + 1000, b"a")]
        assert await keyspace.get("a") is not None


async def test_a_sweep_that_fails_is_made_up_for(storage, open_keyspace, wall):
    told = []
    async with open_keyspace(storage) as keyspace:
        await keyspace.put("a", b"v", expires=wall() + 1000)
        keyspace.tail(told.extend)
        wall.now += 1000
        storage.fail_next()
        with pytest.raises(StorageFailed):
            await keyspace.upkeep.sweep()
        assert told == []
        assert await keyspace.get("a") is None
        assert await keyspace.upkeep.sweep() == 1
        assert [change.cause for change in told] == ["expire"]


async def test_the_background_goes_on_after_a_failure(storage, open_keyspace, caplog):
    async with open_keyspace(storage, run=True, sweep_interval=0.005) as keyspace:
        storage.fail_nth(2)  # the first write is the put, the second the sweep
        await keyspace.put("a", b"v", expires=1)
        with anyio.fail_after(60):
            while storage.count("records"):
                await anyio.sleep(0.01)
        assert storage.failed == 1
    assert "is tried again" in caplog.text


async def test_what_is_put_in_the_group_that_sweeps_is_kept(kept_storage, open_keyspace, wall):
    storage = kept_storage(writes="thread")
    async with open_keyspace(storage) as keyspace:
        await keyspace.put("a", b"1", expires=wall() + 1000)
        await keyspace.put("b", b"1", expires=wall() + 1000)
        wall.now += 1000
        async with anyio.create_task_group() as tasks:
            with storage.hold() as held:
                tasks.start_soon(keyspace.put, "busy", b"v")
                while not held.entered.is_set():
                    await anyio.sleep(0.001)
                tasks.start_soon(keyspace.put, "a", b"2")
                await anyio.wait_all_tasks_blocked()
                tasks.start_soon(keyspace.upkeep.sweep)
                await anyio.wait_all_tasks_blocked()
                held.let_go.set()
        assert (await keyspace.get("a")).value == b"2"
        assert keyspace.status()["expired"] == 1  # b; that of a was told by the put
        assert await keyspace.count() == storage.count("records") == 2
        assert expiry_rows(storage) == []


async def test_tombstones_are_forgotten_after_their_age(storage, open_keyspace, wall):
    async with open_keyspace(storage, tombstone_age=60.0) as keyspace:
        for number in range(700):
            await keyspace.put(f"k.{number}", b"v")
            await keyspace.delete(f"k.{number}")
        await keyspace.clear("old.")
        await keyspace.upkeep.reclaim()
        wall.now += 40_000
        put = await keyspace.put("young", b"v")
        await keyspace.delete("young")
        await keyspace.clear("young.")
        await keyspace.upkeep.tidy()
        assert storage.count("tombstones") == 703
        wall.now += 30_000
        await keyspace.upkeep.tidy()
        assert [key for key, _ in storage.scan("tombstones", limit=10)] == [b"kyoung", b"ryoung."]
        assert keyspace.status()["clears"]["kept"] == 1
        assert await keyspace.apply_foreign([put.record]) == 0
        wall.now += 60_000
        await keyspace.upkeep.tidy()
        # The clear has not been reclaimed, so it must stay for as long as it hides something.
        assert [key for key, _ in storage.scan("tombstones", limit=10)] == [b"ryoung."]
        await keyspace.upkeep.reclaim()
        await keyspace.upkeep.tidy()
        assert storage.count("tombstones") == 0
        assert await keyspace.apply_foreign([put.record]) == 1
