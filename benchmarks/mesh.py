"""A full mesh on loopback: how soon nodes agree, what replicating costs, what a dead node costs.

    python benchmarks/mesh.py

takes about two minutes.
"""

import asyncio
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anyio
import httpx2
from anyio.streams.stapled import StapledObjectStream

from nkv_core.records import Record, timestamp_at, wall_clock
from nkv_mesh_full.channel import Channel
from nkv_mesh_full.compare import Comparison

sys.path.insert(0, str(Path(__file__).parent.parent / "tests/plugins/nkv_mesh_full"))
from test_compare import two_sides  # the same nodes in memory as there

WRITES = 10_000
NODES = 5
CLIENTS = 32
SECONDS = 4
ROUNDS = 3
RECORDS = 100_000
DIFFERENCES = 1000
VALUE = b"v" * 100


class Node:
    """A node as a process."""

    def __init__(self, folder, *arguments, storage="diskcache"):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nkv_core", "serve", "--port", "0", "--storage", storage,
             "--data-dir", str(folder), *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        line = self.process.stdout.readline().decode()
        self.url = re.search(r"http://\S+:\d+", line).group()
        found = re.search(r"nkv-mesh://(\S+:\d+)", line)
        self.address = found and found.group(1)

    def status(self):
        return httpx2.get(f"{self.url}/v1/status", timeout=30).json()

    def others(self):
        return [one for one in self.status()["mesh"]["members"] if one["state"] != "self"]

    def end(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def until(holds, deadline=60):
    began = time.perf_counter()
    while not holds():
        if time.perf_counter() - began > deadline:
            raise SystemExit("it did not come to hold")
        time.sleep(0.01)
    return time.perf_counter() - began


def mesh(folder, count, **options):
    """So many nodes that are members of each other."""
    plugin = ("--plugin", "nkv_mesh_full", "--set", "mesh.full.port=0")
    nodes = [Node(folder / "0", *plugin, **options)]
    for number in range(1, count):
        joins = ("--join", nodes[0].address)
        nodes.append(Node(folder / str(number), *plugin, *joins, **options))
    for node in nodes:
        until(lambda: sum(one["connected"] for one in node.others()) == count - 1)  # noqa: B023
        until(lambda: not node.status()["mesh"]["catching_up"])  # noqa: B023
    return nodes


def puts(urls, count, prefix):
    """Seconds for so many puts, spread over these nodes; and how long each took."""
    times = []

    async def client(number, http):
        for place in range(number, count, CLIENTS):
            began = time.perf_counter()
            url = f"{urls[place % len(urls)]}/v1/kv/{prefix}.{place}"
            answer = await http.put(url, content=VALUE)
            assert answer.status_code == 201, answer.text
            times.append(time.perf_counter() - began)

    async def run():
        async with httpx2.AsyncClient(timeout=60) as http:
            began = time.perf_counter()
            await asyncio.gather(*(client(number, http) for number in range(CLIENTS)))
            return time.perf_counter() - began

    return asyncio.run(run()), times


def agree():
    with tempfile.TemporaryDirectory() as folder:
        nodes = mesh(Path(folder), NODES)
        try:
            seconds, _ = puts([node.url for node in nodes], WRITES, "k")
            after = until(lambda: all(node.status()["records"] == WRITES for node in nodes))
            print(
                f"{NODES} nodes, {WRITES:,} writes spread over them in {seconds:.1f} s:"
                f" all equal {after:.2f} s after the last"
            )
        finally:
            for node in nodes:
                node.end()


PUT = """
local number = 0
request = function()
  number = number + 1
  return wrk.format("PUT", "/v1/kv/k." .. number, nil, string.rep("v", 100))
end
"""


def put_rate(node, folder):
    """Puts a second, by wrk on 32 connections for some seconds."""
    script = folder / "put.lua"
    script.write_text(PUT)
    done = subprocess.run(
        ["wrk", "-t1", "-c32", f"-d{SECONDS}s", "-s", str(script), node.url],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert "Non-2xx" not in done.stdout, done.stdout
    return float(re.search(r"Requests/sec:\s+([\d.]+)", done.stdout).group(1))


def throughput():
    rates = {"alone": [], "two nodes": []}
    after = []
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(ROUNDS):
            folder = Path(temporary) / str(number)
            folder.mkdir()
            for name, measured in rates.items():
                nodes = [Node(folder / name)] if name == "alone" else mesh(folder / name, 2)
                try:
                    measured.append(put_rate(nodes[0], folder))
                    if len(nodes) == 2:
                        after.append(
                            until(lambda: len({n.status()["records"] for n in nodes}) == 1)  # noqa: B023
                        )
                finally:
                    for node in nodes:
                        node.end()
    alone, two = (statistics.median(of) for of in rates.values())
    ratio = statistics.median(b / a for a, b in zip(*rates.values(), strict=True))
    print(
        f"puts over HTTP to one node: alone {alone:,.0f}/s, with a second that takes them too"
        f" {two:,.0f}/s ({ratio:.2f} x), which has all of them {max(after):.2f} s after the last"
    )


def dead():
    with tempfile.TemporaryDirectory() as folder:
        for name, number in (("killed", signal.SIGKILL), ("stopped", signal.SIGSTOP)):
            nodes = mesh(Path(folder) / name, 3)
            try:
                _, before = puts([nodes[0].url], 2000, "before")
                nodes[-1].process.send_signal(number)
                began = time.perf_counter()
                _, during = puts([nodes[0].url], 2000, "during")
                until(lambda: [m for m in nodes[0].others() if m["state"] == "down"], 30)  # noqa: B023
                down = time.perf_counter() - began
                middles = [statistics.median(times) * 1000 for times in (before, during)]
                print(
                    f"a node {name}: a put takes {middles[0]:.1f} ms before and {middles[1]:.1f} ms"
                    f" behind it; it is down after {down:.1f} s"
                )
            finally:
                for node in nodes:
                    node.end()


async def compare():
    now = wall_clock()

    def records(origin, keys, later=0):
        stamp = timestamp_at(now - 5000 + later)
        return [Record(f"some.key.{key:06}", VALUE, 0, stamp, origin) for key in keys]

    async with two_sides() as (one, two, wall):
        wall.now = now
        for side in (one, two):
            await side.keyspace.apply_foreign(records(3, range(RECORDS)))
        half = DIFFERENCES // 2
        await one.keyspace.apply_foreign(records(1, range(0, RECORDS, RECORDS // half), 10))
        await two.keyspace.apply_foreign(records(2, range(1, RECORDS, RECORDS // half), 10))

        class Ends(StapledObjectStream):
            async def receive(self, most=None):
                return await super().receive()

        there, back = (anyio.create_memory_object_stream(1000) for _ in range(2))
        ends = Ends(there[0], back[1]), Ends(back[0], there[1])
        channels = [Channel(end) for end in ends]
        for channel in channels:
            channel.seal(b"", b"", 10_000_000)
        asks = Comparison(one.core, channels[0], two.core.about(1))
        answers = Comparison(two.core, channels[1], one.core.about(2))
        began = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(asks.ask)
            tasks.start_soon(answers.answer)
        seconds = time.perf_counter() - began
        size = DIFFERENCES * (len("some.key.000000") + len(VALUE))
        traffic = channels[0].sent + channels[0].received
        for end in ends:
            await end.aclose()
    print(
        f"two with {RECORDS:,} records each and {asks.sent + asks.received:,} differences:"
        f" {traffic:,} bytes to agree (5 x what differs + 1 MB is {5 * size + 1_000_000:,}),"
        f" {seconds:.1f} s in one process"
    )


if __name__ == "__main__":
    agree()
    throughput()
    dead()
    anyio.run(compare)
