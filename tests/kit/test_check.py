"""`nkv plugins check`: a plugin is loaded, replaced, unloaded and tested before a node has it."""

import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from nkv_core.check import check
from nkv_core.scaffold import write

pytestmark = pytest.mark.one_python

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "nkv-example"


def plugin(tmp_path, source, name="mine"):
    path = tmp_path / f"{name}.py"
    path.write_text("from nkv_core import hookimpl\n" + dedent(source))
    return path


def codes(report):
    return [finding.code for finding in report.findings]


def test_a_plugin_that_works_is_all_well(tmp_path):
    path = plugin(tmp_path, '@hookimpl\ndef nkv_handlers(handlers): handlers.add("/a", print)\n')
    report = check(path)
    assert report.findings == []
    assert "loading, replacing and unloading it" in report.checks


def test_the_example_distribution_is_all_well():
    report = check(EXAMPLE, storage="sqlite")
    assert [finding.message for finding in report.findings] == []
    assert report.checks[-1] == "its tests, and the contract suite"


def test_a_setup_that_fails_is_found_in_its_line(tmp_path):
    source = """
    @hookimpl
    async def nkv_setup(ctx):
        raise RuntimeError("not today")
        yield
    """
    path = plugin(tmp_path, source)
    (finding,) = check(path).findings
    assert (finding.code, finding.path, finding.line) == ("load_failed", str(path), 5)
    assert "not today" in finding.message


@pytest.mark.parametrize(
    ("name", "argument"), [("nkv_startet", "event"), ("nkv_changed", "what, ever")]
)
def test_what_is_no_hook_is_found(tmp_path, name, argument):
    report = check(plugin(tmp_path, f"@hookimpl\ndef {name}({argument}): pass\n"))
    assert codes(report) == ["load_failed"]


def test_settings_that_it_needs_are_asked_for_and_can_be_given(tmp_path):
    source = """
    import msgspec
    class Settings(msgspec.Struct, forbid_unknown_fields=True):
        path: str
        port: int = 7
    @hookimpl
    def nkv_settings(): return Settings
    """
    path = plugin(tmp_path, source)
    (finding,) = check(path).findings
    assert finding.code == "load_failed"
    assert "--set KEY=VALUE" in finding.message
    assert check(path, settings={"path": "here"}).findings == []


def test_what_holds_a_generation_is_found(tmp_path):
    source = """
    import json
    def sixth(value): return 6
    @hookimpl
    def nkv_handlers(handlers):
        json.JSONEncoder.sixth = sixth
    """
    report = check(plugin(tmp_path, source))
    assert "leaked" in codes(report)
    assert "JSONEncoder" in report.findings[-1].message


def test_a_thread_that_stays_is_found(tmp_path):
    source = """
    import threading
    ended = threading.Event()
    def stay(): ended.wait(20)
    @hookimpl
    def nkv_handlers(handlers):
        threading.Thread(target=stay, name="stays", daemon=True).start()
    """
    report = check(plugin(tmp_path, source))
    assert {"left_thread", "leaked"} <= set(codes(report))


def test_a_replacement_that_fails_is_found(tmp_path):
    source = """
    @hookimpl
    async def nkv_setup(ctx):
        if await ctx.state.get("been"):
            raise RuntimeError("it has been here before")
        await ctx.state.put("been", b"1")
        yield
    """
    (finding,) = check(plugin(tmp_path, source)).findings
    assert (finding.code, finding.line) == ("replace_failed", 6)


def test_a_warning_is_shown(tmp_path):
    source = """
    @hookimpl
    async def nkv_setup(ctx):
        ctx.log.warning("I do not feel well")
        yield
    """
    report = check(plugin(tmp_path, source))
    assert codes(report) == ["logged"] * 3
    assert (report.errors, report.warnings) == (0, 3)


def test_a_storage_that_breaks_its_contract_is_found(tmp_path):
    folder = write("storage", "mine", tmp_path)
    path = folder / "src" / "nkv_storage_mine" / "storage.py"
    path.write_text(path.read_text().replace("keys[:limit]", "keys"))
    found = {finding.message.partition(":")[0] for finding in check(folder).findings}
    assert "test_scans_no_more_than_the_limit" in found
    assert set(codes(check(folder / "src" / "nkv_storage_mine"))) == {"contract_broken"}


def test_tests_that_fail_are_found(tmp_path):
    folder = write("handlers", "mine", tmp_path)
    (folder / "tests" / "test_more.py").write_text("def test_more():\n    assert 1 + 1 == 3\n")
    (finding,) = check(folder).findings
    assert finding.code == "test_failed"
    assert finding.message.startswith("test_more: ")


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "nkv_core", "plugins", "check", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_command_says_what_it_found_and_ends_with_1_for_errors(tmp_path):
    path = plugin(tmp_path, "import pickle\n")
    done = run(str(path), "--no-run")
    assert done.returncode == 1
    assert f"{path}:2: error unsafe_serialisation: pickle runs code" in done.stdout
    assert done.stdout.endswith("mine: 1 error\n")
    found = json.loads(run(str(path), "--no-run", "--json").stdout)
    assert found["findings"][0]["severity"] == "error"
    assert found["checks"] == ["the text of its files"]


def test_the_command_ends_with_0_where_all_is_well_and_2_where_there_is_nothing(tmp_path):
    path = plugin(tmp_path, "@hookimpl\ndef nkv_changed(change): pass\n")
    done = run(str(path), "--no-tests")
    assert (done.returncode, done.stdout) == (0, "mine: all is well\n")
    assert run(str(tmp_path / "nothing.py")).returncode == 2
