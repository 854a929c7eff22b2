"""One write, and 1,000 who watch by Server-Sent Events: when the last of them has it.

    python benchmarks/crowd.py [ROUNDS]

A node with a storage in memory; the watchers are sockets of this process, and are read as they
become ready. From sending the PUT, on a connection of its own, to the last event.
"""

import re
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time

WATCHERS = 1000
ROUNDS = 50
LIMIT = 50  # milliseconds, of the median
DEADLINE = 60  # seconds, for anything
WATCH = b"GET /v1/watch?pattern=crowd HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
PUT = b"PUT /v1/kv/crowd HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\n\r\nvalue"


def watchers(address, selector):
    """Connect all of them, and wait until each has the head of its stream."""
    for _ in range(WATCHERS):
        peer = socket.create_connection(address, timeout=DEADLINE)
        peer.sendall(WATCH)
        seen = b""
        while b"\r\n\r\n" not in seen:
            seen += peer.recv(65536)
        peer.setblocking(False)
        selector.register(peer, selectors.EVENT_READ)


def settle(selector):
    """Read what comes besides, until nothing does for a moment."""
    while ready := selector.select(0.2):
        for key, _ in ready:
            key.fileobj.recv(65536)


def told(selector, writer):
    """Seconds from the write to the last event."""
    waiting = set(selector.get_map())
    began = time.perf_counter()
    writer.sendall(PUT)
    while waiting:
        ready = selector.select(DEADLINE)
        assert ready, f"{len(waiting)} were not told"
        for key, _ in ready:
            if b"event: put" in key.fileobj.recv(65536):
                waiting.discard(key.fd)
    took = time.perf_counter() - began
    while b"\r\n\r\n" not in writer.recv(65536):
        pass
    return took


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "nkv_core", "serve", "--port", "0", "--storage", "memory"]
        with subprocess.Popen(
            [*command, "--data-dir", folder], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as node:
            try:
                line = node.stdout.readline().decode()
                host, port = re.search(r"http://([^:]+):(\d+)", line).groups()
                with selectors.DefaultSelector() as selector:
                    watchers((host, int(port)), selector)
                    with socket.create_connection((host, int(port)), timeout=DEADLINE) as writer:
                        took = []
                        for _ in range(rounds):
                            settle(selector)
                            took.append(told(selector, writer) * 1000)
                    for key in list(selector.get_map().values()):
                        key.fileobj.close()
            finally:
                node.terminate()
    middle = statistics.median(took)
    short = "" if middle <= LIMIT else ", and falls short"
    print(f"{WATCHERS:,} watchers by Server-Sent Events, {rounds} writes")
    print(f"the last has it after {middle:.1f} ms [{min(took):.1f}-{max(took):.1f}]", end="")
    print(f"   (at most {LIMIT}{short})")


if __name__ == "__main__":
    main()
