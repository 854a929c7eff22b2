"""What a mesh has of a keyspace: its entries, merging, and tombstones that are held."""

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nkv_core.contracts.settings import KeyspaceSettings
from nkv_core.keyspace import LocalKeyspace
from nkv_core.records import Record, Tombstone, timestamp_at

T0 = 1_800_000_000_000

keys = st.sampled_from(["a", "a.x", "b", "b.x", "c"])
writes = st.lists(
    st.one_of(
        st.tuples(st.just("put"), keys),
        st.tuples(st.just("delete"), keys),
        st.tuples(st.just("clear"), st.sampled_from(["", "a", "b."])),
    ),
    max_size=20,
)


async def opened(storage, node_id, wall):
    keyspace = LocalKeyspace(storage, KeyspaceSettings(), node_id=node_id, wall=wall)
    await keyspace.open()
    return keyspace


async def carry_out(keyspace, wall, operations):
    for number, (what, key) in enumerate(operations):
        wall.now += 1
        if what == "put":
            await keyspace.put(key, b"%d" % number)
        else:
            await getattr(keyspace, what)(key)


async def all_entries(keyspace, limit=2):
    found, after = [], None
    while True:
        page = await keyspace.entries(after, limit=limit)
        assert len(page.entries) <= limit
        found += page.entries
        if page.after is None:
            return found
        after = page.after


def told(entries):
    return [(type(one), one.key, one.modified, one.origin) for one in entries]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ours=writes, theirs=writes)
def test_exchanging_entries_and_clears_makes_two_keyspaces_equal(ours, theirs, kept_storage, wall):
    async def run():
        one = await opened(kept_storage(), 1, wall)
        two = await opened(kept_storage(), 2, wall)
        await carry_out(one, wall, ours)
        await carry_out(two, wall, theirs)
        for source, target in ((one, two), (two, one)):
            await target.apply_foreign([*source.clears(), *await all_entries(source)])
        assert told(await all_entries(one)) == told(await all_entries(two))
        values = [{r.key: r.value for r in (await k.scan()).records} for k in (one, two)]
        assert values[0] == values[1]
        for keyspace in (one, two):
            await keyspace.aclose()

    anyio.run(run)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=writes)
def test_entries_are_the_records_and_what_was_deleted_one_by_one(operations, kept_storage, wall):
    async def run():
        keyspace = await opened(kept_storage(), 1, wall)
        await carry_out(keyspace, wall, operations)
        entries = await all_entries(keyspace)
        assert [one.key for one in entries] == sorted({one.key for one in entries})
        records = [one for one in entries if isinstance(one, Record)]
        assert records == (await keyspace.scan()).records
        assert len(await all_entries(keyspace, limit=100)) == len(entries)
        deleted, there = set(), set()
        for what, key in operations:
            if what == "put":
                there.add(key)
                deleted.discard(key)
            elif what == "delete":
                deleted |= {key} & there
                there.discard(key)
            else:
                for gone in (there, deleted):
                    gone -= {one for one in gone if one.startswith(key)}
        assert {one.key for one in entries if isinstance(one, Tombstone)} == deleted
        await keyspace.aclose()

    anyio.run(run)


def union(ours, theirs):
    values = sorted({*ours.value.split(), *theirs.value.split()})
    return Record(ours.key, b" ".join(values), 0, 0, 0)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.permutations(range(5)),
    twice=st.lists(st.integers(0, 4), max_size=5),
)
def test_a_merge_gives_the_same_in_any_order_and_however_often(order, twice, kept_storage, wall):
    async def run():
        keyspace = await opened(kept_storage(), 9, wall)
        given_ = [Record("k", b"%d" % n, 1, timestamp_at(T0 - n), n + 1) for n in range(5)]
        for number in (*order, *twice):
            await keyspace.apply_foreign([given_[number]], union)
        record = await keyspace.get("k")
        assert record.value == b"0 1 2 3 4"
        assert (record.modified, record.origin) == (timestamp_at(T0), 1)
        await keyspace.aclose()

    anyio.run(run)


@pytest.mark.anyio
async def test_what_a_merge_makes_of_both_is_told_as_merged_and_what_is_theirs_as_replicated(
    kept_storage, wall
):
    keyspace = await opened(kept_storage(), 9, wall)
    causes = []
    keyspace.tail(lambda changes: causes.extend(change.cause for change in changes))
    one, two = (Record("k", v, 1, timestamp_at(T0), n) for n, v in ((1, b"x"), (2, b"x y")))
    assert await keyspace.apply_foreign([one], union) == 1
    assert await keyspace.apply_foreign([one], union) == 0
    assert await keyspace.apply_foreign([two], union) == 1
    assert await keyspace.apply_foreign([one], union) == 0
    assert await keyspace.apply_foreign([Record("k", b"z", 1, timestamp_at(T0), 1)], union) == 1
    assert causes == ["replicated", "replicated", "merged"]
    await keyspace.aclose()


@pytest.mark.anyio
async def test_a_record_of_the_very_moment_of_a_deletion_outlives_it_in_either_order(
    kept_storage, wall
):
    record, end = Record("k", b"x", 1, timestamp_at(T0), 1), Tombstone("k", 1, timestamp_at(T0), 1)
    for order in ((record, end), (end, record)):
        keyspace = await opened(kept_storage(), 9, wall)
        await keyspace.apply_foreign(order)
        assert (await keyspace.get("k")).value == b"x"
        assert [type(one) for one in await all_entries(keyspace)] == [Record]
        await keyspace.aclose()


@pytest.mark.anyio
async def test_an_expiry_is_no_match_for_a_write_elsewhere_that_came_before_it(kept_storage, wall):
    one, two = [await opened(kept_storage(), number, wall) for number in (1, 2)]
    await one.put("k", b"short", expires=wall.now + 100)
    await two.apply_foreign((await one.entries()).entries)
    wall.now += 90
    await two.touch("k", wall.now + 10_000)  # which the first does not hear of in time
    wall.now += 20
    await one.upkeep.sweep()
    assert await one.get("k") is None
    for source, target in ((one, two), (two, one)):
        await target.apply_foreign(await all_entries(source))
    for keyspace in (one, two):
        assert (await keyspace.get("k")).value == b"short"
        await keyspace.aclose()
