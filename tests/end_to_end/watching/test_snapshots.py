"""A snapshot, then what follows, at a node that is written to all the time."""

import json
from random import Random

import anyio
import httpx2
import pytest

from nkv_core.config import load_settings
from nkv_core.contracts.keyspace import Delete, Put
from nkv_core.contracts.watch import Changed, SnapshotEnd, SnapshotRecord
from nkv_core.node import Node

from .place import DEADLINE, NO_AUTHORITIES, until
from .subscribers import lines

pytestmark = [pytest.mark.anyio, pytest.mark.one_python]

STARTS = 200
STREAMS = 8
BEHIND = 20  #: changes that are compared behind each snapshot
KEYS = [f"{level}.{number:03}" for level in "ab" for number in range(100)]


async def write(keyspace, dice):
    """Every kind of change, without end."""
    while True:
        key = dice.choice(KEYS)
        match dice.randrange(10):
            case 0:
                await keyspace.clear(dice.choice(["a.00", "b.1", "a.099"]))
            case 1 | 2:
                await keyspace.delete(key)
            case 3:
                await keyspace.touch(key, 2**42)
            case 4:
                await keyspace.batch([Put(key, b"batch"), Delete(dice.choice(KEYS))])
            case _:
                await keyspace.put(key, b"%d" % dice.randrange(10**6))
        await anyio.lowlevel.checkpoint()


class Log:
    """All changes since the node began, in the words of the streams: (kind, key, value, place)."""

    def __init__(self):
        self.changes = []
        self.numbers = {}  #: of the changes, by their tokens

    async def follow(self, hub, *, task_status):
        watcher = hub.watch("*")
        task_status.started()
        async for item in watcher:
            assert isinstance(item, Changed), item
            change = item.change
            self.numbers[str(item.token)] = len(self.changes)
            self.changes.append((change.kind, change.key, change.value, str(item.token)))

    def store(self, place):
        """What there was at a token."""
        store = {}
        for change in self.changes[: self.numbers[place] + 1]:
            play(store, change)
        return store

    def behind(self, place, count):
        begin = self.numbers[place] + 1
        return self.changes[begin : begin + count]


def play(store, change):
    kind, key, value, _ = change
    if kind == "clear":
        for each in [each for each in store if each.startswith(key)]:
            del store[each]
    elif kind == "delete":
        store.pop(key, None)
    else:
        store[key] = value


async def check(log, store, end, behind):
    """One start: what was there at the end of the snapshot, and the changes behind it."""
    await until(lambda: behind[-1][-1] in log.numbers, "the log")
    assert behind == log.behind(end, len(behind))
    assert store == log.store(end)


async def start_in_process(hub):
    """The records until the end of a snapshot, its token, and some changes behind it."""
    watcher = hub.watch("*", snapshot=True)
    store, end, behind = {}, None, []
    try:
        async for item in watcher:
            match item:
                case SnapshotRecord(record=record):
                    assert record.key not in store, "a record twice"
                    store[record.key] = record.value
                case Changed(change=change):
                    told = (change.kind, change.key, change.value, str(item.token))
                    if end is None:
                        play(store, told)
                    else:
                        behind.append(told)
                case SnapshotEnd(token=token):
                    end = str(token)
                case _:
                    raise AssertionError(item)
            if len(behind) == BEHIND:
                return store, end, behind
    finally:
        watcher.close()
    raise AssertionError("the watcher has ended")


async def start_over_http(http):
    store, end, behind, event = {}, None, [], {}
    query = {"pattern": "*", "snapshot": "1"}
    async with http.stream("GET", "/v1/watch", params=query) as response:
        async for line in lines(response):
            if line:
                name, _, value = line.partition(": ")
                event[name] = value
                continue
            told, event = event, {}
            if "event" not in told:
                continue
            data = json.loads(told["data"])
            if told["event"] == "snapshot-end":
                end = told["id"]
                continue
            value = data["value"].encode() if "value" in data else None
            change = (told["event"], data.get("key", data.get("prefix")), value, told.get("id"))
            assert change[0] in ("put", "touch", "delete", "clear"), told
            if end is None:
                play(store, change)
            else:
                behind.append(change)
            if len(behind) == BEHIND:
                return store, end, behind
    raise AssertionError("the stream ended")


@pytest.fixture
async def written(tmp_path, anyio_backend):
    """A node that somebody writes to all the time, what it logs, and dice."""
    flags = {
        "node.data_dir": str(tmp_path / "data"),
        "transport.http.port": 0,
        "storage.name": "memory",
        "watch.page_bytes": 3000,
    }
    log, dice = Log(), Random(11)
    async with (
        Node(load_settings(flags=flags)) as node,
        anyio.create_task_group() as tasks,
    ):
        await tasks.start(log.follow, node.hub)
        await node.keyspace.batch([Put(key, b"0") for key in KEYS])
        tasks.start_soon(write, node.keyspace, dice)
        yield node, log, dice
        tasks.cancel_scope.cancel()


async def test_200_snapshots_at_random_moments_have_no_hole_and_no_repeat(written):
    node, log, dice = written
    for _ in range(STARTS):
        await anyio.sleep(dice.random() * 0.005)
        await check(log, *await start_in_process(node.hub))


async def test_streams_over_http_have_no_hole_and_no_repeat(written):
    node, log, dice = written
    (url,) = (url for url in node.addresses if url.startswith("http:"))
    async with httpx2.AsyncClient(
        base_url=url, timeout=DEADLINE, trust_env=False, verify=NO_AUTHORITIES
    ) as http:
        for _ in range(STREAMS):
            await anyio.sleep(dice.random() * 0.05)
            await check(log, *await start_over_http(http))
