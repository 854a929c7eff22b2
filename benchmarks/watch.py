"""From a put to the watcher who is told of it, beside the put alone and beside NATS KV; and what
watchers cost that only wait.

    python benchmarks/watch.py [--connections N]

All clients are plain sockets in this process, so that what is measured is the servers and the
protocols. Rounds of the servers take turns; of all rounds the median is given.
"""

import argparse
import asyncio
import contextlib
import json
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from base64 import b64encode
from pathlib import Path

import nats
from nats.js.api import ConsumerConfig, DeliverPolicy, KeyValueConfig, StorageType

ROUNDS = 7
PUTS = 300
DEADLINE = 60  # seconds, for anything
LATENCY = 1.5  # times a put
MEMORY = 20  # kilobytes for one watcher with its connection
PAUSE = 100  # milliseconds of one garbage collection
CONNECTIONS = 10_000

#: Tells, at `/pause`, the longest garbage collection since it was asked last.
PLUGIN = """
import gc, time
from nkv_core import hookimpl

LONGEST = [0.0]
BEGAN = [0.0]

def note(phase, info):
    if phase == "start":
        BEGAN[0] = time.perf_counter()
    else:
        LONGEST[0] = max(LONGEST[0], time.perf_counter() - BEGAN[0])

def pause(request):
    longest, LONGEST[0] = LONGEST[0], 0.0
    return {"milliseconds": longest * 1e3}

def collect(request):
    gc.collect()
    return pause(request)

@hookimpl
async def nkv_setup(ctx):
    gc.callbacks.append(note)
    yield
    gc.callbacks.remove(note)

@hookimpl
def nkv_handlers(handlers):
    handlers.add("/pause", pause)
    handlers.add("/collect", collect)
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serving(command, port):
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + DEADLINE
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                if time.monotonic() > end or process.poll() is not None:
                    raise SystemExit(f"{command[0]} does not serve")
                time.sleep(0.05)
            yield process
        finally:
            process.terminate()


@contextlib.contextmanager
def node(folder, storage, *options):
    """A node; its HTTP port, its socket, its process."""
    port, path = free_port(), Path(folder) / "nkv.sock"
    command = [sys.executable, "-m", "nkv_core", "serve", "--port", str(port)]
    command += ["--storage", storage, "--data-dir", str(Path(folder) / "data")]
    command += ["--plugin", "nkv_transport_socket", "--set", f"transport.socket.path={path}"]
    with serving([*command, *options], port) as process:
        yield port, path, process


def connected(place):
    family = socket.AF_UNIX if isinstance(place, str) else socket.AF_INET
    connection = socket.socket(family)
    connection.settimeout(DEADLINE)
    connection.connect(place)
    if family == socket.AF_INET:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


class Pair:
    """A writer and a watcher: what is sent for a put, what ends its answer, what ends its event."""

    def __init__(self, place, put, answered, watch, told):
        self.writer, self.watcher = connected(place), connected(place)
        self.put, self.answered, self.told = put, answered, told
        self.watcher.sendall(watch)

    def begin(self):
        """Wait until the watcher is told at all."""
        end = time.monotonic() + DEADLINE
        self.watcher.settimeout(0.3)
        while True:
            self.writer.sendall(self.put(b"begin"))
            read_until(self.writer, self.answered)
            try:
                read_until(self.watcher, self.told(b"begin"))
                break
            except TimeoutError:
                if time.monotonic() > end:
                    raise
        self.watcher.settimeout(DEADLINE)

    def round(self, begin):
        """Seconds of each put until it is answered, and until the watcher is told."""
        answered, told = [], []
        for number in range(begin, begin + PUTS):
            value = b"value-%07d" % number
            start = time.perf_counter()
            self.writer.sendall(self.put(value))
            read_until(self.writer, self.answered)
            answered.append(time.perf_counter() - start)
            read_until(self.watcher, self.told(value))
            told.append(time.perf_counter() - start)
        return statistics.median(answered), statistics.median(told)


def read_until(connection, mark):
    data = b""
    while mark not in data:
        piece = connection.recv(65536)
        if not piece:
            raise SystemExit("a server has closed the connection")
        data += piece


def over_sse(port):
    def put(value):
        head = b"PUT /v1/kv/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(
            value
        )
        return head + value

    watch = b"GET /v1/watch?pattern=a HTTP/1.1\r\nHost: localhost\r\n\r\n"
    return Pair(("127.0.0.1", port), put, b"\r\n\r\n", watch, lambda value: value)


def over_socket(path):
    return Pair(
        str(path),
        lambda value: b"PUT 1 me a %b\n" % b64encode(value),
        b"OK\n",
        b"SUB 1 me a\n",
        b64encode,
    )


async def bucket(port):
    """Make a bucket and its watch; the subject that the watch delivers to."""
    client = await nats.connect(f"nats://127.0.0.1:{port}")
    stream = client.jetstream()
    config = KeyValueConfig(bucket="b", storage=StorageType.MEMORY)
    await stream.create_key_value(config)
    consumer = ConsumerConfig(
        deliver_subject="told", deliver_policy=DeliverPolicy.NEW, filter_subject="$KV.b.a"
    )
    await stream.add_consumer("KV_b", consumer)
    await client.close()


def over_nats(port):
    asyncio.run(bucket(port))
    hello = b'CONNECT {"verbose":false}\r\n'
    pair = Pair(
        ("127.0.0.1", port),
        lambda value: b"PUB $KV.b.a answers %d\r\n%b\r\n" % (len(value), value),
        b"}\r\n",
        hello + b"SUB told 1\r\nPING\r\n",
        lambda value: value,
    )
    read_until(pair.watcher, b"PONG\r\n")
    pair.writer.sendall(hello + b"SUB answers 1\r\nPING\r\n")
    read_until(pair.writer, b"PONG\r\n")
    return pair


def latencies(pairs):
    """Medians over rounds that take turns: microseconds until a put is answered, until it is told,
    and how many times as long as the first it takes from then on.
    """
    seen = {name: [] for name in pairs}
    for pair in pairs.values():
        pair.begin()
    for number in range(ROUNDS + 1):
        for name, pair in pairs.items():
            found = pair.round(number * PUTS)
            if number:  # the first warms up
                seen[name].append(found)
    return {
        name: (
            statistics.median(put for put, _ in rounds) * 1e6,
            statistics.median(told for _, told in rounds) * 1e6,
            statistics.median((told - put) / put for put, told in rounds),
        )
        for name, rounds in seen.items()
    }


def compare(folder):
    nats_port, store = free_port(), str(Path(folder) / "nats")
    server = ["nats-server", "-a", "127.0.0.1", "-p", str(nats_port), "-js", "-sd", store]
    with (
        node(Path(folder) / "memory", "memory") as (port, path, _),
        node(Path(folder) / "disk", "diskcache") as (disk_port, disk_path, _),
        serving(server, nats_port),
    ):
        pairs = {
            "SSE, in memory": over_sse(port),
            "socket, in memory": over_socket(path),
            "SSE, on the disk": over_sse(disk_port),
            "socket, on the disk": over_socket(disk_path),
            "NATS KV, in memory": over_nats(nats_port),
        }
        found = latencies(pairs)
    nats = found["NATS KV, in memory"][1]
    print("p50 from sending a put until it is answered, until it is told; between them, in puts:")
    for name, (put, told, ratio) in found.items():
        beside = "" if "memory" not in name or "NATS" in name else f"; {told / nats:.2f} x NATS"
        limit = "" if "NATS" in name else f" (at most {LATENCY})"
        print(f"  {name:20} {put:7,.0f} us {told:7,.0f} us {ratio:6.2f} x{limit}{beside}")


def resident(process):
    """Bytes of memory that a process holds."""
    pages = Path(f"/proc/{process.pid}/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


def asked(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=DEADLINE) as answer:
        return json.load(answer)


def idle(folder, wanted):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(wanted, hard - 200)
    plugin = Path(folder) / "pauses.py"
    plugin.write_text(PLUGIN)
    limits = [f"transport.http.max_connections={count + 100}", f"watch.max_watchers={count + 100}"]
    options = [part for limit in limits for part in ("--set", limit)]
    with node(folder, "memory", "--plugin", str(plugin), *options) as (port, _, process):
        asked(port, "/collect")
        before = resident(process)
        watchers = []
        for number in range(count):
            watcher = connected(("127.0.0.1", port))
            watcher.sendall(
                b"GET /v1/watch?pattern=service.%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % number
            )
            watchers.append(watcher)
        for watcher in watchers:
            read_until(watcher, b"id: ")
        waiting = asked(port, "/pause")["milliseconds"]
        each = (resident(process) - before) / count / 1024
        # Others read and write meanwhile; then everything is collected at once.
        pair = over_sse(port)
        pair.begin()
        pair.round(0)
        working = asked(port, "/pause")["milliseconds"]
        everything = asked(port, "/collect")["milliseconds"]
        for watcher in watchers:
            watcher.close()
    print(
        f"{count:,} idle watchers with their SSE connections: {each:.1f} KB each (at most {MEMORY})"
    )
    print(
        f"  longest garbage collection: {waiting:.0f} ms while they came, {working:.1f} ms while"
        f" others worked (at most {PAUSE}); of everything, if asked for: {everything:.0f} ms"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("memory", "disk", "idle"):
            (Path(folder) / name).mkdir()
        compare(folder)
        idle(Path(folder) / "idle", arguments.connections)


if __name__ == "__main__":
    main()
