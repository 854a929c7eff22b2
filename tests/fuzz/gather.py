"""Look for inputs that make a parser do something new, and keep them: a fuzz corpus.

    python -m tests.fuzz.gather [SECONDS] [NAME]...

Inputs are changed at random, from the corpus and the seeds; one that comes by a pair of lines that
none before it came by is kept. What makes a parser raise something that is not nkv's is kept too,
and printed: then the tests are red until that is mended.
"""

import hashlib
import importlib
import random
import sys
import time
from pathlib import Path

from nkv_core.errors import NkvError

from .parsers import TARGETS

CORPUS = Path(__file__).with_name("corpus")
SECONDS = 20
#: Files kept of each parser, and bytes of the longest.
MOST, LONGEST = 80, 4096
TOKENS = (b"\r\n", b"\n", b" ", b"\0", b":", b"$", b"*", b"-1", b"99999999999", b'"', b"{", b"[")


def changed(choose, pool):
    """An input that is like one, or two, of the pool."""
    data = bytearray(choose.choice(pool))
    for _ in range(choose.randint(1, 4)):
        at = choose.randint(0, len(data))
        match choose.randint(0, 5):
            case 0:
                data[at:at] = choose.choice(TOKENS)
            case 1:
                del data[at : at + choose.randint(1, 8)]
            case 2 if data:
                data[choose.randrange(len(data))] = choose.randrange(256)
            case 3:
                other = choose.choice(pool)
                data[at:] = other[choose.randint(0, len(other)) :]
            case 4:
                data[at:at] = data[at : at + choose.randint(1, 40)] * choose.randint(1, 3)
            case _:
                data[at:at] = bytes([choose.randrange(32, 127)])
    return bytes(data[:LONGEST])


class Lines:
    """Which pairs of lines, one behind the other, code of some files comes by."""

    def __init__(self, modules):
        self._files = {importlib.import_module(name).__file__ for name in modules}

    def of(self, function, data):
        """Those of a call. What it raises besides nkv's errors goes on."""
        seen, last = set(), [0]

        def local(frame, event, _):
            if event == "line":
                seen.add((last[0], frame.f_lineno))
                last[0] = frame.f_lineno
            return local

        def calls(frame, event, _):
            return local if frame.f_code.co_filename in self._files else None

        sys.settrace(calls)
        try:
            function(data)
        except NkvError:
            pass
        finally:
            sys.settrace(None)
        return seen


def gather(name, seconds):
    target, choose = TARGETS[name], random.Random(name)
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    lines, known = Lines(target.modules), set()
    kept = [path.read_bytes() for path in sorted(folder.glob("*.bin"))]
    pool = [*target.seeds, *kept]
    for data in pool:
        known |= lines.of(target.read, data)
    for data in target.seeds:
        keep(folder, data)
    end, tried = time.monotonic() + seconds, 0
    while time.monotonic() < end and len(list(folder.iterdir())) < MOST:
        data = changed(choose, pool)
        tried += 1
        try:
            new = lines.of(target.read, data) - known
        except Exception as error:  # noqa: BLE001  # whatever it is, it is a fault of the parser
            print(f"{name}: {data!r} raises {error!r}")
            keep(folder, data)
            continue
        if new:
            known |= new
            pool.append(data)
            keep(folder, data)
    print(f"{name}: {tried} tried, {len(list(folder.iterdir()))} kept")


def keep(folder, data):
    (folder / f"{hashlib.sha256(data).hexdigest()[:12]}.bin").write_bytes(data)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    seconds = float(arguments.pop(0)) if arguments and arguments[0][:1].isdigit() else SECONDS
    for name in arguments or TARGETS:
        gather(name, seconds)
