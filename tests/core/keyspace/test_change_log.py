"""The change log: its bounds, its gaps, and what it knows after a restart."""

import pytest

from nkv_core.contracts.keyspace import Put
from nkv_core.errors import DataDamaged, StorageFailed
from nkv_core.keys import Pattern
from nkv_core.keyspace.layout import pack_number
from nkv_core.keyspace.log import AROUND_BYTES
from nkv_core.records import Token

pytestmark = pytest.mark.anyio

KIB = 1024


def size_of(storage):
    rows = storage.scan("changes", limit=10**6)
    return sum(AROUND_BYTES + len(key) + len(value) for key, value in rows)


async def fill(keyspace, count, size=KIB):
    for number in range(count):
        await keyspace.put(f"k.{number % 50}", bytes(size))


async def test_a_group_is_one_row(storage, open_keyspace):
    async with open_keyspace(storage) as keyspace:
        await keyspace.batch([Put(f"k.{number}", b"v") for number in range(100)])
        await keyspace.put("a", b"v")
        assert storage.count("changes") == 2
        page = await keyspace.changes(Token(keyspace.history, 50))
        assert [change.revision for change in page.changes] == list(range(51, 102))


async def test_a_large_group_is_split_into_rows_of_bounded_size(storage, open_keyspace):
    async with open_keyspace(storage) as keyspace:
        await keyspace.batch([Put(f"k.{number}", bytes(300 * KIB)) for number in range(10)])
        rows = storage.scan("changes", limit=100)
        assert 3 <= len(rows) <= 4
        assert all(len(value) < 1300 * KIB for _, value in rows)
        page = await keyspace.changes(Token(keyspace.history, 0))
        assert [change.revision for change in page.changes] == list(range(1, 11))


async def test_it_stays_within_its_bytes(storage, open_keyspace):
    bound = 256 * KIB
    async with open_keyspace(storage, log_bytes=bound) as keyspace:
        for _ in range(20):
            await fill(keyspace, 50)
            await keyspace.apply_foreign(())  # behind what the worker may be cutting
            assert size_of(storage) <= bound * 1.05
            assert keyspace.status()["log"]["bytes"] == size_of(storage)
        assert size_of(storage) > bound * 0.9
        kept = await keyspace.changes(keyspace.token.__class__(keyspace.history, 999))
        assert [change.revision for change in kept.changes] == [1000]


async def test_cutting_it_is_rare(storage, open_keyspace):
    async with open_keyspace(storage, log_bytes=256 * KIB) as keyspace:
        await fill(keyspace, 300)
        before = storage.written
        await fill(keyspace, 300)
        cuts = storage.written - before - 300
        assert 0 < cuts <= 300 / 3 * 2  # a cut is two writes


async def test_a_place_that_was_cut_away_is_a_gap_and_reading_goes_on_behind_it(
    storage, open_keyspace
):
    async with open_keyspace(storage, log_bytes=64 * KIB) as keyspace:
        start = keyspace.token
        await fill(keyspace, 200)
        await keyspace.apply_foreign(())
        page = await keyspace.changes(start)
        assert page.gap
        forgotten = keyspace.status()["log"]["after_revision"]
        assert [change.revision for change in page.changes] == list(range(forgotten + 1, 201))
        assert page.token == keyspace.token
        again = await keyspace.changes(Token(keyspace.history, forgotten))
        assert not again.gap
        assert again.changes == page.changes
        assert (await keyspace.changes(Token(keyspace.history, forgotten - 1))).gap
        assert (await keyspace.changes(start, Pattern("none"))).gap


async def test_what_is_too_old_is_forgotten(storage, open_keyspace, wall):
    async with open_keyspace(storage, log_age=60.0) as keyspace:
        await fill(keyspace, 10)
        wall.now += 40_000
        await fill(keyspace, 10)
        middle = keyspace.token
        await keyspace.upkeep.tidy()
        assert storage.count("changes") == 20
        wall.now += 40_000
        await keyspace.upkeep.tidy()
        assert storage.count("changes") == 10
        assert (await keyspace.changes(Token(keyspace.history, 9))).gap
        assert not (await keyspace.changes(Token(keyspace.history, 10))).gap
        wall.now += 40_000
        await keyspace.upkeep.tidy()
        assert storage.count("changes") == 0
        page = await keyspace.changes(middle)
        assert (page.changes, page.token, page.gap) == ([], keyspace.token, False)
        assert keyspace.status()["log"] == {"bytes": 0, "after_revision": 20, "since": None}


async def test_it_is_cut_in_the_background(storage, open_keyspace, wall):
    import anyio

    async with open_keyspace(storage, log_age=60.0) as keyspace:
        await fill(keyspace, 10)
    wall.now += 70_000
    async with open_keyspace(storage, log_age=60.0, run=True):
        with anyio.fail_after(60):
            while storage.count("changes"):
                await anyio.sleep(0.005)


async def test_all_of_it_survives_a_restart(storage, open_keyspace):
    async with open_keyspace(storage) as keyspace:
        start = keyspace.token
        await fill(keyspace, 20)
        await keyspace.delete("k.3")
        await keyspace.clear("k.1")
        before = await keyspace.changes(start)
        status, token = keyspace.status()["log"], keyspace.token
    async with open_keyspace(storage) as keyspace:
        assert keyspace.token == token
        assert keyspace.status()["log"] == status
        assert await keyspace.changes(start) == before
        assert (await keyspace.put("a", b"v")).revision == token.revision + 1


async def test_opening_reads_only_a_few_rows_of_it(kept_storage, open_keyspace):
    storage = kept_storage()
    async with open_keyspace(storage) as keyspace:
        await fill(keyspace, 300, size=10)
    scanned = []
    scan = storage.scan

    def counting(table, *args, **kwargs):
        pairs = scan(table, *args, **kwargs)
        scanned.append(len(pairs))
        return pairs

    storage.scan = counting
    async with open_keyspace(storage):
        assert sum(scanned) <= 4


@pytest.mark.parametrize("cut", ["bytes", "age"])
async def test_what_was_cut_stays_cut_after_a_restart(storage, open_keyspace, wall, cut):
    settings = {"log_bytes": 64 * KIB, "log_age": 60.0}
    async with open_keyspace(storage, **settings) as keyspace:
        start = keyspace.token
        put = await keyspace.put("first", b"v")
        await fill(keyspace, 200 if cut == "bytes" else 10)
        last = (await keyspace.put("last", b"v")).record
        if cut == "age":
            wall.now += 70_000
            await keyspace.upkeep.tidy()
        await keyspace.apply_foreign(())
        status, token = keyspace.status()["log"], keyspace.token
    wall.now -= 10_000_000  # and the clock is set back besides
    async with open_keyspace(storage, **settings) as keyspace:
        assert keyspace.status()["log"] == status
        assert keyspace.token == token
        assert (await keyspace.changes(start)).gap
        written = await keyspace.put("first", b"v")
        assert written.revision > token.revision > put.revision
        assert written.record.newer_than(last)


@pytest.mark.parametrize("nth", [1, 2])
async def test_a_cut_that_was_interrupted_loses_nothing_in_silence(
    storage, open_keyspace, wall, nth
):
    async with open_keyspace(storage, log_age=60.0) as keyspace:
        start = keyspace.token
        await fill(keyspace, 10)
        wall.now += 70_000
        storage.fail_nth(nth)
        with pytest.raises(StorageFailed):
            await keyspace.upkeep.tidy()
        page = await keyspace.changes(start)
        assert page.gap or len(page.changes) == 10
        token = keyspace.token
    async with open_keyspace(storage, log_age=60.0) as keyspace:
        assert keyspace.token == token
        page = await keyspace.changes(start)
        assert page.gap or len(page.changes) == 10
        await keyspace.upkeep.tidy()
        assert storage.count("changes") == 0
        assert (await keyspace.changes(start)).gap


async def test_a_group_far_beyond_the_bound_is_cut_in_parts(storage, open_keyspace):
    async with open_keyspace(storage, log_bytes=64 * KIB) as keyspace:
        await keyspace.batch([Put(f"k.{number}", bytes(500 * KIB)) for number in range(20)])
        await keyspace.upkeep.tidy()
        assert size_of(storage) <= 64 * KIB
        await keyspace.put("a", b"v")
        assert storage.count("changes") == 1


async def test_an_interrupted_write_does_not_count_as_a_gap(storage, open_keyspace):
    async with open_keyspace(storage) as keyspace:
        start = keyspace.token
        for _ in range(5):
            storage.fail_next()
            with pytest.raises(StorageFailed):
                await keyspace.put("a", b"v")
            await keyspace.put("a", b"v")
        page = await keyspace.changes(start)
        assert not page.gap
        assert [change.revision for change in page.changes] == [2, 4, 6, 8, 10]
        for limit in (1, 2):
            page = await keyspace.changes(Token(keyspace.history, 4), limit=limit)
            assert [change.revision for change in page.changes] == [6, 8, 10][:limit]


@pytest.mark.parametrize("rubbish", [b"", b"x" * 23, bytes(24), bytes(24) + b"\x90", b"\xff" * 60])
async def test_a_damaged_log_is_refused_at_start_and_left_alone(
    kept_storage, open_keyspace, rubbish
):
    from nkv_core.contracts.storage import Batch

    storage = kept_storage()
    async with open_keyspace(storage) as keyspace:
        await fill(keyspace, 3)
    batch = Batch()
    batch.put("changes", pack_number(9), rubbish)
    storage.apply(batch)
    rows = storage.scan("changes", limit=10)
    with pytest.raises(DataDamaged, match="change log is damaged"):
        async with open_keyspace(storage):
            pass
    assert not storage.opened
    assert storage.scan("changes", limit=10) == rows
