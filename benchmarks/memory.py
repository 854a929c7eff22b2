"""Memory for 1,000,000 records of 100 bytes: a node with its storage in memory, and redis-server.

    python benchmarks/memory.py [RECORDS]

Both are filled by the same commands of Redis' protocol; then what is resident of each process.
"""

import contextlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECORDS = 1_000_000
LIMIT = 2.0
AT_ONCE = 1000
DEADLINE = 60  # seconds, for anything


def fill(address, records):
    """Set that many records; the answers are read while the next are sent."""
    value = b"x" * 100
    with (
        socket.create_connection(address, timeout=DEADLINE) as peer,
        peer.makefile("rb") as answers,
    ):
        for begin in range(0, records, AT_ONCE):
            commands = [
                b"*3\r\n$3\r\nSET\r\n$10\r\nk.%08d\r\n$100\r\n%b\r\n" % (number, value)
                for number in range(begin, begin + AT_ONCE)
            ]
            peer.sendall(b"".join(commands))
            for _ in range(AT_ONCE):
                assert answers.readline() == b"+OK\r\n"


def resident(process):
    """Megabytes."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


@contextlib.contextmanager
def serving(command, **options):
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, **options) as process:
        try:
            yield process
        finally:
            process.terminate()


def node(records):
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "nkv_core", "serve", "--port", "0", "--storage", "memory"]
        command += ["--data-dir", folder, "--plugin", "nkv_transport_resp"]
        command += ["--set", "transport.resp.port=0"]
        with serving(command, stdout=subprocess.PIPE) as process:
            line = process.stdout.readline().decode()
            host, port = re.search(r"redis://([^:]+):(\d+)", line).groups()
            empty = resident(process)
            fill((host, int(port)), records)
            return empty, resident(process)


def redis(records):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--save", "", "--bind", "127.0.0.1"]
    with serving(command, stdout=subprocess.DEVNULL) as process:
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        empty = resident(process)
        fill(("127.0.0.1", port), records)
        return empty, resident(process)


def main():
    if not shutil.which("redis-server"):
        print("left out: it needs redis-server")
        return
    records = int(sys.argv[1]) if len(sys.argv) > 1 else RECORDS
    (empty, full), (other_empty, other) = node(records), redis(records)
    ratio = full / other
    short = "" if ratio <= LIMIT else ", and falls short"
    print(f"{records:,} records of 100 bytes, resident")
    print(f"the node       {full:7.0f} MB   ({empty:.0f} MB without records)")
    print(f"redis-server   {other:7.0f} MB   ({other_empty:.0f} MB without records)")
    print(f"ratio          {ratio:7.2f}      (at most {LIMIT:g}{short})")


if __name__ == "__main__":
    main()
