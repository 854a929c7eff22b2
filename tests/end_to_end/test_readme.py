"""What the README and the other documents show runs as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[2]


def blocks(document, language):
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / document).read_text(), re.M | re.S)


def test_the_plugin_of_the_readme_works_as_it_is_printed(serve, tmp_path):
    (plugin,) = [block for block in blocks("README.md", "python") if "hookimpl" in block]
    assert len([line for line in plugin.splitlines() if line.strip()]) <= 20
    (tmp_path / "hello.py").write_text(plugin)
    node = serve()
    node.nkv("plugins", "load", str(tmp_path / "hello.py"))
    with node.client() as client:
        assert client.get("/hello?name=you").json()["hello"] == "you"
        assert client.get("/get?k=private.a").status_code == 403
        assert client.get("/set?k=a&v=1").status_code == 200
        for _ in range(1000):
            if client.get("/hello").json()["changed"] == 1:
                break
        else:
            raise AssertionError("the change was never told")


def test_the_commands_of_the_readme_do_what_it_says(serve, tmp_path, clean_env):
    node = serve()
    printed = []
    for block in blocks("README.md", "console"):
        commands = re.findall(r"^\$ (.*(?:\n  .*)*)", block, re.M)
        for command in commands:
            if "plugins" in command or "/hello" in command:
                continue
            line = command.replace("http://127.0.0.1:8080", node.url)
            line = re.sub(r"\bnkv (?=put|get|ls|export|import|status)", f"{NKV} ", line)
            done = subprocess.run(
                ["sh", "-c", line],
                capture_output=True,
                text=True,
                cwd=tmp_path,
                env={**clean_env, "NKV_URL": node.url},
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, (command, done.stderr)
            printed.append(done.stdout)
    text = "\n".join(printed)
    assert "ETag" in text or "etag" in text
    assert "condition_failed" in text
    assert "hello" in text


NKV = f"{sys.executable} -m nkv_core"


def test_the_embedding_examples_run(tmp_path):
    examples = blocks("README.md", "python")[1:] + blocks("docs/embedding.md", "python")
    assert len(examples) >= 3
    for number, example in enumerate(examples):
        folder = tmp_path / str(number)
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", example],
            capture_output=True,
            text=True,
            cwd=folder,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "hello" in done.stdout
