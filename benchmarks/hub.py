"""What watching costs: publishing, waking, waiting, and those who never read.

    python benchmarks/hub.py [--backend trio] [--json]

Of repeated rounds the median and the best are given: on a machine that does other things besides,
the best is the one to compare. The limits are those that the project has set itself.
"""

import argparse
import gc
import json
import platform
import statistics
import time
import tracemalloc

import anyio

from nkv_core.contracts.settings import KeyspaceSettings
from nkv_core.contracts.watch import WatchSettings
from nkv_core.keyspace.hub import WatchHub
from nkv_core.keyspace.local import LocalKeyspace
from nkv_core.records import Change, Token, new_history
from nkv_storage_memory.storage import MemorySettings, MemoryStorage


class Source:
    """The least of a keyspace: something that tells of changes."""

    def __init__(self):
        self.history = new_history()
        self.revision = 0
        self.listener = None

    @property
    def token(self):
        return Token(self.history, self.revision)

    def tail(self, listener):
        self.listener = listener
        return lambda: None

    def tell(self, key):
        self.listener(self.commits(key))

    def commits(self, key):
        self.revision += 1
        return [Change("put", "put", key, self.revision, self.revision << 16, 1, b"x" * 100, None)]


def publish_among(watchers, rounds=200, changes=100):
    """Microseconds for one change among so many watchers on distinct keys; one of them matches."""
    source = Source()
    hub = WatchHub(source)
    keys = [f"service.unit{number:06}.state" for number in range(watchers)]
    held = [hub.watch(key, wake=nothing) for key in keys]
    gc.collect()
    places = [(number * 7919) % watchers for number in range(rounds * changes)]
    took = []
    for number in range(rounds):
        chosen = places[number * changes : (number + 1) * changes]
        commits = [source.commits(keys[place]) for place in chosen]
        start = time.perf_counter()
        for commit in commits:
            source.listener(commit)
        took.append((time.perf_counter() - start) / changes)
        for place in chosen:
            held[place].take()
    return statistics.median(took) * 1e6, min(took) * 1e6


def publish_to(watchers, rounds=200):
    """Milliseconds for one change that wakes so many watchers."""
    source = Source()
    hub = WatchHub(source)
    held = [hub.watch("a.b", wake=nothing) for _ in range(watchers)]
    took = []
    for _ in range(rounds):
        start = time.perf_counter()
        source.tell("a.b")
        took.append(time.perf_counter() - start)
        for watcher in held:
            watcher.take()
    return statistics.median(took) * 1e3, min(took) * 1e3


async def last_of(consumers, rounds=50):
    """Milliseconds until the last of so many tasks has the change (median, best)."""
    source = Source()
    hub = WatchHub(source)
    left = 0
    done = anyio.Event()

    async def consume(watcher):
        nonlocal left
        while await watcher.next() is not None:
            left -= 1
            if not left:
                done.set()

    took = []
    async with anyio.create_task_group() as tasks:
        for _ in range(consumers):
            tasks.start_soon(consume, hub.watch("a.b"))
        await anyio.wait_all_tasks_blocked()
        for _ in range(rounds):
            left, done = consumers, anyio.Event()
            start = time.perf_counter()
            source.tell("a.b")
            await done.wait()
            took.append((time.perf_counter() - start) * 1e3)
        tasks.cancel_scope.cancel()
    return statistics.median(took), min(took)


def idle_cost(watchers=100_000):
    """Bytes for an idle watcher with its key; seconds of a full collection with all of them."""
    source = Source()
    hub = WatchHub(source)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    held = [hub.watch(f"service.unit{number:06}.state", wake=nothing) for number in range(watchers)]
    each = (tracemalloc.get_traced_memory()[0] - before) / watchers
    tracemalloc.stop()
    pauses = {}
    for part in (watchers, watchers // 10):
        for watcher in held[part:]:
            watcher.close()
        del held[part:]
        gc.collect()
        took = []
        for _ in range(5):
            start = time.perf_counter()
            gc.collect()
            took.append((time.perf_counter() - start) * 1e3)
        pauses[part] = (statistics.median(took), min(took))
    return each, pauses


async def never_reading(watchers=100, writes=50_000, rounds=3):
    """Write throughput with so many who never read, as a ratio; memory growth in MB."""
    plain, watched, growth = [], [], []
    for _ in range(rounds):
        plain.append(await throughput(0, writes))
        watched.append(await throughput(watchers, writes))
    growth = await grown(watchers, writes) - await grown(0, writes)
    return max(watched) / max(plain), max(plain), growth / 1e6


async def throughput(watchers, writes):
    async with opened() as keyspace:
        hub = WatchHub(keyspace)
        held = [hub.watch("*", wake=nothing) for _ in range(watchers)]
        start = time.perf_counter()
        for number in range(writes):
            await keyspace.put(f"k.{number % 1000}", b"x" * 100)
        took = time.perf_counter() - start
        del held
    return writes / took


async def grown(watchers, writes):
    """Memory that writing takes, everything that the store and the hub keep of it included."""
    async with opened(log_bytes=1024 * 1024) as keyspace:
        hub = None
        tracemalloc.start()
        if watchers:
            hub = WatchHub(keyspace)
            held = [hub.watch("*", wake=nothing) for _ in range(watchers)]
        for number in range(writes):
            await keyspace.put(f"k.{number % 1000}", b"x" * 100)
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        if hub is not None:
            assert len(held) == len(hub.watchers())
    return size


class opened:  # noqa: N801  # reads as a phrase
    """A keyspace in memory."""

    def __init__(self, **settings):
        self.keyspace = LocalKeyspace(
            MemoryStorage(MemorySettings()), KeyspaceSettings(**settings), node_id=1
        )

    async def __aenter__(self):
        await self.keyspace.open()
        return self.keyspace

    async def __aexit__(self, *_):
        await self.keyspace.aclose()


def clear_among(watchers=100_000):
    """Milliseconds for a clear that concerns ten watchers of so many."""
    source = Source()
    hub = WatchHub(source, WatchSettings())
    for number in range(watchers):
        hub.watch(f"service.unit{number // 10:05}.state{number % 10}", wake=nothing)
    took = []
    for number in range(100):
        source.revision += 1
        change = Change("clear", "clear", f"service.unit{number:05}.", source.revision, 1, 1)
        start = time.perf_counter()
        source.listener([change])
        took.append(time.perf_counter() - start)
    return statistics.median(took) * 1e3, min(took) * 1e3


def nothing():
    pass


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="asyncio", choices=["asyncio", "trio"])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    idle, pauses = idle_cost()
    ratio, rate, growth = anyio.run(never_reading, backend=options.backend)
    last = anyio.run(last_of, 1000, backend=options.backend)
    figures = [
        ("publish one change among 100 watchers, us", publish_among(100), None),
        ("publish one change among 100,000 watchers, us", publish_among(100_000), 5.0),
        ("a clear that concerns 10 of 100,000 watchers, ms", clear_among(), None),
        ("one change to 1,000 watchers, hub alone, ms", publish_to(1000), 1.0),
        ("last of 1,000 tasks has it, ms", last, 5.0),
        ("idle watcher, bytes", (idle,), 1024),
        ("full collection with 10,000 idle watchers, ms", pauses[10_000], 100.0),
        ("full collection with 100,000 idle watchers, ms", pauses[100_000], None),
        ("writes per second without watchers", (rate,), None),
        ("writing with 100 who never read, ratio (at least)", (ratio,), 0.9),
        ("memory for 100 who never read 50,000 writes, MB", (growth,), 32.0),
    ]
    if options.json:
        print(json.dumps({name: value for name, value, _ in figures}))
        return
    print(f"median and best, Python {platform.python_version()}, {options.backend}")
    for name, value, limit in figures:
        shown = " ".join(f"{each:10.2f}" for each in value)
        print(f"{name:52} {shown:21}" + ("" if limit is None else f"   limit {limit:g}"))


if __name__ == "__main__":
    main()
