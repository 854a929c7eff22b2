"""Look for inputs that make a parser do something new, and keep them: a fuzz corpus.

    python -m tests.fuzz.gather [SECONDS] [NAME]...

Atheris (pip install atheris) looks, from the corpus and the seeds. Of what it finds, those are kept
that it takes to come by all the same code, the shortest first where there is no room for all. What
makes a parser raise something that is not nkv's is kept too, and printed: then the tests are red
until that is mended.
"""

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .parsers import TARGETS

CORPUS = Path(__file__).with_name("corpus")
SECONDS = 20
#: Files kept of each parser, and bytes of the longest.
MOST, LONGEST = 100, 4096
#: Seconds beyond those that were asked for, until a process has hung.
PATIENCE = 300


def gather(name, seconds):
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    for data in TARGETS[name].seeds:
        keep(folder, data)
    with tempfile.TemporaryDirectory() as temporary:
        found, merged, faults = (Path(temporary, part) for part in ("found", "merged", "faults"))
        found.mkdir()
        faults.mkdir()
        options = (f"-max_total_time={seconds:.0f}", f"-max_len={LONGEST}", "-timeout=10")
        said = fuzz(name, *options, f"-artifact_prefix={faults}/", found, folder, within=seconds)
        shutil.copytree(folder, merged)
        fuzz(name, "-merge=1", merged, found, within=seconds)
        for path in faults.iterdir():
            print(f"{name}: {path.read_bytes()!r} is not read or refused:\n{said}")
            keep(folder, path.read_bytes())
        new = sorted(contents(merged) - contents(folder), key=lambda data: (len(data), data))
    room = max(MOST - len(list(folder.iterdir())), 0)
    for data in new[:room]:
        keep(folder, data)
    print(f"{name}: {len(new[:room])} new, {len(new[room:])} left out for want of room")


def fuzz(name, *options, within):
    """Run Atheris with these options; returns what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.one", name, *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=within + PATIENCE,
        check=False,
    )
    if "INFO: " not in done.stdout:
        raise SystemExit(done.stdout)  # it did not even begin
    return done.stdout


def contents(folder):
    return {path.read_bytes() for path in folder.iterdir()}


def keep(folder, data):
    (folder / f"{hashlib.sha256(data).hexdigest()[:12]}.bin").write_bytes(data)


if __name__ == "__main__":
    if importlib.util.find_spec("atheris") is None:
        raise SystemExit("This needs atheris: pip install atheris")
    arguments = sys.argv[1:]
    seconds = float(arguments.pop(0)) if arguments and arguments[0][:1].isdigit() else SECONDS
    for name in arguments or TARGETS:
        gather(name, seconds)
