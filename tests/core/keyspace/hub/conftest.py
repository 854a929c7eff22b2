"""A keyspace whose every step the test decides, and a follower that checks what it is told."""

from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.lowlevel import checkpoint

from nkv_core.contracts.keyspace import ChangePage, Page
from nkv_core.contracts.watch import Changed, Ended, Gap, SnapshotEnd, SnapshotRecord, WatchSettings
from nkv_core.errors import InvalidToken
from nkv_core.keys import EVERYTHING
from nkv_core.keyspace.hub import WatchHub
from nkv_core.records import Change, Record, Token, new_history


class FakeKeyspace:
    """Writes are applied at once and told when the test says so, as a storage in a thread may."""

    def __init__(self, *, keep=10**9, history=None):
        self.history = history or new_history()
        self.records = {}
        self.log = []  # everything that ever happened: the model
        self.forgotten = 0
        self.keep = keep
        self.revision = 0
        self.clock = 1000
        self.auto = True
        self.error = None
        self.scans = 0
        self.reads = 0
        self._told = 0
        self._untold = []
        self._tails = []

    @property
    def token(self):
        return Token(self.history, self._told)

    def tail(self, listener):
        self._tails.append(listener)
        return lambda: self._tails.remove(listener)

    async def scan(self, pattern=EVERYTHING, *, after=None, limit=1000, options=None):
        self.scans += 1
        await checkpoint()
        self._fail()
        keys = sorted(
            k for k in self.records if (after is None or k > after) and pattern.matches(k)
        )
        page = Page(
            [self.records[k] for k in keys[:limit]], keys[limit - 1] if keys[limit:] else None
        )
        await checkpoint()
        return page

    async def changes(self, since, pattern=EVERYTHING, *, limit=1000):
        self.reads += 1
        await checkpoint()
        self._fail()
        if since.revision > self.revision:
            raise InvalidToken
        gap = since.history != self.history or since.revision < self.forgotten
        start = self.forgotten if gap else since.revision
        found = [c for c in self.log if c.revision > start][:limit]
        end = found[-1].revision if found else max(start, self._told)
        await checkpoint()
        return ChangePage(found, Token(self.history, end), gap)

    def _fail(self):
        if self.error is not None:
            raise self.error

    # --- writing ---

    def put(self, key, value=b"", *, expires=None, cause="put"):
        old = self.records.get(key)
        record = Record(key, value, *self._stamp(), expires)
        self.records[key] = record
        return self._add("put", cause, key, record, old)

    def touch(self, key, expires):
        old = self.records.get(key)
        if old is not None:
            record = Record(key, old.value, *self._stamp(), expires)
            self.records[key] = record
            self._add("touch", "touch", key, record, old)

    def delete(self, key, cause="delete"):
        old = self.records.pop(key, None)
        if old is not None:
            self._add("delete", cause, key, Record(key, b"", *self._stamp()), old)

    def clear(self, prefix=""):
        stamp = self._stamp()
        for key in [key for key in self.records if key.startswith(prefix)]:
            del self.records[key]
        self._add("clear", "clear", prefix, Record(prefix, b"", *stamp), None)

    def _stamp(self):
        self.revision += 1 if self.revision % 3 else 2  # holes are legal
        self.clock += 1
        return self.revision, self.clock, 7

    def _add(self, kind, cause, key, record, old):
        change = Change(
            kind,
            cause,
            key,
            record.revision,
            record.modified,
            record.origin,
            record.value if kind in ("put", "touch") else None,
            old.revision if old else None,
            record.expires,
        )
        self.log.append(change)
        self._untold.append(change)
        if self.auto:
            self.tell()
        return change

    def tell(self):
        """Have the tails told of what was written since the last time, as one commit."""
        told, self._untold = self._untold, []
        if told:
            self._told = told[-1].revision
            if len(self.log) > self.keep:
                self.forgotten = max(
                    self.forgotten, min(self.log[-self.keep - 1].revision, self._told)
                )
            for tail in list(self._tails):
                tail(told)

    def at(self, revision):
        """The values at a revision, from the log alone."""
        store = {}
        for change in self.log:
            if change.revision > revision:
                break
            replay(store, change)
        return store


def replay(store, change):
    if change.kind == "clear":
        for key in [key for key in store if key.startswith(change.key)]:
            del store[key]
    elif change.kind == "delete":
        store.pop(change.key, None)
    else:
        store[change.key] = (change.value, change.revision, change.expires)


class Follower:
    """Checks each item that a watcher tells against the log, and keeps the store they make."""

    def __init__(self, keyspace, watched, mode="every"):
        self.keyspace = keyspace
        self.watched = watched
        self.mode = mode
        self.store = {}
        self.changes = []
        self.gaps = []
        self.ends = []
        self.kept = None  # the token that a client would resume with
        self.complete = False  # whether `store` is all of what is watched
        self.place = keyspace.token.revision
        self.snapshot = None  # the keys of the snapshot being received
        self.ended = None

    def begin(self, *, snapshot):
        """A new watcher that has no token to go on from."""
        self.place = self.keyspace.token.revision
        self.kept = None if snapshot else self.keyspace.token
        self.complete = False
        self.snapshot = set() if snapshot else None
        self.store = {}

    def take(self, watcher, limit=1000):
        items = watcher.take(limit)
        for item in items:
            self.item(item)
        return items

    def drain(self, watcher):
        while self.take(watcher):
            pass

    def item(self, item):
        assert self.ended is None, "something behind the end"
        match item:
            case Changed():
                self._changed(item)
            case SnapshotRecord(record=record):
                assert self.snapshot is not None, "a record outside of a snapshot"
                assert record.key not in self.snapshot, "a record twice"
                assert self.watched.matches(record.key)
                assert record == next(
                    Record(c.key, c.value, c.revision, c.modified, c.origin, c.expires)
                    for c in self.keyspace.log
                    if c.revision == record.revision
                )
                self.snapshot.add(record.key)
                self.store[record.key] = (record.value, record.revision, record.expires)
            case SnapshotEnd(token=token):
                assert self.snapshot is not None, "an end without a beginning"
                self.snapshot = None
                self.place = token.revision
                self.complete = True
                self._check_end(token)
            case Gap(after=after, upto=upto, resync=resync):
                self._gap(after, upto, resync=resync)
            case Ended():
                self.ended = item
        if item.token is not None:
            self.kept = item.token

    def _changed(self, item):
        change = item.change
        assert any(change is each or change == each for each in self.keyspace.log)
        if change.kind == "clear":
            assert self.watched.overlaps(change.key)
        else:
            assert self.watched.matches(change.key)
        if self.snapshot is not None:
            assert item.token is None
            if change.kind != "clear" and self.mode == "every":
                known = self.store.get(change.key)
                assert known is None or known[1] < change.revision, "a change already sent"
        else:
            assert item.token == Token(self.keyspace.history, change.revision)
            assert change.revision > self.place, "a change twice, or out of order"
            if self.mode == "every":
                assert change == self._next(), "a hole"
            self.place = change.revision
            self.changes.append(change)
        replay(self.store, change)

    def _next(self):
        return next(c for c in self.keyspace.log if c.revision > self.place and self._is_for(c))

    def _is_for(self, change):
        if change.kind == "clear":
            return self.watched.overlaps(change.key)
        return self.watched.matches(change.key)

    def _gap(self, after, upto, *, resync):
        self.gaps.append((after, upto, resync))
        assert upto.history == self.keyspace.history
        if after.history == self.keyspace.history and not resync:
            between = [c for c in self.keyspace.log if self.place < c.revision <= after.revision]
            assert not [change for change in between if self._is_for(change)]
            # Told of as lost, and lost indeed: the log has none of it any more.
            kept = [c.revision for c in self.keyspace.log if c.revision > self.keyspace.forgotten]
            assert not [revision for revision in kept if revision <= upto.revision]
        self.place = upto.revision
        self.complete = False
        if resync:
            self.snapshot = set()
            self.store = {}

    def _check_end(self, token):
        expected = {k: v for k, v in self.keyspace.at(token.revision).items() if self._watches(k)}
        for key, value in self.store.items():
            assert expected.pop(key) == value
        for key in expected:  # may have been deleted already, which is yet to be told
            assert any(
                c.revision > token.revision
                and c.kind in ("delete", "clear")
                and key.startswith(c.key)
                for c in self.keyspace.log
            ), f"{key} is missing at the end of the snapshot"

    def _watches(self, key):
        return self.watched.matches(key)

    def check_equal(self):
        """Having taken everything, the store is that of the keyspace."""
        assert self.complete
        assert self.store == {
            key: (record.value, record.revision, record.expires)
            for key, record in self.keyspace.records.items()
            if self._watches(key)
        }


@pytest.fixture
def fake_keyspace():
    return FakeKeyspace


@pytest.fixture
def follower():
    return Follower


@pytest.fixture
def running():
    """An async context manager: a hub that runs."""

    @asynccontextmanager
    async def run(keyspace, **settings):
        hub = WatchHub(keyspace, WatchSettings(**settings))
        async with anyio.create_task_group() as tasks:
            await tasks.start(lambda *, task_status: hub.run(task_status=task_status))
            yield hub
            tasks.cancel_scope.cancel()

    return run
