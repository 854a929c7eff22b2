"""Clears: hidden at once, reclaimed later, in one piece for every reader."""

from functools import partial

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nkv_core.contracts.keyspace import Clear, Presence, Put
from nkv_core.errors import ConditionFailed, StorageFailed
from nkv_core.keys import EVERYTHING
from nkv_core.keyspace.cleaning import Walk, reclaim, records_below
from nkv_core.keyspace.clears import NO_CLEARS, ClearSet
from nkv_core.records import RangeTombstone, Record

pytestmark = pytest.mark.anyio


async def fill(keyspace, count, prefix="a."):
    for begin in range(0, count, 500):
        await keyspace.batch(
            [Put(f"{prefix}{n:06}", b"v") for n in range(begin, min(begin + 500, count))]
        )


async def test_a_clear_is_a_small_write_whatever_it_hides(storage, open_keyspace):
    async with open_keyspace(storage) as keyspace:
        await fill(keyspace, 3000)
        before = storage.written
        await keyspace.clear("a.")
        assert storage.written == before + 1
        assert storage.count("records") == 3000
        assert await keyspace.count() == 0


async def test_its_room_is_reclaimed_in_parts_and_all_reads_are_right_meanwhile(
    storage, open_keyspace, monkeypatch
):
    parts, apply = [], storage.apply

    def noting(batch):
        apply(batch)
        parts.append(storage.count("records"))

    monkeypatch.setattr(storage, "apply", noting)
    async with open_keyspace(storage) as keyspace:
        await fill(keyspace, 6000)
        await fill(keyspace, 10, prefix="b.")
        await keyspace.put("a.000001", b"v", expires=2**40 + 10**12)
        await keyspace.clear("a.")
        await keyspace.put("a.000007", b"new")
        parts.clear()

        async def look():
            while storage.count("records") > 11:
                assert await keyspace.count() == 11
                assert await keyspace.get("a.005999") is None
                assert (await keyspace.get("a.000007")).value == b"new"
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(look)
            await keyspace.upkeep.reclaim()
        assert len({count for count in parts if count > 11}) > 1
        assert storage.count("records") == 11
        assert storage.count("expiry") == 0
        assert keyspace.status()["clears"] == {"hidden": 0, "kept": 1}
        assert await keyspace.count() == 11
        assert (await keyspace.scan()).records[0].value == b"new"


async def test_reclaiming_goes_on_after_a_restart(storage, open_keyspace):
    async with open_keyspace(storage) as keyspace:
        await fill(keyspace, 2000)
        await keyspace.clear("a.")
        storage.fail_nth(3)
        with pytest.raises(StorageFailed):
            await keyspace.upkeep.reclaim()
        assert 0 < storage.count("records") < 2000
    async with open_keyspace(storage) as keyspace:
        assert await keyspace.count() == 0
        assert await keyspace.get("a.001999") is None
        await keyspace.put("a.001999", b"new", expect=Presence.ABSENT)
    async with open_keyspace(storage, run=True, sweep_interval=0.01) as keyspace:
        with anyio.fail_after(60):
            while keyspace.status()["clears"]["hidden"]:
                await anyio.sleep(0.005)
        assert storage.count("records") == 1
        assert (await keyspace.get("a.001999")).value == b"new"
    async with open_keyspace(storage) as keyspace:
        assert keyspace.status()["clears"] == {"hidden": 0, "kept": 1}


async def test_a_later_clear_takes_the_place_of_those_it_covers(storage, open_keyspace):
    async with open_keyspace(storage) as keyspace:
        for _ in range(5):
            await keyspace.clear("a.b.")
            await keyspace.clear("a.c.")
        await keyspace.clear("b.")
        assert keyspace.status()["clears"] == {"hidden": 3, "kept": 3}
        await keyspace.clear("a.")
        assert keyspace.status()["clears"] == {"hidden": 2, "kept": 2}
        assert storage.count("tombstones") == 2
        await keyspace.clear()
        assert storage.count("tombstones") == 1
    async with open_keyspace(storage) as keyspace:
        assert keyspace.status()["clears"] == {"hidden": 1, "kept": 1}


async def test_a_clear_that_is_repeated_while_it_is_reclaimed_is_reclaimed_again(
    storage, open_keyspace
):
    async with open_keyspace(storage) as keyspace:
        await fill(keyspace, 500)
        await keyspace.clear("a.")

        async def again():
            await fill(keyspace, 500)
            await keyspace.clear("a.")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keyspace.upkeep.reclaim)
            tasks.start_soon(again)
        await keyspace.upkeep.reclaim()
        assert storage.count("records") == 0
        assert storage.scan("meta", b"reclaim:", b"reclaim;", limit=9) == []


async def test_a_clear_that_is_repeated_during_the_last_part_still_hides_after_a_restart(
    storage, open_keyspace
):
    async with open_keyspace(storage) as keyspace:
        await fill(keyspace, 5)
        await keyspace.clear("a.")
        (first,) = keyspace._open.book.clears.active
        walk = Walk(partial(records_below, first), partial(reclaim, first))
        assert await keyspace.write(walk.step, 0)
        await fill(keyspace, 5)
        await keyspace.clear("a.")
        assert not await keyspace.write(walk.step, 0)
        assert await keyspace.count() == 0
    async with open_keyspace(storage) as keyspace:
        assert await keyspace.count() == 0
        assert await keyspace.get("a.000001") is None


async def test_what_is_put_in_the_group_that_reclaims_is_kept(kept_storage, open_keyspace):
    storage = kept_storage(writes="thread")
    async with open_keyspace(storage) as keyspace:
        await fill(keyspace, 5)
        await keyspace.clear("a.")
        async with anyio.create_task_group() as tasks:
            with storage.hold() as held:
                tasks.start_soon(keyspace.put, "busy", b"v")
                while not held.entered.is_set():
                    await anyio.sleep(0.001)
                tasks.start_soon(keyspace.put, "a.000001", b"new")
                await anyio.wait_all_tasks_blocked()
                tasks.start_soon(keyspace.upkeep.reclaim)
                await anyio.wait_all_tasks_blocked()
                held.let_go.set()
        assert (await keyspace.get("a.000001")).value == b"new"
        assert storage.count("records") == await keyspace.count() == 2


async def test_a_clear_that_fails_hides_nothing(storage, open_keyspace):
    async with open_keyspace(storage) as keyspace:
        await fill(keyspace, 5)
        storage.fail_next()
        with pytest.raises(StorageFailed):
            await keyspace.clear("a.")
        with pytest.raises(ConditionFailed):
            await keyspace.batch([Clear("a."), Put("a.000001", b"v", expect=Presence.PRESENT)])
        assert await keyspace.count() == 5
        assert len((await keyspace.scan()).records) == 5
        assert keyspace.status()["clears"] == {"hidden": 0, "kept": 0}
        assert keyspace._open.book.clears.quiet  # reading is as cheap as before


@pytest.mark.parametrize("cleared_before", [False, True])
@pytest.mark.parametrize("fails", [False, True])
async def test_readers_see_a_clear_and_what_comes_with_it_in_one_moment(
    kept_storage, open_keyspace, fails, cleared_before
):
    """The storage has the group before the event loop hears of it, and readers may come between."""
    storage = kept_storage(writes="thread")
    seen = []
    async with open_keyspace(storage) as keyspace:
        if cleared_before:
            await keyspace.clear("a.")
        await fill(keyspace, 5)
        reader, apply = keyspace._open.reader, storage.inside.apply

        def look():
            steps = reader.scan(EVERYTHING, None, 100)
            try:
                while True:
                    next(steps)
            except StopIteration as end:
                page = end.value
            alone = [reader.get(key, key.encode()) for key in ("a.000000", "a.new")]
            seen.append([record.key for record in page.records])
            assert [record is not None for record in alone] == [
                "a.000000" in seen[-1],
                "a.new" in seen[-1],
            ]

        def between(batch):
            look()
            if fails:
                raise StorageFailed("for a test")
            apply(batch)
            look()

        storage.inside.apply = between
        batch = [Clear("a."), Put("a.new", b"v"), Put("b", b"v")]
        if fails:
            with pytest.raises(StorageFailed):
                await keyspace.batch(batch)
        else:
            await keyspace.batch(batch)
        storage.inside.apply = apply
        look()
    old, new = [f"a.{n:06}" for n in range(5)], ["a.new", "b"]
    assert seen == ([old, old] if fails else [old, new, new])


prefixes = st.text(st.sampled_from("ab."), max_size=4)
clears = st.builds(RangeTombstone, prefixes, st.just(1), st.integers(0, 9), st.integers(0, 2))
stamped = st.builds(
    Record, prefixes, st.just(b""), st.just(1), st.integers(0, 9), st.integers(0, 2)
)


@given(st.lists(clears, max_size=8), stamped)
def test_a_set_of_clears_hides_what_any_of_them_does(some, record):
    held = NO_CLEARS
    for clear in some:
        if not held.hides(clear):
            held = held.with_(clear)
    assert held.hides(record) == any(clear.hides(record) for clear in some)
    assert bool(held) == bool(some)
    for clear in list(held):
        left = held.without(clear)
        assert len(left) == len(held) - 1
        assert left.without(clear) is left
        assert list(left) == [other for other in held if other != clear]
    assert not ClearSet()
