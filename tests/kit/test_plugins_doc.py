"""What docs/plugins shows works as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nkv_core.testing
from nkv_core.check import check

pytestmark = pytest.mark.one_python

DOCS = Path(__file__).parents[2] / "docs" / "plugins"
NKV = f"{sys.executable} -m nkv_core"
#: Of the tutorial: what needs an index of packages, and what is done here already.
ELSEWHERE = ("pip ", "nkv serve", "tox", "python -m build", "twine ")


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)


def plugins_shown():
    for page in sorted(path.name for path in DOCS.glob("*.md")):
        for block in blocks(page, "python"):
            if "@hookimpl" in block and page != "tutorial.md":
                yield page.removesuffix(".md"), block


@pytest.mark.parametrize(("page", "source"), list(plugins_shown()))
def test_the_plugin_of_a_page_works_and_has_nothing_wrong(tmp_path, page, source):
    kind = "" if page == "handlers" else f"{page}_"
    path = tmp_path / f"nkv_{kind}shown.py"
    path.write_text(source)
    report = check(path, storage="plain")
    assert [finding.message for finding in report.findings] == []


def test_every_kind_has_a_page_with_a_plugin():
    shown = {page for page, _ in plugins_shown()}
    assert shown == {"handlers", "storage", "transport", "notifier", "mesh"}


def test_the_tutorial_goes_as_it_says(serve, tmp_path, clean_env):
    text = (DOCS / "tutorial.md").read_text()
    node, folder, said = None, tmp_path, []
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", text, re.M | re.S):
        if language == "python":
            name, _, _ = block.partition("\n")
            (folder / name.removeprefix("# ")).write_text(block)
            continue
        for command in re.findall(r"^\$ (.*)$", block, re.M):
            if command.startswith("cd "):
                folder /= command.removeprefix("cd ")
            elif command.startswith("nkv serve"):
                node = serve(env={"PYTHONPATH": str(folder / "src")})
            elif not command.startswith(ELSEWHERE):
                said.append(run(command, folder, clean_env, node))
    text = "\n".join(said)
    assert '{"greeting":"Hello, Ada Lovelace!"}' in text
    assert '{"greeting":"Welcome, Ada Lovelace!"}' in text
    assert "nkv_greet: all is well" in text


def run(command, folder, env, node):
    command = re.sub(r"^nkv ", f"{NKV} ", command)
    command = re.sub(r"^pytest", f"{sys.executable} -m pytest", command)
    env = {**env, "PYTHONPATH": os.pathsep.join([str(folder / "src"), env.get("PYTHONPATH", "")])}
    if node is not None:
        command = command.replace("http://127.0.0.1:8080", node.url)
        env |= {"NKV_URL": node.url, "NKV_DATA_DIR": str(node.data_dir)}
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def test_the_tests_on_the_page_about_testing_pass(tmp_path):
    (block,) = blocks("testing.md", "python")
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["nkv_core.testing"]\n')
    (tmp_path / "test_shown.py").write_text(
        block.replace('pytest_plugins = ["nkv_core.testing"]\n', "")
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "ignore", "--rootdir", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_every_fixture_and_every_suite_is_documented():
    text = (DOCS / "testing.md").read_text()
    fixtures = set(re.findall(r"^\| `(\w+)` \|", text, re.M))
    given = {
        name
        for name in nkv_core.testing.__all__
        if type(getattr(nkv_core.testing, name)).__name__ == "FixtureFunctionDefinition"
    }
    assert fixtures == given
    suites = {name for name in nkv_core.testing.__all__ if name.endswith("Contract")}
    assert suites == set(re.findall(r"`(\w+Contract)`", text))
