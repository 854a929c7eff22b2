"""Redis' protocol: the node beside redis-server, both asked by redis-benchmark, rounds interleaved.

    python benchmarks/resp.py [ROUNDS]

`get` and `set` with 50 connections, without and with pipelining, in memory; `set` that is on the
disk before it is answered, with 64 connections; and from a `set` to the notification of it. Servers
have one core, who asks the other.
"""

import contextlib
import csv
import io
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 5
DEADLINE = 120  # seconds, for anything
LATENCIES = 2000

#: What is asked for, and how much of redis-server's rate the node is to have at least.
IN_MEMORY = {
    "no pipeline": (["-c", "50", "-n", "60000"], 0.9),
    "-P 16 -r 100000 -d 100": (
        ["-c", "50", "-n", "300000", "-P", "16", "-r", "100000", "-d", "100"],
        0.33,
    ),
}
DURABLE = (["-c", "64", "-n", "40000", "-r", "100000", "-d", "100"], 0.4)
LATENCY = 1.2


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def on_core(core, command):
    """The command, kept on one core, where there are several."""
    if (os.cpu_count() or 1) < 2 or shutil.which("taskset") is None:
        return command
    return ["taskset", "-c", str(core), *command]


@contextlib.contextmanager
def serving(command, port):
    """A server that is up while the block runs."""
    with subprocess.Popen(
        on_core(0, command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            end = time.monotonic() + DEADLINE
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                if time.monotonic() > end or process.poll() is not None:
                    raise SystemExit(f"{command[0]} does not serve")
                time.sleep(0.05)
            yield port
        finally:
            process.terminate()


def node(folder, storage):
    port = free_port()
    command = [sys.executable, "-m", "nkv_core", "serve", "--port", "0", "--storage", storage]
    command += ["--data-dir", str(folder), "--plugin", "nkv_transport_resp"]
    command += ["--set", f"transport.resp.port={port}"]
    return serving(command, port)


def redis_server(folder, *options):
    port = free_port()
    command = ["redis-server", "--port", str(port), "--save", "", "--dir", str(folder)]
    command += ["--notify-keyspace-events", "KEA", *options]
    return serving(command, port)


def rates(port, tests, options):
    """Requests a second, by test."""
    out = subprocess.run(
        on_core(1, ["redis-benchmark", "-p", str(port), "-t", tests, "--csv", *options]),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=True,
    ).stdout
    return {row["test"]: float(row["rps"]) for row in csv.DictReader(io.StringIO(out))}


def report(name, ours, theirs, least):
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    print(
        f"{name:38} {statistics.median(ours):>9,.0f}/s beside {statistics.median(theirs):>9,.0f}/s:"
        f" {statistics.median(ratios):.2f} x [{ratios[0]:.2f}-{ratios[-1]:.2f}] (at least {least})",
        flush=True,
    )


def compare(ports, tests, options, rounds):
    """Rates of both by test, in rounds that take turns."""
    found = {}
    for _ in range(rounds):
        for which, port in enumerate(ports):
            for test, rate in rates(port, tests, options).items():
                found.setdefault(test, ([], []))[which].append(rate)
    return found


def latencies(port, *, tracking):
    """Seconds from sending a `set` until another client has been told of it."""
    with (
        socket.create_connection(("127.0.0.1", port)) as told,
        socket.create_connection(("127.0.0.1", port)) as writer,
    ):
        for connected in (told, writer):
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connected.settimeout(DEADLINE)
        hello = b"HELLO 3\r\nCLIENT TRACKING ON BCAST\r\n" if tracking else b""
        told.sendall(hello or b"SUBSCRIBE __keyevent@0__:set\r\n")
        time.sleep(0.2)
        told.recv(65536)
        seen = []
        for _ in range(LATENCIES):
            began = time.perf_counter()
            writer.sendall(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n")
            told.recv(65536)
            seen.append(time.perf_counter() - began)
            writer.recv(65536)
        return statistics.median(seen)


def report_latency(name, ours, theirs):
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    print(
        f"{name:38} {statistics.median(ours) * 1e6:>7.0f} us beside"
        f" {statistics.median(theirs) * 1e6:>7.0f} us: {statistics.median(ratios):.2f} x"
        f" [{ratios[0]:.2f}-{ratios[-1]:.2f}] (at most {LATENCY})",
        flush=True,
    )


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    for program in ("redis-server", "redis-benchmark"):
        if shutil.which(program) is None:
            print(f"{program} is not installed: nothing to compare with")
            return
    if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {1})
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder, name) for name in ("node", "redis", "disk", "always")]
        for place in places:
            place.mkdir()
        with node(places[0], "memory") as ours, redis_server(places[1]) as theirs:
            for name, (options, least) in IN_MEMORY.items():
                for test, (a, b) in compare((ours, theirs), "set,get", options, rounds).items():
                    report(f"{test}, {name}", a, b, least)
            for name, tracking in (("keyspace event", False), ("tracking", True)):
                pairs = [
                    [latencies(port, tracking=tracking) for port in (ours, theirs)]
                    for _ in range(rounds)
                ]
                report_latency(f"set to {name}, p50", *zip(*pairs, strict=True))
        always = ("--appendonly", "yes", "--appendfsync", "always")
        with node(places[2], "diskcache") as ours, redis_server(places[3], *always) as theirs:
            options, least = DURABLE
            for test, (a, b) in compare((ours, theirs), "set", options, rounds).items():
                report(f"durable {test}, 64 connections", a, b, least)


if __name__ == "__main__":
    main()
