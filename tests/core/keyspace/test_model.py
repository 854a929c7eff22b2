"""The keyspace against a simple model: whatever is done to it, restarts and crashes included."""

import shutil
from itertools import chain

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nkv_core.contracts.keyspace import Check, Clear, Delete, Presence, Put, Touch
from nkv_core.contracts.settings import KeyspaceSettings
from nkv_core.errors import ConditionFailed, OtherHistory, StorageFailed
from nkv_core.keyspace import LocalKeyspace
from nkv_core.records import Token, Version

T0 = 1_800_000_000_000

names = st.sampled_from(["a", "a.x", "a.y", "b", "b.x", "*", "é"])
ttls = st.sampled_from([None, None, None, -5, 1, 50, 100_000])
# A condition is drawn as a word and made one when its turn has come.
expects = st.sampled_from([None, None, None, "absent", "present", "current", "stale", "other"])
put = st.tuples(st.just("put"), names, st.binary(max_size=3), ttls, expects)
delete = st.tuples(st.just("delete"), names, expects)
touch = st.tuples(st.just("touch"), names, ttls, expects)
clear = st.tuples(st.just("clear"), st.sampled_from(["", "a", "a.", "b.", "none"]))
operation = st.one_of(put, put, put, delete, touch, clear)
check = st.tuples(names, st.sampled_from(["absent", "present", "current", "stale", "other"]))
batch = st.tuples(st.just("batch"), st.lists(operation, max_size=5), st.lists(check, max_size=2))
together = st.tuples(st.just("together"), st.lists(operation, min_size=2, max_size=6))
wait = st.tuples(st.just("wait"), st.sampled_from([1, 49, 51, 1000, 4_000_000]))
other = st.sampled_from(
    [("sweep",), ("reclaim",), ("tidy",), ("reopen",), ("crash",), ("fail",), ("read",)]
)
steps = st.lists(
    st.one_of(operation, operation, batch, together, wait, other), min_size=1, max_size=30
)


class Model:
    """What the words of the contract say: a dict, and every write at once."""

    def __init__(self):
        self.records = {}  # key -> (value, expires, revision)
        self.revisions = {}  # every revision that a key ever had, for stale versions

    def copy(self):
        model = Model()
        model.records = dict(self.records)
        model.revisions = {key: list(all_of) for key, all_of in self.revisions.items()}
        return model

    def live(self, now):
        return {
            key: (value, expires)
            for key, (value, expires, _) in self.records.items()
            if expires is None or expires > now
        }

    def revision_of(self, key, now):
        return self.records[key][2] if key in self.live(now) else None

    def holds(self, key, expect, now):
        """Whether the condition holds; the error that it raises where it does not."""
        there = key in self.live(now)
        match expect:
            case None:
                return None
            case Presence.ABSENT:
                return ConditionFailed if there else None
            case Presence.PRESENT:
                return None if there else ConditionFailed
            case Version(history="0123456789abcdef"):
                return OtherHistory
            case Version():
                fits = there and self.revision_of(key, now) == expect.revision
                return None if fits else ConditionFailed

    def carry_out(self, operation, written, now):
        """Take over what was done, and check what was said about it."""
        if isinstance(operation, Clear):
            for key in [key for key in self.records if key.startswith(operation.prefix)]:
                del self.records[key]
            return
        live, key = self.live(now), operation.key
        before = live.get(key)
        said = written.previous and (written.previous.value, written.previous.expires)
        assert said == before
        if before is not None:
            assert written.previous.revision == self.records[key][2]
        if isinstance(operation, Put):
            after = (operation.value, operation.expires)
        elif before is None:
            assert written.revision is None
            return
        elif isinstance(operation, Delete):
            del self.records[key]
            assert written.revision is not None
            return
        else:
            after = (before[0], operation.expires)
        assert (written.record.value, written.record.expires) == after
        self.records[key] = (*after, written.revision)
        self.revisions.setdefault(key, []).append(written.revision)


class Follower:
    """Reads the change stream by token, over restarts, and keeps what it says."""

    def __init__(self, token):
        self.token = token
        self.records = {}
        self.last = 0

    def take(self, page):
        assert not page.gap
        for change in page.changes:
            assert change.revision > self.last
            self.last = change.revision
            here = self.records.get(change.key)
            if change.kind == "clear":
                for key in [key for key in self.records if key.startswith(change.key)]:
                    del self.records[key]
                continue
            # The chain has no hole: what a change says was there is what was there.
            assert change.previous == (here and here[2]), change
            if change.kind == "delete":
                del self.records[change.key]
            else:
                self.records[change.key] = (change.value, change.expires, change.revision)
        self.token = page.token


class Driver:
    """Does one step after the other to a keyspace and the model of it."""

    def __init__(self, storage, crash):
        self.storage = storage
        self.crash = crash
        self.now = T0
        self.model = Model()
        self.keyspace = None
        self.told = []

    async def run(self, steps):
        await self.open()
        self.follower = Follower(Token(self.keyspace.history, 0))
        for step in steps:
            await getattr(self, f"do_{step[0]}")(*step[1:])
            await self.compare()
        await self.keyspace.aclose()

    async def open(self):
        settings = KeyspaceSettings(log_age=10.0**9, tombstone_age=3600.0)
        self.keyspace = LocalKeyspace(self.storage, settings, node_id=1, wall=lambda: self.now)
        await self.keyspace.open()
        self.keyspace.tail(self.told.extend)

    # --- steps --------------------------------------------------------------------------------

    def expires(self, ttl):
        return None if ttl is None else self.now + ttl

    def expect(self, word, key):
        match word:
            case "absent":
                return Presence.ABSENT
            case "present":
                return Presence.PRESENT
            case "other":
                return Version("0123456789abcdef", 1)
            case "current":
                revision = self.model.revision_of(key, self.now)
                return Version(self.keyspace.history, revision or 1)
            case "stale":
                return Version(self.keyspace.history, (self.model.revisions.get(key) or [0])[0])
        return None

    def make(self, step):
        match step:
            case ("put", key, value, ttl, expect):
                return Put(key, value, self.expires(ttl), self.expect(expect, key))
            case ("delete", key, expect):
                return Delete(key, self.expect(expect, key))
            case ("touch", key, ttl, expect):
                return Touch(key, self.expires(ttl), self.expect(expect, key))
            case ("clear", prefix):
                return Clear(prefix)

    async def call(self, operation):
        match operation:
            case Put():
                return await self.keyspace.put(
                    operation.key,
                    operation.value,
                    expires=operation.expires,
                    expect=operation.expect,
                )
            case Delete():
                return await self.keyspace.delete(operation.key, expect=operation.expect)
            case Touch():
                return await self.keyspace.touch(
                    operation.key, operation.expires, expect=operation.expect
                )
            case Clear():
                return await self.keyspace.clear(operation.prefix)

    async def one(self, step):
        operation = self.make(step)
        error = self.model.holds(
            getattr(operation, "key", ""), getattr(operation, "expect", None), self.now
        )
        if error is not None:
            with pytest.raises(ConditionFailed) as caught:
                await self.call(operation)
            assert caught.type is error
            return
        self.model.carry_out(operation, await self.call(operation), self.now)

    async def do_put(self, *rest):
        await self.one(("put", *rest))

    async def do_delete(self, *rest):
        await self.one(("delete", *rest))

    async def do_touch(self, *rest):
        await self.one(("touch", *rest))

    async def do_clear(self, *rest):
        await self.one(("clear", *rest))

    async def do_batch(self, some, checks):
        operations = [self.make(step) for step in some]
        conditions = [Check(key, self.expect(word, key)) for key, word in checks]
        try:
            written = await self.keyspace.batch(operations, conditions)
        except ConditionFailed:
            written = None
        model = self.model.copy()
        if self.fails(model, operations, conditions, written):
            assert written is None
        else:
            assert written is not None
            self.model = model

    def fails(self, model, operations, conditions, written):
        for condition in conditions:
            if model.holds(condition.key, condition.expect, self.now):
                return True
        for index, operation in enumerate(operations):
            expect = getattr(operation, "expect", None)
            if expect and model.holds(operation.key, expect, self.now):
                return True
            if written is None:
                # What it would have done: enough for the conditions that follow.
                self.pretend(model, operation)
            else:
                model.carry_out(operation, written[index], self.now)
        return False

    def pretend(self, model, operation):
        if isinstance(operation, Clear):
            for key in [key for key in model.records if key.startswith(operation.prefix)]:
                del model.records[key]
        elif isinstance(operation, Delete):
            model.records.pop(operation.key, None)
        elif isinstance(operation, Put):
            model.records[operation.key] = (operation.value, operation.expires, -1)
        elif operation.key in model.live(self.now):
            value = model.records[operation.key][0]
            model.records[operation.key] = (value, operation.expires, -1)

    async def do_together(self, some):
        """Writers at the same time: what they did must fit the order of their revisions."""
        operations = [self.make((*step[:-1], None) if len(step) > 2 else step) for step in some]
        outcomes = [None] * len(operations)

        async def write(index):
            outcomes[index] = await self.call(operations[index])

        before = len(self.told)
        async with anyio.create_task_group() as tasks:
            for index in range(len(operations)):
                tasks.start_soon(write, index)
        done = [
            (written.revision, operations[index])
            for index, written in enumerate(outcomes)
            if written.revision is not None
        ]
        told = [change.revision for change in self.told[before:] if change.cause != "expire"]
        assert sorted(revision for revision, _ in done) == told
        for revision, operation in sorted(done, key=lambda one: one[0]):
            written = next(one for one in outcomes if one.revision == revision)
            self.model.carry_out(operation, written, self.now)

    async def do_wait(self, milliseconds):
        self.now += milliseconds

    async def do_sweep(self):
        await self.keyspace.upkeep.sweep()

    async def do_reclaim(self):
        await self.keyspace.upkeep.reclaim()

    async def do_tidy(self):
        await self.keyspace.upkeep.tidy()

    async def do_read(self):
        while True:
            page = await self.keyspace.changes(self.follower.token, limit=3)
            self.follower.take(page)
            if not page.changes:
                return

    async def do_fail(self):
        """A write that the storage refuses leaves no trace."""
        if hasattr(self.storage, "fail_next"):
            self.storage.fail_next()
            with pytest.raises(StorageFailed):
                await self.keyspace.batch([Clear(""), Put("a", b"never seen")])

    async def do_reopen(self):
        await self.keyspace.aclose()
        await self.open()

    async def do_crash(self):
        self.storage = await self.crash(self.keyspace, self.storage)
        await self.open()

    # --- the comparison -----------------------------------------------------------------------

    async def compare(self):
        live = self.model.live(self.now)
        page = await self.keyspace.scan(limit=1000)
        found = {record.key: (record.value, record.expires) for record in page.records}
        assert found == live
        assert [record.key for record in page.records] == sorted(live, key=str.encode)
        assert await self.keyspace.count() == len(live)
        for key in ("a", "b.x", "é"):
            record = await self.keyspace.get(key)
            assert (record and (record.value, record.expires)) == live.get(key)
            assert (record and record.revision) == self.model.revision_of(key, self.now)
        await self.do_read()
        # Whoever follows the changes has the same, but for what expired and was not swept yet.
        followed = {
            key: (value, expires)
            for key, (value, expires, _) in self.follower.records.items()
            if expires is None or expires > self.now
        }
        assert followed == live
        assert self.follower.token == self.keyspace.token
        revisions = [change.revision for change in self.told]
        assert revisions == sorted(set(revisions))


async def drop(keyspace, storage):
    """The process ends without closing anything; what was applied is there."""
    if (worker := keyspace._open.writing) is not None:
        worker.close()
    if (worker := keyspace._open.reading) is not None:
        worker.close()
    return storage


quietly = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60
)


@pytest.mark.parametrize("writes", ["inline", "thread"])
@quietly
@given(steps=steps)
def test_over_memory(kept_storage, anyio_backend, writes, steps):
    driver = Driver(kept_storage(writes=writes), drop)
    anyio.run(driver.run, steps, backend=anyio_backend)


@settings(parent=quietly, max_examples=15)
@given(steps=steps)
def test_over_disk(disk_storage, anyio_backend, tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("model")
    opened = []

    async def run():
        async def crash(keyspace, storage):
            """The files as they are at this moment, as another process would find them."""
            copy = folder / str(len(opened))
            shutil.copytree(folder / str(len(opened) - 1), copy)
            await keyspace.aclose()
            opened.append(copy)
            return disk_storage(copy)

        opened.append(folder / "0")
        (folder / "0").mkdir()
        await Driver(disk_storage(folder / "0"), crash).run(steps)

    anyio.run(run, backend=anyio_backend)
    shutil.rmtree(folder)


@pytest.mark.soak
@pytest.mark.parametrize("writes", ["inline", "thread"])
@settings(parent=quietly, max_examples=3000)
@given(steps=st.lists(steps, min_size=1, max_size=5).map(lambda some: [*chain(*some)]))
def test_over_memory_for_long(kept_storage, anyio_backend, writes, steps):
    driver = Driver(kept_storage(writes=writes), drop)
    anyio.run(driver.run, steps, backend=anyio_backend)
