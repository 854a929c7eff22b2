"""How fast `nkv import` fills a node, and `nkv export` and a backup empty it.

    python benchmarks/import.py [--records N] [--bytes B] [--url URL]

Without `--url` a node is started for it, with a data directory of its own. The records are written
to a file first, so that their making is not part of the figure.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

START_DEADLINE = 30.0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--bytes", type=int, default=100, help="of a value")
    parser.add_argument("--storage", default="diskcache")
    parser.add_argument("--url", help="of a node that runs already")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made, contextlib.ExitStack() as stack:
        folder = Path(made)
        source = folder / "records.jsonl"
        digest = write_records(source, options.records, options.bytes)
        url = options.url or stack.enter_context(node(folder / "data", options.storage))
        took = timed(folder / "import.out", "import", str(source), "--url", url)
        tell("import", options.records, took)
        print((folder / "import.out").read_text().strip())
        exported = folder / "exported.jsonl"
        tell("export", options.records, timed(exported, "export", "--url", url))
        if options.url is None:
            same = hashlib.sha256(exported.read_bytes()).hexdigest() == digest
            print(f"the export {'equals' if same else 'DIFFERS FROM'} what went in")
            data = ("--data-dir", str(folder / "data"))
            took = timed(folder / "backup.out", "backup", str(folder / "backup"), *data)
            tell("backup", options.records, took)
            return 0 if same else 1
    return 0


def write_records(path, count, size):
    """Records in key order; returns the sum of the file."""
    chance = random.Random(1)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for number in range(count):
            value = f"{chance.getrandbits(4 * size):0{size}x}"[:size]
            fields = {"key": f"bench.{number:09}", "value": value}
            line = json.dumps(fields, separators=(",", ":")).encode() + b"\n"
            digest.update(line)
            file.write(line)
    return digest.hexdigest()


@contextlib.contextmanager
def node(data_dir, storage):
    """A node of its own; gives its URL."""
    command = [sys.executable, "-m", "nkv_core", "serve", "--port", "0"]
    command += ["--data-dir", str(data_dir), "--storage", storage]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            ready, _, _ = select.select([process.stdout], [], [], START_DEADLINE)
            line = process.stdout.readline() if ready else ""
            if "http://" not in line:
                sys.exit(f"the node did not start: {line!r}")
            yield "http://" + line.split("http://")[1].split()[0].rstrip(",")
            print(f"the node has {resident(process.pid)} MB resident")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(START_DEADLINE)


def resident(pid):
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


def timed(output, *arguments):
    start = time.monotonic()
    with output.open("wb") as file:
        subprocess.run([sys.executable, "-m", "nkv_core", *arguments], stdout=file, check=True)
    return time.monotonic() - start


def tell(what, count, took):
    print(f"{what}: {count:,} records in {took:.1f} s, {count / took:,.0f} a second")


if __name__ == "__main__":
    sys.exit(main())
