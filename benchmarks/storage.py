"""The storages: memory, opening, reading and writing. Ratios are within one run.

    python benchmarks/storage.py [NAME]... [--records N] [--directory DIR]

takes less than two minutes. Each storage is measured in a process of its own, so that its resident
memory is its own. A figure of a shared machine is a median of interleaved rounds.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from nkv_core.contracts.storage import Batch
from nkv_core.testing.storage_crash import make_storage

SMALL = 1_000
VALUE_BYTES = 100
READS = 5_000
ROUNDS = 11
LOAD_BATCH = 2_000
WRITE_SECONDS = 1.5
BATCHES = (1, 8, 64, 256)
LIMITS = {"diskcache": "(limits: open 10 s, resident 600 MB, get 1.8 x)"}


def key_of(number: int) -> bytes:
    return b"key:%012d" % number


def resident() -> float:
    """Megabytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1000
    raise LookupError("VmRSS")


def offer(name: str, directory: Path):
    settings = {"directory": str(directory)} if name == "diskcache" else {}
    storage = make_storage(f"nkv_storage_{name}", name, settings)
    storage.open()
    return storage


def load(storage, records: int) -> float:
    """Put the records in random order; returns the seconds it took."""
    chance = random.Random(1)
    numbers = list(range(records))
    chance.shuffle(numbers)
    began = time.perf_counter()
    for begin in range(0, records, LOAD_BATCH):
        batch = Batch()
        for number in numbers[begin : begin + LOAD_BATCH]:
            batch.put("records", key_of(number), chance.randbytes(VALUE_BYTES))
        storage.apply(batch)
    return time.perf_counter() - began


def get_median(storage, records: int, chance: random.Random) -> float:
    """Microseconds of one `get` of a random key."""
    keys = [key_of(number) for number in chance.choices(range(records), k=READS)]
    took = []
    clock = time.perf_counter_ns
    for key in keys:
        began = clock()
        found = storage.get("records", key)
        took.append(clock() - began)
        assert found is not None
    return statistics.median(took) / 1000


def write_rate(storage, size: int, chance: random.Random, busy: bool) -> float:
    """Records a second; `busy` next to a thread that never lets go of the interpreter by itself."""
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            sum(range(1000))

    spinner = threading.Thread(target=spin)
    if busy:
        spinner.start()
    made = 0
    began = time.perf_counter()
    while (elapsed := time.perf_counter() - began) < WRITE_SECONDS:
        batch = Batch()
        for _ in range(size):
            batch.put("records", key_of(chance.randrange(10**9)), b"v" * VALUE_BYTES)
        storage.apply(batch)
        made += size
    stop.set()
    if busy:
        spinner.join()
    return made / elapsed


def measure(name: str, records: int, directory: Path) -> dict:
    chance = random.Random(2)
    small = offer(name, directory / "small")
    load(small, SMALL)
    before = resident()
    big = offer(name, directory / "big")
    figures = {"load": records / load(big, records)}
    if big.durable:
        big.close()
        began = time.perf_counter()
        big.open()
        figures["open"] = time.perf_counter() - began
    figures["count"] = big.count("records")
    get_median(big, records, chance)
    rounds = [
        (get_median(small, SMALL, chance), get_median(big, records, chance)) for _ in range(ROUNDS)
    ]
    figures["get_small"] = statistics.median(small for small, _ in rounds)
    figures["get_big"] = statistics.median(big for _, big in rounds)
    figures["get_ratio"] = statistics.median(big / small for small, big in rounds)
    figures["resident"] = resident()
    figures["grown"] = figures["resident"] - before
    began = time.perf_counter()
    figures["scanned"] = 0
    start = b""
    while page := big.scan("records", start, limit=1000):
        figures["scanned"] += len(page)
        start = page[-1][0] + b"\x00"
    figures["scan"] = (time.perf_counter() - began) / records * 1e6
    writes = offer(name, directory / "writes")
    for busy in (False, True):
        figures["busy" if busy else "idle"] = [
            write_rate(writes, size, chance, busy) for size in BATCHES
        ]
    began = time.perf_counter()
    deleted = big.delete_range("records", key_of(0), key_of(records // 10))
    figures["delete_range"] = (time.perf_counter() - began) / deleted * 1e6
    for storage in (small, big, writes):
        storage.close()
    return figures


def show(name: str, figures: dict) -> None:
    count = figures["count"]
    print(f"\n{name}: {count:,} records of {VALUE_BYTES} bytes {LIMITS.get(name, '')}")

    def line(title: str, figure: str, more: str = "") -> None:
        print(f"  {title:<26} {figure:>18} {more}")

    line("resident", f"{figures['resident']:.0f} MB", f"({figures['grown']:.0f} MB for the data)")
    if "open" in figures:
        line("open", f"{figures['open'] * 1000:.1f} ms")
    line(f"get, p50, of {SMALL:,}", f"{figures['get_small']:.2f} us")
    line(f"get, p50, of {count:,}", f"{figures['get_big']:.2f} us", f"{figures['get_ratio']:.2f} x")
    line("scan, pages of 1,000", f"{figures['scan']:.2f} us/record")
    line("delete_range", f"{figures['delete_range']:.2f} us/record")
    line(f"load, batches of {LOAD_BATCH:,}", f"{figures['load']:,.0f} records/s")
    print("  records/s by batch         " + "".join(f"{size:>16}" for size in BATCHES))
    for busy, title in (("idle", "alone"), ("busy", "next to a busy thread")):
        rates = figures[busy]
        cells = "".join(f"{rate:>9,.0f} {rate / rates[0]:4.0f} x" for rate in rates)
        print(f"    {title:<24} {cells}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["memory", "diskcache"])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--directory", default=None, help="on the disk to measure")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        figures = measure(options.one, options.records, Path(options.directory))
        print(json.dumps(figures))
        return
    for name in options.names:
        with tempfile.TemporaryDirectory(dir=options.directory, prefix="nkv-bench-") as directory:
            answer = subprocess.run(
                [
                    *(sys.executable, __file__, "--one", name),
                    *("--records", str(options.records), "--directory", directory),
                ],
                stdout=subprocess.PIPE,
                check=True,
            )
        show(name, json.loads(answer.stdout))


if __name__ == "__main__":
    main()
