"""A migration of 1,000,000 records from one storage to another, while 64 writers go on.

    python benchmarks/migrate.py [FROM TO [RECORDS]]

from diskcache to diskcache in another folder unless told otherwise. The worst pause is the longest
time in which no write was answered; the worst wait is that of a single write.
"""

import sys
import tempfile
import time
from pathlib import Path

import anyio

from nkv_core.collector import sparing_collector
from nkv_core.contracts.keyspace import Put
from nkv_core.contracts.settings import KeyspaceSettings
from nkv_core.keyspace import LocalKeyspace
from nkv_core.keyspace.migration import Journal, Migration, Place
from nkv_core.testing.storage_crash import make_storage

VALUE = b"x" * 100
WRITERS = 64
SECONDS = 5.0
BATCH = 5_000


def storage(name, directory):
    settings = {} if name == "memory" else {"directory": str(directory)}
    return make_storage(f"nkv_storage_{name}", name, settings)


class Load:
    """Writers that never stop, and what they have seen."""

    def __init__(self, keyspace, records):
        self._keyspace = keyspace
        self._records = records
        self.acknowledged = {}
        self.running = True
        self.reset()

    def reset(self):
        self.done, self.worst_wait, self.worst_pause = 0, 0.0, 0.0
        self._last = self._begun = time.perf_counter()

    @property
    def rate(self):
        return self.done / (time.perf_counter() - self._begun)

    async def write(self, writer):
        number = 0
        while self.running:
            key = f"k{(writer * 7919 + number * 127) % self._records:07}"
            number += 1
            begun = time.perf_counter()
            written = await self._keyspace.put(key, b"%d.%d" % (writer, number) + VALUE)
            now = time.perf_counter()
            if self.acknowledged.get(key, (0,))[0] < written.revision:
                self.acknowledged[key] = written.revision, written.record
            self.done += 1
            self.worst_wait = max(self.worst_wait, now - begun)
            self.worst_pause = max(self.worst_pause, now - self._last)
            self._last = now
            if number % 16 == 0:
                await anyio.sleep(0)

    def say(self, what):
        print(
            f"{what:30} {self.rate:9,.0f} writes/s; worst pause {self.worst_pause * 1000:6.1f} ms,"
            f" worst wait {self.worst_wait * 1000:6.1f} ms",
            flush=True,
        )
        return self.rate


async def main(source, target, records):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keyspace = LocalKeyspace(storage(source, folder / "a"), KeyspaceSettings(), node_id=1)
        await keyspace.open()
        for begin in range(0, records, BATCH):
            await keyspace.batch(
                [Put(f"k{n:07}", VALUE) for n in range(begin, min(begin + BATCH, records))]
            )
        load = Load(keyspace, records)
        async with anyio.create_task_group() as tasks:
            await tasks.start(keyspace.run)
            for writer in range(WRITERS):
                tasks.start_soon(load.write, writer)
            await anyio.sleep(1)
            load.reset()
            await anyio.sleep(SECONDS)
            before = load.say("before")
            migration = Migration(
                keyspace,
                storage(target, folder / "b"),
                source=Place("a"),
                target=Place("b"),
                journal=Journal(folder),
            )
            load.reset()
            tasks.start_soon(migration.run)
            await migration.switched.wait()
            during = load.say("until the switch")
            if migration.progress.error is not None:
                raise SystemExit(str(migration.progress.error))
            load.reset()
            await anyio.sleep(SECONDS)
            load.say("while it bakes")
            status = migration.status()
            load.running = False
            await migration.decide("commit")
            lost = 0
            for key, (revision, record) in load.acknowledged.items():
                found = await keyspace.get(key)
                lost += found is None or found.revision < revision or found != record
            tasks.cancel_scope.cancel()
        await keyspace.aclose()
        print(
            f"{source} to {target}: {status['copied']:,} records in {status['seconds']:.0f} s;"
            f" barrier {status['write_pause'] * 1000:.1f} ms (limit 100 ms);"
            f" throughput {during / before:.2f} x (limit 0.5 x);"
            f" {lost} of {len(load.acknowledged):,} acknowledged writes lost"
        )


if __name__ == "__main__":
    given = sys.argv[1:]
    source, target = given[:2] if len(given) >= 2 else ("diskcache", "diskcache")
    with sparing_collector():  # as a node does
        anyio.run(main, source, target, int(given[2]) if len(given) > 2 else 1_000_000)
