"""Records of other nodes: in whatever order they come, everybody ends up with the same."""

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nkv_core.contracts.settings import KeyspaceSettings
from nkv_core.errors import BadRequest, InvalidExpiry, InvalidKey, ValueTooLarge
from nkv_core.keyspace import LocalKeyspace
from nkv_core.records import RangeTombstone, Record, Tombstone, timestamp_at

T0 = 1_800_000_000_000

keys = st.sampled_from(["a", "a.x", "a.y", "b", "b.x"])
stamps = st.integers(0, 12).map(lambda step: timestamp_at(T0 - 100 + step))
origins = st.integers(1, 3)
foreign = st.one_of(
    st.builds(Record, keys, st.just(b""), st.just(1), stamps, origins),
    st.builds(Tombstone, keys, st.just(1), stamps, origins),
    st.builds(RangeTombstone, st.sampled_from(["", "a", "a.", "b."]), st.just(1), stamps, origins),
)


def with_its_own_value(one):
    return Record(one.key, b"%d/%d" % (one.modified, one.origin), 1, one.modified, one.origin)


def told_apart(writes):
    """No two writes have the same timestamp and origin: nodes do not write twice at one moment."""
    seen, kept = set(), []
    for one in writes:
        if (one.modified, one.origin) not in seen:
            seen.add((one.modified, one.origin))
            kept.append(with_its_own_value(one) if isinstance(one, Record) else one)
    return kept


def expected(writes):
    """Of each key the newest write, unless that is a delete or a clear that covers it."""
    found = {}
    for key in ("a", "a.x", "a.y", "b", "b.x"):
        mine = [
            one
            for one in writes
            if (isinstance(one, RangeTombstone) and key.startswith(one.prefix))
            or (not isinstance(one, RangeTombstone) and one.key == key)
        ]
        newest = max(mine, key=lambda one: (one.modified, one.origin), default=None)
        if isinstance(newest, Record):
            found[key] = newest.value
    return found


async def converge(storage, writes, order, parts, between):
    keyspace = LocalKeyspace(storage, KeyspaceSettings(), node_id=9, wall=lambda: T0)
    await keyspace.open()
    told = {}

    def follow(changes):
        for change in changes:
            if change.kind == "put":
                told[change.key] = change
            elif change.kind == "delete":
                told.pop(change.key)
            else:
                clear = RangeTombstone(change.key, 1, change.modified, change.origin)
                for key in [key for key, last in told.items() if clear.hides(record_of(last))]:
                    del told[key]

    keyspace.tail(follow)
    for begin in range(0, len(order), parts):
        await keyspace.apply_foreign([writes[index] for index in order[begin : begin + parts]])
        if between:
            await keyspace.upkeep.reclaim()
    found = {record.key: record.value for record in (await keyspace.scan()).records}
    assert {key: change.value for key, change in told.items()} == found
    assert await keyspace.apply_foreign(writes) == 0
    assert await keyspace.count() == len(found)
    await keyspace.aclose()
    return found


def record_of(change):
    return Record(change.key, b"", 1, change.modified, change.origin)


@settings(
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    writes=st.lists(foreign, max_size=12).map(told_apart),
    data=st.data(),
    parts=st.integers(1, 12),
    between=st.booleans(),
)
def test_the_order_of_arrival_makes_no_difference(kept_storage, writes, data, parts, between):
    order = data.draw(st.permutations(range(len(writes))))
    found = anyio.run(converge, kept_storage(), writes, order, parts, between)
    assert found == expected(writes)


async def everything_of(keyspace):
    return [(record.key, record.value) for record in (await keyspace.scan()).records]


@pytest.mark.anyio
async def test_what_was_known_is_known_after_a_restart(storage, open_keyspace):
    old = [Record(f"{p}.k", b"old", 1, timestamp_at(T0 - 50), 5) for p in "abc"]
    async with open_keyspace(storage) as keyspace:
        await keyspace.apply_foreign(
            [
                Tombstone("a.k", 1, timestamp_at(T0 - 40), 5),
                RangeTombstone("b.", 1, timestamp_at(T0 - 40), 5),
                Record("c.k", b"new", 1, timestamp_at(T0 - 40), 5),
            ]
        )
    async with open_keyspace(storage) as keyspace:
        await keyspace.upkeep.reclaim()
        assert await keyspace.apply_foreign(old) == 0
        assert await everything_of(keyspace) == [("c.k", b"new")]


@pytest.mark.anyio
async def test_many_are_taken_in_parts(storage, open_keyspace):
    async with open_keyspace(storage) as keyspace:
        before = storage.written
        some = [Record(f"k.{n}", b"v", 1, timestamp_at(T0), 5) for n in range(2500)]
        assert await keyspace.apply_foreign(some) == 2500
        assert storage.written == before + 3
        assert await keyspace.count() == 2500


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (Record("", b"v", 1, 1, 1), InvalidKey),
        (Record("a", b"vvvvvvvvvvvv", 1, 1, 1), ValueTooLarge),
        (Record("a", b"v", 1, 1, 1, 0), InvalidExpiry),
        (Record("a", b"v", 1, 2**64 - 1, 1), BadRequest),
        (Record("a", b"v", 1, -1, 1), BadRequest),
        (Record("a", b"v", 1, 1, 2**64), BadRequest),
        (Tombstone("a\n", 1, 1, 1), InvalidKey),
        (RangeTombstone("\ud800", 1, 1, 1), InvalidKey),
    ],
)
async def test_where_one_is_not_valid_none_is_taken(storage, open_keyspace, bad, error):
    async with open_keyspace(storage, max_value_bytes=10) as keyspace:
        fine = Record("fine", b"v", 1, timestamp_at(T0), 5)
        with pytest.raises(error):
            await keyspace.apply_foreign([fine, bad])
        assert await keyspace.count() == 0


@pytest.mark.anyio
async def test_a_foreign_delete_of_what_is_not_here_is_kept_but_not_told(storage, open_keyspace):
    told = []
    async with open_keyspace(storage) as keyspace:
        keyspace.tail(told.extend)
        tombstone = Tombstone("a", 1, timestamp_at(T0), 5)
        assert await keyspace.apply_foreign([tombstone]) == 1
        assert told == []
        assert await keyspace.apply_foreign([Record("a", b"v", 1, timestamp_at(T0 - 1), 5)]) == 0
        put = await keyspace.put("a", b"v")
        assert [change.revision for change in told] == [put.revision]
