"""What docs/clients.md shows runs as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nkv_core.node import DEFAULT_PLUGINS

ROOT = Path(__file__).parents[2]
SSE = ROOT / "plugins" / "nkv_notifier_sse"
DOCUMENT = (ROOT / "docs" / "clients.md").read_text()
ENDED_BY_MAX_TIME = 28


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)


@pytest.fixture
def node(serve):
    return serve(*(() if SSE.name in DEFAULT_PLUGINS else ("--plugin", str(SSE))))


def test_the_programs_run_and_print_what_they_say(node, tmp_path, clean_env):
    printed = ""
    for block in blocks("python"):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", block.replace("http://127.0.0.1:8080", node.url)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=clean_env,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout
        printed += done.stdout
    for line in ("condition_failed", "a.2 b'2'", "put service.a b'down' 1.", "b'green' 2"):
        assert line in printed
    assert "held by others" in printed


def test_the_commands_of_curl_do_what_it_says(node, tmp_path, clean_env):
    printed = ""
    for block in blocks("console"):
        for command in re.findall(r"^\$ (curl .*)", block, re.MULTILINE):
            done = subprocess.run(
                ["sh", "-c", command.replace("http://127.0.0.1:8080", node.url)],
                capture_output=True,
                text=True,
                cwd=tmp_path,
                env=clean_env,
                timeout=60,
                check=False,
            )
            watching = "/v1/watch" in command
            assert done.returncode == (ENDED_BY_MAX_TIME if watching else 0), done.stderr
            printed += done.stdout
    for text in ("hello", "etag:", "condition_failed", "event: snapshot-end", '"key":"a.1"'):
        assert text in printed.lower(), text
