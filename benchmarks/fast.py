"""The fast lane beside a bare ASGI application on uvicorn, both asked by wrk, rounds interleaved.

    python benchmarks/fast.py [ROUNDS]

`GET` of a record of 100 bytes and nkvd's `/set`, over 32 connections, in memory; the `GET` without
listeners, and with one on each event of a request. The application sends the same fields and bytes
and does nothing else. Servers have one core, wrk the other.
"""

import contextlib
import importlib.util
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx2

ROUNDS = 9
SECONDS = 3
CONNECTIONS = 32
DEADLINE = 60  # seconds, for anything
#: At least so many times the rate of the bare application.
LIMITS = {"get": 1.8, "get, a listener on each event": 1.6, "set": 1.4}

BARE = """
HEADERS = [
    (b"etag", b'"f6f6fec602762333-1"'),
    (b"nkv-modified", b"2026-11-27T03:09:11.256Z+0"),
    (b"content-type", b"application/octet-stream"),
    (b"x-content-type-options", b"nosniff"),
    (b"content-length", b"100"),
]

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": b"x" * 100})
"""
LISTENERS = """
from nkv_core import hookimpl

@hookimpl
def nkv_request_start(event): pass

@hookimpl
def nkv_request_complete(event): pass

@hookimpl
def nkv_request_end(event): pass
"""


@contextlib.contextmanager
def serving(command, folder):
    """A server on the first core, that is up while the block runs; gives its address."""
    log = Path(folder) / "log"
    with (
        log.open("wb") as output,
        subprocess.Popen(on_core(0, command), cwd=folder, stdout=output, stderr=output) as process,
    ):
        try:
            end = time.monotonic() + DEADLINE
            while not (
                found := re.search(r"(?:serving|running on) (http://\S+:\d+)", log.read_text())
            ):
                if time.monotonic() > end or process.poll() is not None:
                    raise SystemExit(f"{command} does not serve: {log.read_text()}")
                time.sleep(0.05)
            yield found[1]
        finally:
            process.terminate()


def on_core(core, command):
    """The command, kept on one core, where there are several."""
    cores = sorted(os.sched_getaffinity(0))
    return ["taskset", "-c", str(cores[core % len(cores)]), *command]


@contextlib.contextmanager
def node(listeners):
    """A node; gives the address."""
    with tempfile.TemporaryDirectory() as folder:
        plugin = Path(folder) / "listeners.py"
        plugin.write_text(LISTENERS)
        command = [sys.executable, "-m", "nkv_core", "serve", "--port", "0", "--storage", "memory"]
        command += ["--data-dir", f"{folder}/data", "--set", "transport.http.server=fast"]
        command += ["--plugin", str(plugin)] if listeners else []
        with serving(command, folder) as url:
            assert httpx2.put(f"{url}/v1/kv/a", content=b"x" * 100).status_code == 201
            yield url


@contextlib.contextmanager
def bare():
    """The application on uvicorn; gives the address."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "bare.py").write_text(BARE)
        command = [sys.executable, "-m", "uvicorn", "--no-access-log", "--port", "0", "bare:app"]
        command += ["--loop", "uvloop", "--http", "httptools"]
        with serving(command, folder) as url:
            yield url


def rate(url):
    """Requests in a second."""
    done = subprocess.run(
        on_core(1, ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}", url]),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=True,
    )
    assert "Non-2xx" not in done.stdout, done.stdout
    return float(re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)[1])


def main():
    missing = [
        name for name in ("uvicorn", "uvloop", "httptools") if not importlib.util.find_spec(name)
    ]
    if missing or not shutil.which("wrk"):
        print(f"left out: it needs wrk, and pip install uvicorn uvloop httptools ({missing})")
        return
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    value = "x" * 100
    print(f"{CONNECTIONS} connections, {rounds} rounds of {SECONDS} s; medians [range]")
    with bare() as other, node(listeners=False) as plain, node(listeners=True) as heard:
        asked = {
            "get": f"{plain}/v1/kv/a",
            "get, a listener on each event": f"{heard}/v1/kv/a",
            "set": f"{plain}/set?k=a&v={value}",
        }
        ratios = {name: [] for name in asked}
        rates = {name: [] for name in asked}
        others = []
        for _ in range(rounds):
            for name, url in asked.items():
                others.append(rate(f"{other}/v1/kv/a"))
                rates[name].append(rate(url))
                ratios[name].append(rates[name][-1] / others[-1])
    print(f"{'bare ASGI on uvicorn':<32}{statistics.median(others):>10,.0f}/s")
    for name, found in ratios.items():
        middle = statistics.median(found)
        short = "" if middle >= LIMITS[name] else ", and falls short"
        print(
            f"{name:<32}{statistics.median(rates[name]):>10,.0f}/s   {middle:.2f} x"
            f" [{min(found):.2f}-{max(found):.2f}]   (at least {LIMITS[name]}{short})"
        )


if __name__ == "__main__":
    main()
