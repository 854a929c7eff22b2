"""Two keyspaces that find out what they differ in, and exchange only that."""

import importlib
import logging
from contextlib import asynccontextmanager
from types import SimpleNamespace

import anyio
import pytest
from anyio.streams.stapled import StapledObjectStream
from hypothesis import given, settings
from hypothesis import strategies as st

from nkv_core.contracts.settings import KeyspaceSettings
from nkv_core.errors import BadRequest
from nkv_core.keyspace import LocalKeyspace
from nkv_core.records import Record, timestamp_at
from nkv_mesh_full.channel import Channel
from nkv_mesh_full.compare import Comparison
from nkv_mesh_full.core import Core
from nkv_mesh_full.members import Members
from nkv_mesh_full.messages import Ask, Compare, Rumour
from nkv_mesh_full.settings import FullSettings
from nkv_mesh_full.store import Cursor, Store
from nkv_mesh_full.tree import LEAVES, Tree

T0 = 1_800_000_000_000
DAY = 24 * 3_600_000


class Wall:
    def __init__(self):
        self.now = T0

    def __call__(self):
        return self.now


class Side:
    """One node, as far as comparing needs it."""

    def __init__(self, node_id, wall):
        plugin = importlib.import_module("nkv_storage_memory")
        storage = plugin.nkv_storage("memory", plugin.nkv_settings()())
        self.node_id = node_id
        self.keyspace = LocalKeyspace(storage, KeyspaceSettings(), node_id=node_id, wall=wall)
        members = Members(
            Rumour(node_id, f"127.0.0.1:{node_id}", "", "", 1),
            suspect_after=2,
            down_after=4,
            forget_after=100,
        )
        self.core = Core(
            SimpleNamespace(log=logging.getLogger("test")),
            self.keyspace,
            FullSettings(),
            boot=b"%d" % node_id,
            members=members,
            store=Store(None),
            wall=wall,
        )

    def met(self, other, seen, own):
        """That this one had all of the other's at a time."""
        token = other.keyspace.token
        self.core.store.cursors[other.node_id] = Cursor(
            token.history, token.revision, None, own, seen
        )

    async def records(self):
        found, after = {}, None
        while True:
            page = await self.keyspace.scan(after=after, limit=10_000)
            found |= {r.key: (r.value, r.modified, r.origin, r.expires) for r in page.records}
            after = page.after
            if after is None:
                return found


@asynccontextmanager
async def two_sides(wall=None):
    wall = wall or Wall()
    sides = Side(1, wall), Side(2, wall)
    for side in sides:
        await side.keyspace.open()
    try:
        yield *sides, wall
    finally:
        for side in sides:
            await side.keyspace.aclose()


class Ends(StapledObjectStream):
    async def receive(self, most=None):
        return await super().receive()


async def compared(asks, answers):
    """Both comparisons, and how many bytes went."""
    there, back = (anyio.create_memory_object_stream(1000) for _ in range(2))
    ours, theirs = Ends(there[0], back[1]), Ends(back[0], there[1])
    channels = Channel(ours), Channel(theirs)
    for channel in channels:
        channel.seal(b"", b"", 10_000_000)
    one = Comparison(asks.core, channels[0], answers.core.about(asks.node_id))
    two = Comparison(answers.core, channels[1], asks.core.about(answers.node_id))
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.ask)
            tasks.start_soon(two.answer)
    finally:
        await ours.aclose()
        await theirs.aclose()
    return one, two, channels[0].sent + channels[0].received


keys = st.sampled_from(["a", "a.x", "b", "b.x", "c"])
operations = st.lists(
    st.one_of(
        st.tuples(st.just("put"), keys),
        st.tuples(st.just("expire"), keys),
        st.tuples(st.just("delete"), keys),
        st.tuples(st.just("clear"), st.sampled_from(["", "a", "b."])),
    ),
    max_size=15,
)


async def carry_out(side, wall, some):
    for number, (what, key) in enumerate(some):
        wall.now += 1
        if what == "put":
            await side.keyspace.put(key, b"%d" % number)
        elif what == "expire":
            await side.keyspace.put(key, b"%d" % number, expires=wall.now + 5)
        else:
            await getattr(side.keyspace, what)(key)


@settings(max_examples=100)
@given(common=operations, ours=operations, theirs=operations)
def test_a_comparison_makes_any_two_equal(common, ours, theirs):
    async def run():
        async with two_sides() as (one, two, wall):
            await carry_out(one, wall, common)
            await compared(two, one)
            assert await one.records() == await two.records()
            await carry_out(one, wall, ours)
            await carry_out(two, wall, theirs)
            await compared(one, two)
            assert await one.records() == await two.records()
            first, second, _ = await compared(one, two)
            assert (first.sent, first.received, second.sent) == (0, 0, 0)

    anyio.run(run)


@pytest.mark.anyio
async def test_of_two_hundred_thousand_records_only_those_that_differ_are_exchanged():
    value = b"v" * 100

    def records(origin, keys, later=0):
        return [
            Record(f"some.key.{key:06}", value, 0, timestamp_at(T0 - 5000 + later), origin)
            for key in keys
        ]

    async with two_sides() as (one, two, _):
        shared = records(3, range(99_250))
        for side in (one, two):
            await side.keyspace.apply_foreign(shared)
        await one.keyspace.apply_foreign(records(1, range(99_250, 99_750)))
        await two.keyspace.apply_foreign(records(2, range(99_750, 100_000)))
        await two.keyspace.apply_foreign(records(2, range(0, 99_250, 397), 10))
        comparison, other, traffic = await compared(one, two)
        assert (comparison.sent, comparison.received, other.sent) == (500, 500, 500)
        size = 1000 * (len("some.key.000000") + len(value))
        assert traffic <= 5 * size + 1_000_000
        assert await one.records() == await two.records()
        _, _, again = await compared(one, two)
        assert again < 2000


@pytest.mark.anyio
async def test_what_was_deleted_does_not_come_back_from_one_who_was_away_for_long():
    async with two_sides() as (one, two, wall):
        for key in ("kept", "deleted", "old"):
            await one.keyspace.put(key, b"1")
        await compared(two, one)
        one.met(two, wall(), timestamp_at(wall()))
        two.met(one, wall(), timestamp_at(wall()))
        wall.now += 1000
        await two.keyspace.put("written.away", b"2")
        await two.keyspace.put("old", b"2")
        await one.keyspace.delete("deleted")
        wall.now += 2 * DAY
        await one.keyspace.upkeep.tidy()
        assert (await one.keyspace.entries()).entries[0].key == "kept"
        comparison, answer, _ = await compared(two, one)
        assert comparison.stale
        assert answer.stale
        expected = {"kept": b"1", "old": b"2", "written.away": b"2"}
        for side in (one, two):
            assert {key: fields[0] for key, fields in (await side.records()).items()} == expected
        assert comparison.dropped + answer.dropped == 1


@pytest.mark.anyio
async def test_the_one_who_asks_learns_of_what_it_lost_itself():
    """The same with the sides changed: the one who was away holds nothing against the other."""
    async with two_sides() as (one, two, wall):
        await one.keyspace.put("a", b"1")
        await compared(two, one)
        one.met(two, wall(), timestamp_at(wall()))
        two.met(one, wall(), timestamp_at(wall()))
        await two.keyspace.delete("a")
        await two.keyspace.put("b", b"1")
        wall.now += 2 * DAY
        await two.keyspace.upkeep.tidy()
        await compared(two, one)
        for side in (one, two):
            assert list(await side.records()) == ["b"]


@pytest.mark.anyio
async def test_one_who_was_set_back_gets_its_own_records_again():
    async with two_sides() as (one, two, wall):
        two.met(one, wall(), timestamp_at(wall()))
        await one.keyspace.put("a", b"1")
        await one.keyspace.put("b", b"2")
        await compared(two, one)
        restored = Side(1, wall)
        await restored.keyspace.open()
        two.met(one, wall(), timestamp_at(wall() + 1))
        wall.now += 2 * DAY
        await compared(restored, two)
        assert sorted(await restored.records()) == ["a", "b"]
        assert sorted(await two.records()) == ["a", "b"]
        await restored.keyspace.aclose()


@pytest.mark.anyio
async def test_more_than_fits_into_a_round_takes_several(monkeypatch):
    monkeypatch.setattr("nkv_mesh_full.compare._SUMMARIES", 50)
    async with two_sides() as (one, two, _):
        for number in range(300):
            await one.keyspace.put(f"one.{number}", b"x" * number)
            await two.keyspace.put(f"two.{number}", b"y" * number)
        await compared(one, two)
        assert len(await one.records()) == 600
        assert await one.records() == await two.records()


@pytest.mark.anyio
@pytest.mark.parametrize("ask", [Ask(9, [0]), Ask(0, [5]), Ask(0, [-1]), Ask(3, [0] * 5000)])
async def test_a_question_about_what_is_not_there_is_refused(ask):
    async with two_sides() as (one, two, _):
        there, back = (anyio.create_memory_object_stream(10) for _ in range(2))
        ours, theirs = Ends(there[0], back[1]), Ends(back[0], there[1])
        channel, answering = Channel(ours), Channel(theirs)
        for each in (channel, answering):
            each.seal(b"", b"", 10_000_000)
        comparison = Comparison(two.core, answering, one.core.about(2))
        try:
            async with anyio.create_task_group() as tasks:

                async def refuses():
                    with pytest.raises(BadRequest, match="no such"):
                        await comparison.answer()

                tasks.start_soon(refuses)
                await channel.send(Compare([], 0, {}, [], False))
                await channel.expect(Compare)
                await channel.send(ask)
        finally:
            await ours.aclose()
            await theirs.aclose()


@pytest.mark.anyio
async def test_a_tree_tells_where_two_differ():
    async with two_sides() as (one, two, _):
        for number in range(100):
            await one.keyspace.put(f"k{number}", b"x")
        trees = [await Tree.of(side.keyspace, 0) for side in (one, one, two)]
        assert trees[0].below(-1, [0]) == trees[1].below(-1, [0])
        assert trees[2].below(-1, [0]) == [0]
        leaves = trees[0].below(3, range(LEAVES // 16))
        assert sum(1 for digest in leaves if digest) <= 100
