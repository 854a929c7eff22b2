"""From a put to those who watch, beside a put alone and beside NATS; and what idle watchers cost.

    python benchmarks/watch.py [--rounds N] [--idle N] [--backend trio]

The node has all defaults: each put is synced to the disk. Puts go one at a time, one of a key that
nobody watches for each of one that is watched, on raw sockets: over HTTP with the watcher on
Server-Sent Events, and over the socket transport. Then the same through the client libraries, the
node's own beside nats-py on a bucket of NATS KV. All of them take turns in short rounds.

After that as many watchers as `--idle` says, each on a stream of its own, do nothing: what the node
has grown by, and how long its garbage collector has stopped it.
"""

import argparse
import asyncio
import contextlib
import itertools
import re
import resource
import selectors
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx2

from nkv_core.client import AsyncClient, Changed

PUTS = 200  # in a round
WARM_UP = 20
DEADLINE = 60  # seconds, for anything
RATIO = 1.5
EACH = 20  # KB for an idle watcher with its connection
PAUSE = 100  # ms
AT_ONCE = 100  # connections that are opened before their answers are read
SPARE_FILES = 200

#: Loaded into the node, to tell of its collector.
COLLECTOR = """
import gc, time
from nkv_core import hookimpl

pauses = []
began = ()

def now():
    return time.thread_time(), time.perf_counter()

def noted(phase, info):
    global began
    if phase == "start":
        began = now()
    else:
        pauses.append([after - before for after, before in zip(now(), began)])

@hookimpl
async def nkv_setup(ctx):
    ctx.handlers.add("/collector", told)
    gc.callbacks.append(noted)
    yield
    gc.callbacks.remove(noted)

async def told(request):
    if request.params.get("collect"):
        gc.collect()
    longest = max(pauses, default=[0.0, 0.0])
    many = len(pauses)
    pauses.clear()
    return {"pauses": many, "longest": longest}
"""


@contextlib.contextmanager
def node(folder, *arguments):
    """A node as a process, and its address."""
    command = [sys.executable, "-m", "nkv_core", "serve", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--data-dir", str(folder / "data"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process, re.search(r"http://\S+:\d+", process.stdout.readline().decode()).group()
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


@contextlib.contextmanager
def nats_server(folder):
    """A NATS server with JetStream, its port; None where none is installed."""
    program = shutil.which("nats-server")
    if program is None:
        yield None
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [program, "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(folder / "jetstream")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield port
    finally:
        process.terminate()
        process.wait()


def connected(family, address):
    peer = socket.socket(family)
    if family == socket.AF_INET:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer.settimeout(DEADLINE)
    peer.connect(address)
    return peer


class Raw:
    """A connection that puts and one that watches. Subclasses know the words of a transport."""

    name = ""
    end = b""  #: of an answer

    def __init__(self, family, address):
        self.writer, self.watcher = connected(family, address), connected(family, address)
        self.selector = selectors.DefaultSelector()
        for each in (self.writer, self.watcher):
            self.selector.register(each, selectors.EVENT_READ)

    def close(self):
        self.selector.close()
        self.writer.close()
        self.watcher.close()

    def request(self, key, value):
        raise NotImplementedError

    def mark(self, value):
        """What has come once the watcher was told of a value."""
        raise NotImplementedError

    def round_trip(self, number):
        return self.put(f"{self.name}.unwatched", f"{number:08}")[0]

    def told(self, number):
        value = f"{number:08}"
        return self.put(f"{self.name}.watched", value, self.mark(value))

    def put(self, key, value, mark=None):
        """Seconds until the put was acknowledged, and until the watcher had what has `mark`."""
        answer, told = b"", b""
        acknowledged = received = None
        began = time.perf_counter()
        self.writer.sendall(self.request(key, value))
        while acknowledged is None or (mark is not None and received is None):
            ready = self.selector.select(DEADLINE)
            if not ready:
                raise SystemExit("the node does not answer")
            for found, _ in ready:
                data, now = found.fileobj.recv(65536), time.perf_counter() - began
                if found.fileobj is self.writer:
                    answer += data
                    if answer.endswith(self.end):
                        acknowledged = now
                else:
                    told += data
                    if mark is not None and mark in told:
                        received = now
        assert b"OK" in answer or answer.startswith(b"HTTP/1.1 20"), answer
        return acknowledged, received


class OverHttp(Raw):
    """PUT of `/v1/kv` beside `/v1/watch`."""

    name = "SSE"
    end = b"\r\n\r\n"

    def __init__(self, url):
        host, _, port = url.removeprefix("http://").rpartition(":")
        super().__init__(socket.AF_INET, (host, int(port)))
        self.host = f"Host: {host}:{port}\r\n"
        watch = f"GET /v1/watch?pattern={self.name}.watched HTTP/1.1\r\n{self.host}\r\n"
        self.watcher.sendall(watch.encode())
        opened(self.watcher)

    def request(self, key, value):
        head = f"PUT /v1/kv/{key} HTTP/1.1\r\n{self.host}Content-Length: {len(value)}\r\n\r\n"
        return (head + value).encode()

    def mark(self, value):
        return f'"{value}"'.encode()


class OverSocket(Raw):
    """PUT beside SUB, in lines, on the Unix socket."""

    name = "socket"
    end = b"\n"

    def __init__(self, path):
        super().__init__(socket.AF_UNIX, str(path))
        self.watcher.sendall(f"SUB 1 bench {self.name}.watched\n".encode())
        seen = b""
        while b"HELLO\n" not in seen:
            seen += self.watcher.recv(65536)

    def request(self, key, value):
        return f"PUT 1 bench {key} {value}\n".encode()

    def mark(self, value):
        return f" {value}\n".encode()


def opened(peer):
    """Read until the stream has begun."""
    seen = b""
    while b"retry: " not in seen:
        data = peer.recv(65536)
        assert data, seen
        seen += data


def raw_round(raw, numbers):
    """Medians of a put that nobody watches, from there to the event, and from its answer on."""
    alone, sent, acknowledged = [], [], []
    for number in numbers:
        alone.append(raw.round_trip(number))
        answered, told = raw.told(number)
        sent.append(told)
        acknowledged.append(told - answered)
    return tuple(map(statistics.median, (alone, sent, acknowledged)))


class Told:
    """When a value has come to a watcher in this loop."""

    def __init__(self):
        self.values = {}
        self.came = asyncio.Event()

    def note(self, value):
        self.values[value] = time.perf_counter()
        self.came.set()

    async def wait(self, value):
        async with asyncio.timeout(DEADLINE):
            while value not in self.values:
                self.came.clear()
                await self.came.wait()
        return self.values.pop(value)


async def library_round(put, told, numbers):
    """The same medians, through a client library: `put` is its call, `told` what it told."""
    alone, sent, acknowledged = [], [], []
    for number in numbers:
        value = b"%08d" % number
        began = time.perf_counter()
        await put("library.unwatched", value)
        alone.append(time.perf_counter() - began)
        began = time.perf_counter()
        await put("library.watched", value)
        answered = time.perf_counter()
        received = await told.wait(value)
        sent.append(received - began)
        acknowledged.append(received - answered)
    return tuple(map(statistics.median, (alone, sent, acknowledged)))


@contextlib.asynccontextmanager
async def own_library(url):
    told = Told()

    async def follow(watch):
        async for item in watch:
            if isinstance(item, Changed):
                told.note(item.value)

    async with AsyncClient(url) as client, client.watch("library.watched") as watch:
        task = asyncio.create_task(follow(watch))
        try:
            yield client.put, told
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def nats_library(port):
    import nats  # there to compare with, and only where its server is

    told = Told()
    client = await nats.connect(f"nats://127.0.0.1:{port}", connect_timeout=DEADLINE)
    bucket = await client.jetstream().create_key_value(bucket="bench")
    watcher = await bucket.watch("library.watched")

    async def follow():
        async for entry in watcher:
            if entry is not None:  # which marks the end of what was there
                told.note(entry.value)

    task = asyncio.create_task(follow())
    try:
        yield bucket.put, told
    finally:
        await watcher.stop()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await client.close()


async def latencies(url, path, nats_port, rounds):
    """By name, the medians of each round."""
    found, numbers = {}, itertools.count()
    async with contextlib.AsyncExitStack() as stack:
        libraries = {"client library": await stack.enter_async_context(own_library(url))}
        if nats_port is not None:
            libraries["NATS KV"] = await stack.enter_async_context(nats_library(nats_port))
        raws = [OverHttp(url), OverSocket(path)]
        for raw in raws:
            stack.callback(raw.close)
            raw_round(raw, itertools.islice(numbers, WARM_UP))
        for put, told in libraries.values():
            await library_round(put, told, itertools.islice(numbers, WARM_UP))
        for _ in range(rounds):
            for raw in raws:
                medians = raw_round(raw, itertools.islice(numbers, PUTS))
                found.setdefault(raw.name, []).append(medians)
            for name, (put, told) in libraries.items():
                medians = await library_round(put, told, itertools.islice(numbers, PUTS))
                found.setdefault(name, []).append(medians)
    return found


def report(found):
    print(
        "p50, microseconds (median of the rounds): a put alone; from its call, and from its answer,"
    )
    print("to the event; and these as ratios to the put, rounds each beside itself")
    for name, rounds in found.items():
        alone, sent, acknowledged = (
            statistics.median(each) * 1e6 for each in zip(*rounds, strict=True)
        )
        calls = statistics.median(sent / alone for alone, sent, _ in rounds)
        answers = statistics.median(acknowledged / alone for alone, _, acknowledged in rounds)
        limit = f"  (at most {RATIO})" if name in (OverHttp.name, OverSocket.name) else ""
        print(
            f"{name:16} {alone:7.0f} {sent:7.0f} {acknowledged:7.0f}"
            f"   {calls:5.2f} x {answers:5.2f} x{limit}"
        )
    if "NATS KV" not in found:
        print("nats-server is not installed: nothing to compare with")
        return
    pairs = list(zip(found["client library"], found["NATS KV"], strict=True))
    ratios = sorted(ours[1] / theirs[1] for ours, theirs in pairs)
    print(
        "client library beside NATS KV, from the call to the event:"
        f" {statistics.median(ratios):.2f} x [{ratios[0]:.2f}-{ratios[-1]:.2f}]"
    )
    # The event may come before the answer: a difference, for there is no ratio to what is below 0.
    behind = sorted((ours[2] - theirs[2]) * 1e6 for ours, theirs in pairs)
    print(
        "client library beside NATS KV, from the answer to the event:"
        f" {statistics.median(behind):+.0f} us [{behind[0]:+.0f} to {behind[-1]:+.0f}] (at most +0)"
    )


def resident(pid):
    """Kilobytes of 1,000 bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) * 1024 / 1000


def with_files():
    """Allow as many open files as this process may have; how many streams that is enough for."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most - SPARE_FILES


def open_streams(url, count):
    """So many streams, of which each watches a key of its own, and has begun."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    request = f" HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n"
    peers = []
    while len(peers) < count:
        batch = [
            connected(socket.AF_INET, (host, int(port)))
            for _ in range(min(AT_ONCE, count - len(peers)))
        ]
        for number, peer in enumerate(batch, len(peers)):
            peer.sendall(f"GET /v1/watch?pattern=service.unit{number:06}.state{request}".encode())
        for peer in batch:
            opened(peer)
        peers += batch
    return peers


def idle(folder, count, backend):
    """What so many idle watchers cost."""
    collector = folder / "collector.py"
    collector.write_text(COLLECTOR)
    arguments = ("--plugin", str(collector), "--set", f"transport.http.max_connections={2 * count}")
    with (
        node(folder, *arguments, "--set", f"node.backend={backend}") as (process, url),
        httpx2.Client(base_url=url, timeout=DEADLINE) as client,
    ):

        def longest(**params):
            pauses = client.get("/collector", params=params).json()
            return [each * 1000 for each in pauses["longest"]], pauses["pauses"]

        for peer in open_streams(url, AT_ONCE):  # what is made once is made
            peer.close()
        longest(collect=1)
        before = resident(process.pid)
        peers = open_streams(url, count)
        each = (resident(process.pid) - before) / count
        print(
            f"{count:,} idle watchers, each with its stream: {each:.1f} KB each"
            f" (at most {EACH}); the node {before / 1000:.0f} MB without them"
        )
        pauses = [("while they come", *longest())]
        for number in range(5_000):
            client.put(f"/v1/kv/service.unit{number % 100:06}.other", content=b"x")
        pauses.append(("5,000 puts beside them", *longest()))
        longest(collect=1)
        pauses.append(("a full collection", *longest(collect=1)))
        for name, (busy, passed), many in pauses:
            print(
                f"{name}, longest pause of {many:,}: {busy:.0f} ms (at most {PAUSE});"
                f" {passed:.0f} ms by the clock, on a machine that does other things besides"
            )
        for peer in peers:
            peer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--idle", type=int, default=10_000)
    parser.add_argument("--backend", choices=("asyncio", "trio"), default="asyncio")
    options = parser.parse_args()
    enough = with_files()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sockets").mkdir(mode=0o700)
        path = folder / "sockets" / "nkv.sock"
        arguments = ("--plugin", "nkv_transport_socket", "--set", f"transport.socket.path={path}")
        with (
            node(folder / "first", *arguments, "--set", f"node.backend={options.backend}") as (
                _,
                url,
            ),
            nats_server(folder) as nats_port,
        ):
            report(asyncio.run(latencies(url, path, nats_port, options.rounds)))
        idle(folder, min(options.idle, enough), options.backend)


if __name__ == "__main__":
    main()
