"""What docs/clients.md shows runs as it stands there."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "clients.md").read_text()
ENDED_BY_MAX_TIME = 28


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)


@pytest.fixture
def node(serve):
    return serve()


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


@pytest.mark.one_python
@pytest.mark.skipif(shutil.which("socat") is None, reason="socat is not installed")
def test_the_commands_of_the_shell_print_what_it_says(serve, tmp_path, clean_env):
    socket = tmp_path / "nkv.sock"
    serve("--plugin", "nkv_transport_socket", "--set", f"transport.socket.path={socket}")
    tried = 0
    for block in blocks("console"):
        for command, said in re.findall(r"^\$ (printf .*)\n((?:[^$].*\n)*)", block, re.MULTILINE):
            done = subprocess.run(
                ["bash", "-c", command.replace("/tmp/nkv/nkv.sock", str(socket))],
                capture_output=True,
                text=True,
                env=clean_env,
                timeout=60,
                check=False,
            )
            assert (done.stdout, done.stderr) == (said, "")
            tried += 1
    assert tried == 4


@pytest.mark.one_python
def test_the_page_shows_what_is_watched(serve, browse, tmp_path):
    (page,) = blocks("html")
    (plugin,) = blocks("python plugin")
    (tmp_path / "page.py").write_text(plugin)
    (tmp_path / "page.html").write_text(page + OBSERVER)
    node = serve("--plugin", str(tmp_path / "page.py"))
    with node.client() as client:
        client.put("/v1/kv/service.a", content=b"up")
        browse(f"{node.url}/page")
        # Two connections of their own: neither waits for the other.
        seen = node.reported("observed", lambda lines: len(lines) >= 3)
        assert sorted(seen[:3], key=PRESENT.index) == PRESENT
        assert seen.index(PRESENT[0]) < seen.index(PRESENT[1])
        client.put("/v1/kv/service.b", content=b"new")
        client.delete("/v1/kv/service.a")
        seen = node.reported("observed", lambda lines: len(lines) >= 5)
    assert seen[3:] == ["put service.b new", "delete service.a"]


#: What the page shows once it is there: the snapshot, and what its own put gave.
PRESENT = ["put service.a up", "these are the present ones", "page.one is open"]

#: Has the page tell the node what it shows, so that it can be read from outside.
OBSERVER = """
<script>
  const list = document.getElementById("seen");
  new MutationObserver(() => {
    const lines = Array.from(list.children, (line) => line.textContent.trim());
    fetch("/v1/kv/observed", { method: "PUT", body: JSON.stringify(lines) });
  }).observe(list, { childList: true });
</script>
"""


@pytest.mark.one_python
@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_the_program_for_node_js_prints_what_it_watches(node, tmp_path, clean_env):
    (program,) = blocks("javascript")
    path = tmp_path / "watch.mjs"
    path.write_text(program.replace("http://127.0.0.1:8080", node.url))
    done = subprocess.run(
        ["node", str(path)], capture_output=True, text=True, env=clean_env, timeout=60, check=False
    )
    assert done.stderr == ""
    up, down = (line.split() for line in done.stdout.splitlines())
    assert (up[:3], down[:3]) == (["put", "service.node", "up"], ["put", "service.node", "down"])
    assert int(down[3].rpartition(".")[2]) == int(up[3].rpartition(".")[2]) + 1
