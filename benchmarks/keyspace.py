"""The keyspace over diskcache: many writers against one, and a get over 1,000,000 records.

    python benchmarks/keyspace.py

takes about a minute. Writers are interleaved in rounds; each put is on the disk when it returns.
"""

import statistics
import tempfile
import time
from pathlib import Path

import anyio
from anyio.lowlevel import checkpoint

from nkv_core.contracts.keyspace import Put
from nkv_core.contracts.settings import KeyspaceSettings
from nkv_core.keyspace import LocalKeyspace
from nkv_core.testing.storage_crash import make_storage

VALUE = b"x" * 100
ROUNDS = 7
SECONDS = 1.0
RECORDS = 1_000_000
GETS = 20_000


async def opened(directory):
    storage = make_storage("nkv_storage_diskcache", "diskcache", {"directory": str(directory)})
    keyspace = LocalKeyspace(storage, KeyspaceSettings(), node_id=1)
    await keyspace.open()
    return keyspace


async def rate(keyspace, writers, name):
    """Puts a second by so many concurrent writers."""
    done = 0
    began = time.perf_counter()
    stop = began + SECONDS

    async def write(writer):
        nonlocal done
        number = 0
        while time.perf_counter() < stop:
            number += 1
            await keyspace.put(f"bench.{name}.{writer}.{number}", VALUE)
            done += 1

    async with anyio.create_task_group() as tasks:
        for writer in range(writers):
            tasks.start_soon(write, writer)
    return done / (time.perf_counter() - began)


async def many_against_one(directory):
    keyspace = await opened(directory)
    rates, ratios = {1: [], 64: []}, []
    async with anyio.create_task_group() as tasks:
        await tasks.start(keyspace.run)
        for round_number in range(ROUNDS):
            for writers in (1, 64):
                rates[writers].append(await rate(keyspace, writers, f"{round_number}.{writers}"))
            ratios.append(rates[64][-1] / rates[1][-1])
        tasks.cancel_scope.cancel()
    await keyspace.aclose()
    for writers, found in rates.items():
        print(f"durable puts, {writers:2} writers: {statistics.median(found):9,.0f}/s (median)")
    print(
        f"64 writers against 1: {statistics.median(ratios):.1f} x (median of {ROUNDS},"
        f" {min(ratios):.1f} to {max(ratios):.1f}; limit 8 x)"
    )


async def fill(keyspace, records):
    for start in range(0, records, 2_000):
        stop = min(start + 2_000, records)
        await keyspace.batch([Put(f"key.{number:08}", VALUE) for number in range(start, stop)])


async def get_median(keyspace, records):
    """Microseconds of one get, of keys spread over all."""
    took = []
    step = max(records // 1000, 1) * 7 + 1
    for number in range(GETS):
        key = f"key.{number * step % records:08}"
        began = time.perf_counter()
        await keyspace.get(key)
        took.append(time.perf_counter() - began)
        if number % 1000 == 0:
            await checkpoint()
    return statistics.median(took) * 1e6


async def large_against_small(directory):
    small, large = await opened(directory / "small"), await opened(directory / "large")
    await fill(small, 1_000)
    await fill(large, RECORDS)
    ratios = []
    for _ in range(5):
        few, many = await get_median(small, 1_000), await get_median(large, RECORDS)
        ratios.append(many / few)
        print(f"get of 1,000: {few:.1f} us; of {RECORDS:,}: {many:.1f} us; {many / few:.2f} x")
    print(f"get, large against small: {statistics.median(ratios):.2f} x (limit 1.8 x)")
    await small.aclose()
    await large.aclose()


def main():
    with tempfile.TemporaryDirectory() as folder:
        anyio.run(many_against_one, Path(folder) / "writers")
        anyio.run(large_against_small, Path(folder))


if __name__ == "__main__":
    main()
