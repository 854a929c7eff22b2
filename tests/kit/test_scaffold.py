"""What `nkv plugins new` writes works as it is: by its own tests, by tox, and on a node."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nkv_core.scaffold import KINDS

pytestmark = pytest.mark.one_python

ROOT = Path(__file__).parents[2]


def nkv(*arguments, cwd, env):
    done = subprocess.run(
        [sys.executable, "-m", "nkv_core", *arguments],
        cwd=cwd,
        env=env,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def run(*command, cwd, **env):
    """Run a command of the distribution's author, who has what this test has."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stdout.decode()
    return done.stdout.decode()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_green_at_once(tmp_path, clean_env, kind):
    said = nkv("plugins", "new", kind, "first", "--into", "made", cwd=tmp_path, env=clean_env)
    (folder,) = (tmp_path / "made").iterdir()
    assert said.startswith(f"made/{folder.name} has a plugin that works.")
    assert " passed" in run(sys.executable, "-m", "pytest", "-q", cwd=folder)


@pytest.mark.parametrize(
    "kind", ["handlers", *(pytest.param(k, marks=pytest.mark.soak) for k in KINDS[:-1])]
)
def test_tox_is_green_in_what_is_written(tmp_path, clean_env, kind):
    nkv("plugins", "new", kind, "first", cwd=tmp_path, env=clean_env)
    (folder,) = tmp_path.iterdir()
    said = run(sys.executable, "-m", "tox", "-q", cwd=folder, NKV_CORE=str(ROOT), PYTHONPATH="")
    assert "congratulations" in said


def test_a_node_loads_it_by_its_folder(tmp_path, clean_env, serve):
    nkv("plugins", "new", "handlers", "first", cwd=tmp_path, env=clean_env)
    node = serve()
    node.nkv("plugins", "load", str(tmp_path / "nkv-first" / "src" / "nkv_first"))
    with node.client() as client:
        client.put("/v1/kv/greeting", content=b"hello")
        answer = client.get("/first/upper/greeting")
        assert answer.json() == {"key": "greeting", "upper": "HELLO"}
