"""Whole nodes: how soon they answer, what they take, and what replacing a plugin costs.

    python benchmarks/node.py

takes about two minutes, most of it to write 1,000,000 records.
"""

import gc
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import anyio
import httpx2

from nkv_core import Node, load_settings
from nkv_core.contracts.keyspace import Put

STARTS = 5
RECORDS = 1_000_000
REPLACEMENTS = 200

PLUGIN = """
from nkv_core import hookimpl

@hookimpl
def nkv_handlers(handlers):
    handlers.add("/turn", turn)

async def turn(request):
    return {turn}
"""


def started(data_dir, *arguments):
    """A node as a process: it, its address, and the seconds until its first answer."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "nkv_core", "serve"),
            *("--port", "0", "--data-dir", str(data_dir)),
            *arguments,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    url = re.search(r"http://\S+:\d+", process.stdout.readline().decode()).group()
    assert httpx2.get(f"{url}/healthcheck").status_code == 200
    return process, url, time.perf_counter() - began


def resident(pid):
    """Megabytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) * 1024 / 1e6


def stop(process):
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    process.stdout.close()


def idle(folder):
    seconds, megabytes = [], []
    for number in range(STARTS):
        process, _, took = started(folder / f"idle-{number}")
        seconds.append(took)
        megabytes.append(resident(process.pid))
        stop(process)
    print(f"first answer after `nkv serve`: {statistics.median(seconds):.2f} s (limit 1.5 s)")
    print(f"idle node, resident: {statistics.median(megabytes):.0f} MB (limit 60 MB)")


async def fill(data_dir):
    settings = load_settings(
        flags={
            "node.data_dir": str(data_dir),
            "plugins.disable": ["nkv_transport_http", "nkv_notifier_sse", "nkv_notifier_websocket"],
        }
    )
    async with Node(settings) as node:
        for start in range(0, RECORDS, 2_000):
            await node.keyspace.batch(
                [Put(f"key.{number:08}", b"x" * 100) for number in range(start, start + 2_000)]
            )


def full(folder):
    anyio.run(fill, folder / "full")
    process, url, took = started(folder / "full")
    with httpx2.Client(base_url=url) as client:
        for number in range(0, RECORDS, 200):
            assert client.get(f"/v1/kv/key.{number:08}").status_code == 200
    print(f"restart with {RECORDS:,} records: {took:.2f} s (limit 10 s)")
    print(f"resident after 5,000 gets all over them: {resident(process.pid):.0f} MB (limit 600 MB)")
    stop(process)


def replacements(folder):
    settings = load_settings(
        flags={
            "node.data_dir": str(folder / "replaced"),
            "storage.name": "memory",
            "transport.http.port": 0,
        }
    )
    plugin = folder / "turning.py"
    plugin.write_text(PLUGIN.format(turn=0))
    failed, asked, over = [], 0, threading.Event()

    def ask(url):
        nonlocal asked
        with httpx2.Client(base_url=url) as client:
            while not over.is_set():
                answer = client.get("/turn")
                asked += 1
                if answer.status_code != 200:
                    failed.append(answer.text)

    with Node.in_thread(settings) as node:
        node.call(node.plugins.load, str(plugin))
        threads = [threading.Thread(target=ask, args=(node.addresses[0],)) for _ in range(4)]
        for thread in threads:
            thread.start()
        took = []
        for turn in range(REPLACEMENTS):
            if turn == 20:  # what is made once has been made
                gc.collect()
                objects, memory = len(gc.get_objects()), resident(os.getpid())
            plugin.write_text(PLUGIN.format(turn=turn))
            began = time.perf_counter()
            node.call(node.plugins.replace, "turning")
            took.append(time.perf_counter() - began)
        over.set()
        for thread in threads:
            thread.join(30)
        time.sleep(3)  # the last generations have drained and been collected
        gc.collect()
        grown = len(gc.get_objects()) - objects
        print(
            f"{REPLACEMENTS} replacements of a handler plugin under {asked:,} requests:"
            f" {len(failed)} failed (limit 0)"
        )
        print(f"one replacement: {statistics.median(took) * 1000:.1f} ms (median)")
        print(
            f"growth over the last {REPLACEMENTS - 20}: {grown:+,} objects,"
            f" {resident(os.getpid()) - memory:+.1f} MB"
        )


def main():
    with tempfile.TemporaryDirectory() as folder:
        idle(Path(folder))
        full(Path(folder))
        replacements(Path(folder))


if __name__ == "__main__":
    main()
