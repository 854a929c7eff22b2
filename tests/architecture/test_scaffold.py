"""What `nkv plugins new` writes is formatted and typed as the tree itself is."""

import subprocess
import sys
from pathlib import Path

import pytest

from nkv_core.scaffold import KINDS, write

ROOT = Path(__file__).parents[2]


def run(*command, cwd):
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_formatted_and_typed(tmp_path, kind):
    folder = write(kind, "my_first", tmp_path)
    run("ruff", "format", "--check", "--config", str(ROOT / "pyproject.toml"), ".", cwd=folder)
    run("ruff", "check", "--config", str(ROOT / "pyproject.toml"), "src", cwd=folder)
    run("mypy", cwd=folder)
