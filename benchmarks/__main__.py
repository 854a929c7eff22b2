"""Run all benchmarks, and write what they print, with the machine, into docs/performance.md.

    python -m benchmarks [NAME]...

Names are those of the modules beside this one; all of them without any.
"""

import datetime
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from .goals import table

HERE = Path(__file__).parent
DOCUMENT = HERE.parent / "docs" / "performance.md"
BENCHMARKS = (
    "lifecycle",
    "storage",
    "keyspace",
    "hub",
    "watch",
    "http_get",
    "fast",
    "crowd",
    "memory",
    "resp",
    "counts",
    "mesh",
    "node",
    "replace",
    "migrate",
    "import",
)
DEADLINE = 900  # seconds for one


def processor():
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found.group(1) if found else platform.processor()


def machine():
    return (
        f"{os.cpu_count()} cores ({processor()}), {platform.system()} {platform.release()},"
        f" Python {platform.python_version()}, {datetime.date.today().isoformat()}"
    )


def measured(name):
    """What a benchmark prints."""
    print(f"--- {name}", flush=True)
    done = subprocess.run(
        [sys.executable, str(HERE / f"{name}.py")],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    print(done.stdout, done.stderr, flush=True)
    if done.returncode != 0:
        raise SystemExit(f"{name} failed")
    return done.stdout.rstrip()


def write(name, output):
    """Put the output into the document, in the place of what the same benchmark said before."""
    text = DOCUMENT.read_text()
    section = f"<!-- {name} -->\n{machine()}:\n\n```\n{output}\n```\n<!-- end of {name} -->"
    pattern = rf"<!-- {name} -->.*?<!-- end of {name} -->"
    if not re.search(pattern, text, re.DOTALL):
        raise SystemExit(f"{DOCUMENT.name} has no place for {name}")
    DOCUMENT.write_text(re.sub(pattern, lambda _: section, text, flags=re.DOTALL))


def sum_up():
    """Bring the table of goals up to date."""
    text = DOCUMENT.read_text()
    pattern = r"(<!-- goals -->\n).*?(<!-- end of goals -->)"
    summed = re.sub(pattern, lambda m: f"{m[1]}{table(text)}\n{m[2]}", text, flags=re.DOTALL)
    DOCUMENT.write_text(summed)


def main():
    for name in sys.argv[1:] or BENCHMARKS:
        write(name, measured(name))
    sum_up()


if __name__ == "__main__":
    main()
