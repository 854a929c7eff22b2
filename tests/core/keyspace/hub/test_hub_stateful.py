"""The keyspace and its hub as one machine, against a model that is a dict and a list.

Whatever is written, expires or restarts: the changes are those that the model expects, and each
watcher is told of them without hole or repeat, however often it goes and comes back.
"""

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from nkv_core.contracts.settings import KeyspaceSettings
from nkv_core.contracts.watch import WatchSettings
from nkv_core.keys import Pattern
from nkv_core.keyspace import LocalKeyspace, WatchHub
from nkv_core.keyspace.routing import selector
from nkv_core.records import Record, Token
from nkv_storage_memory.storage import MemorySettings, MemoryStorage

from .conftest import Follower, replay
from .lives import Client, finish

T0 = 1_800_000_000_000
KEYS = st.sampled_from(["a", "a.a", "a.b", "a.b.c", "b", "b.b", "c"])
PREFIXES = st.sampled_from(["", "a", "a.", "a.b", "b.", "x"])
WATCHED = st.sampled_from(
    [("*", False), ("a", True), ("a.*", False), ("a.b", False), ("*.b", True)]
)
TTLS = st.sampled_from([None, None, 10, 1000])


class Kept(MemoryStorage):
    """Outlives the keyspace that closes it."""

    def close(self):
        pass


class Model:
    """What was written, as one who was told each change in turn knows it."""

    forgotten = 0

    def __init__(self, history):
        self.history = history
        self.log = []
        self.records = {}

    @property
    def token(self):
        return Token(self.history, self.log[-1].revision if self.log else 0)

    def at(self, revision):
        store = {}
        for change in self.log:
            if change.revision <= revision:
                replay(store, change)
        return store

    def due(self, now):
        return [r.key for r in self.records.values() if r.expires is not None and r.expires <= now]

    def take(self, changes, expected):
        """Take over changes, whose kind, cause, key, value and expiry must be the expected ones."""
        found = [(c.kind, c.cause, c.key, c.value, c.expires) for c in changes]
        assert found == expected
        for change in changes:
            assert change.revision > self.token.revision
            known = self.records.get(change.key)
            if change.kind == "clear":
                below = [key for key in self.records if key.startswith(change.key)]
                for key in below:
                    del self.records[key]
            else:
                assert change.previous == (known and known.revision)
                self.records.pop(change.key, None)
            if change.kind in ("put", "touch"):
                stamp = (change.revision, change.modified, change.origin)
                record = Record(change.key, change.value, *stamp, change.expires)
                self.records[change.key] = record
            self.log.append(change)


class Watching(RuleBasedStateMachine):
    """One step after the other. A step that awaits runs until it is done, and the hub with it."""

    clients = Bundle("clients")

    def __init__(self):
        super().__init__()
        self.runner = asyncio.Runner()
        self.storage = Kept(MemorySettings())
        self.now = T0
        self.followed = []
        self.running = None

    @initialize(ring=st.sampled_from([1, 1500, 100_000]), page=st.sampled_from([1, 1000, 100_000]))
    def begin(self, ring, page):
        self.watch_settings = WatchSettings(ring_bytes=ring, page_bytes=page)
        self.runner.run(self.open())
        self.model = Model(self.keyspace.history)

    async def open(self):
        kept = KeyspaceSettings(log_age=10.0**9)
        self.keyspace = LocalKeyspace(self.storage, kept, node_id=1, wall=lambda: self.now)
        await self.keyspace.open()
        self.changes = []
        self.keyspace.tail(self.changes.extend)
        self.hub = WatchHub(self.keyspace, self.watch_settings)
        self.running = asyncio.create_task(self.hub.run())

    async def close(self):
        self.hub.close()
        self.running.cancel()
        await asyncio.wait([self.running])
        await self.keyspace.aclose()

    def write(self, writing, *expected):
        self.changes.clear()
        self.runner.run(writing)
        self.model.take(self.changes, list(expected))

    # --- writing --------------------------------------------------------------------------------

    @rule(key=KEYS, value=st.binary(max_size=2), ttl=TTLS)
    def put(self, key, value, ttl):
        expires = None if ttl is None else self.now + ttl
        put = self.keyspace.put(key, value, expires=expires)
        self.write(put, ("put", "put", key, value, expires))

    @rule(key=KEYS)
    def delete(self, key):
        there = key in self.model.records
        gone = [("delete", "delete", key, None, None)] * there
        self.write(self.keyspace.delete(key), *gone)

    @rule(key=KEYS, ttl=TTLS)
    def touch(self, key, ttl):
        expires = None if ttl is None else self.now + ttl
        known = self.model.records.get(key)
        touched = [("touch", "touch", key, known.value, expires)] if known else []
        self.write(self.keyspace.touch(key, expires), *touched)

    @rule(prefix=PREFIXES)
    def clear(self, prefix):
        self.write(self.keyspace.clear(prefix), ("clear", "clear", prefix, None, None))

    @rule(milliseconds=st.sampled_from([1, 10, 1000]))
    def expire(self, milliseconds):
        """Time goes by, and the sweeper comes."""
        self.now += milliseconds
        due = self.model.due(self.now)
        self.changes.clear()
        self.runner.run(self.keyspace.upkeep.sweep())
        assert sorted(change.key for change in self.changes) == sorted(due)
        self.model.take(
            self.changes,
            [("delete", "expire", change.key, None, change.expires) for change in self.changes],
        )

    # --- watching -------------------------------------------------------------------------------

    @rule(
        target=clients,
        watched=WATCHED,
        mode=st.sampled_from(["every", "latest"]),
        snapshot=st.booleans(),
        pending=st.sampled_from([2, 50]),
    )
    def subscribe(self, watched, mode, snapshot, pending):
        matcher = selector(Pattern(watched[0]), subtree=watched[1])
        follower = Follower(self.model, matcher, mode)
        client = Client(self.hub, follower, watched, mode, snapshot=snapshot, pending=pending)
        self.followed.append(client)
        return client

    @rule(client=clients)
    def disconnect(self, client):
        client.drop()

    @rule(client=clients)
    def resume(self, client):
        client.resume()

    @rule(client=clients, limit=st.sampled_from([1, 3, 100]))
    def take(self, client, limit):
        client.take(limit)

    @rule(turns=st.integers(1, 10))
    def let_the_hub_run(self, turns):
        async def run():
            for _ in range(turns):
                await asyncio.sleep(0)

        self.runner.run(run())

    @precondition(lambda self: self.model.log)
    @rule()
    def restart(self):
        self.runner.run(self.close())
        self.runner.run(self.open())
        for client in self.followed:
            client.drop()
            client.hub = self.hub

    @invariant()
    def nobody_lost_anything(self):
        assert not any(client.follower.gaps for client in self.followed)

    def teardown(self):
        try:
            if self.running is not None:
                self.runner.run(self.finish())
        finally:
            self.runner.close()

    async def finish(self):
        async with asyncio.timeout(60):
            for client in self.followed:
                client.resume()
            while sum(len(client.take()) for client in self.followed) or not all(
                map(Client.live, self.followed)
            ):
                await asyncio.sleep(0)
        page = await self.keyspace.scan()
        assert {record.key: record for record in page.records} == self.model.records
        for client in self.followed:
            finish(client, self.model, self.hub)
        self.nobody_lost_anything()
        await self.close()


TestWatching = Watching.TestCase
TestWatching.settings = settings(max_examples=80, stateful_step_count=40)
