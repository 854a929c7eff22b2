"""GET through a node beside the same reply from a bare Starlette application on Hypercorn.

    python benchmarks/http_get.py [--rounds N] [--backend trio]

Three processes: the node (diskcache, all by Hypercorn, the rest as by default), the application on
Hypercorn as it comes, and this one, which keeps 32 connections busy with raw sockets. The two
servers take turns in short rounds, so that a busy machine disturbs them alike, and each pair of
rounds gives one ratio.
"""

import argparse
import importlib
import json
import re
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anyio
import httpx2
from hypercorn.config import Config
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

CONNECTIONS = 32
ROUND = 1.0  # seconds
WARM_UP = 0.5
VALUE = b"x" * 100
PATH = "/v1/kv/service.name"
LIMIT = 0.9
#: What Hypercorn writes by itself, and so is not to be written twice.
BY_SERVER = ("date", "server", "content-length")


def serve_bare(headers, backend):
    """The application that sends this one reply, on Hypercorn alone."""

    async def get(request):
        return Response(VALUE, headers=headers)

    application = Starlette(routes=[Route("/v1/kv/{key:path}", get)])
    listening = socket.create_server(("127.0.0.1", 0))
    config = Config()
    config.bind = [f"fd://{listening.fileno()}"]
    config.keep_alive_max_requests = 10**9
    config.errorlog = None
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    serve = importlib.import_module(f"hypercorn.{backend}").serve
    anyio.run(serve, application, config, backend=backend)


def started(*arguments):
    """A server as a process, and its address."""
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    return process, re.search(r"http://\S+:\d+", process.stdout.readline().decode()).group()


def stop(process):
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


class Load:
    """Connections that each send the next request once they have the whole reply."""

    def __init__(self, url):
        host, _, port = url.removeprefix("http://").rpartition(":")
        self.address = (host, int(port))
        self.request = f"GET {PATH} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()

    def rate(self, seconds):
        """Requests in a second."""
        selector = selectors.DefaultSelector()
        length = self.length()
        for _ in range(CONNECTIONS):
            peer = socket.create_connection(self.address)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer.setblocking(False)
            selector.register(peer, selectors.EVENT_READ, [length])
            peer.send(self.request)
        done, began = 0, time.perf_counter()
        end = began + seconds
        while (now := time.perf_counter()) < end:
            for ready, _ in selector.select(end - now):
                left = ready.data
                left[0] -= len(ready.fileobj.recv(65536))
                if left[0] <= 0:
                    assert left[0] == 0, "a reply has another length than the first"
                    left[0] = length
                    done += 1
                    ready.fileobj.send(self.request)
        took = time.perf_counter() - began
        for key in list(selector.get_map().values()):
            key.fileobj.close()
        selector.close()
        return done / took

    def length(self):
        """Bytes of one reply, header and all."""
        with socket.create_connection(self.address) as peer:
            peer.sendall(self.request)
            reply = b""
            while VALUE not in reply:
                reply += peer.recv(65536)
        assert reply.startswith(b"HTTP/1.1 200 "), reply
        return len(reply)


def measure(rounds, backend):
    with tempfile.TemporaryDirectory() as folder:
        node, node_url = started(
            *("-m", "nkv_core", "serve", "--port", "0", "--data-dir", str(Path(folder) / "data")),
            *("--set", f"node.backend={backend}", "--set", "transport.http.server=hypercorn"),
        )
        with httpx2.Client(base_url=node_url) as client:
            client.put(PATH, content=VALUE).raise_for_status()
            headers = {
                name: value
                for name, value in client.get(PATH).headers.items()
                if name not in BY_SERVER
            }
        bare, bare_url = started(__file__, "--bare", json.dumps(headers), "--backend", backend)
        try:
            loads = Load(node_url), Load(bare_url)
            for load in loads:
                load.rate(WARM_UP)
            pairs = []
            for number in range(rounds):
                order = (0, 1) if number % 2 else (1, 0)
                rates = {which: loads[which].rate(ROUND) for which in order}
                pairs.append((rates[0], rates[1]))
        finally:
            stop(node)
            stop(bare)
    return pairs


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--backend", choices=("asyncio", "trio"), default="asyncio")
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare is not None:
        serve_bare(json.loads(arguments.bare), arguments.backend)
        return
    pairs = measure(arguments.rounds, arguments.backend)
    ratios = sorted(node / bare for node, bare in pairs)
    for name, rates in (
        ("the node", [p[0] for p in pairs]),
        ("bare Starlette", [p[1] for p in pairs]),
    ):
        print(f"{name}: {statistics.median(rates):,.0f} GET/s (median of {len(rates)} rounds)")
    print(
        f"ratio: {statistics.median(ratios):.2f} [{ratios[0]:.2f}-{ratios[-1]:.2f}] (limit {LIMIT})"
    )


if __name__ == "__main__":
    main()
