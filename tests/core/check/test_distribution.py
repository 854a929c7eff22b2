"""What is missing in a distribution is found, and what is not missing is not."""

import re
import shutil

import pytest

from nkv_core.check import check
from nkv_core.errors import PluginNotFound
from nkv_core.scaffold import KINDS, write


def codes(folder):
    return [finding.code for finding in check(folder, run=False).findings]


@pytest.fixture
def folder(tmp_path):
    return write("storage", "mine", tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_to_begin_with_lacks_nothing(tmp_path, kind):
    report = check(write(kind, "mine", tmp_path), run=False)
    assert (report.findings, report.checks) == ([], ["the text of its files", "the distribution"])


@pytest.mark.parametrize(
    ("gone", "code"),
    [
        (r"^dependencies = .*\n", "core_dependency"),
        (r"^requires-python = .*\n", "no_python_version"),
        (r"^license = .*\n", "no_licence"),
        (r"^\[project.entry-points.*\n.*\n", "entry_point"),
    ],
)
def test_what_the_project_file_lacks_is_found(folder, gone, code):
    project = folder / "pyproject.toml"
    project.write_text(re.sub(gone, "", project.read_text(), flags=re.MULTILINE))
    assert codes(folder) == [code]


@pytest.mark.parametrize(
    ("gone", "code"),
    [
        ("src/nkv_storage_mine/py.typed", "no_py_typed"),
        ("tests/test_storage.py", "no_tests"),
        ("src/nkv_storage_mine/__init__.py", "entry_point"),
    ],
)
def test_what_is_not_there_is_found(folder, gone, code):
    (folder / gone).unlink()
    assert codes(folder) == [code]


def test_a_readme_is_wanted(folder):
    (folder / "README.md").unlink()
    project = folder / "pyproject.toml"
    project.write_text(project.read_text().replace('readme = "README.md"\n', ""))
    assert codes(folder) == ["no_readme"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "handlers"])
def test_each_kind_needs_its_suite(tmp_path, kind):
    folder = write(kind, "mine", tmp_path)
    for path in (folder / "tests").glob("test_*.py"):
        path.write_text(re.sub(r"\(\w+Contract\)", "", path.read_text()))
    (finding,) = check(folder, run=False).findings
    assert finding.code == "no_contract_suite"
    assert f"{kind.capitalize()}Contract" in finding.message


def test_an_entry_point_is_called_as_its_module_is(folder):
    project = folder / "pyproject.toml"
    project.write_text(project.read_text().replace("nkv_storage_mine = ", "other = "))
    assert codes(folder) == ["entry_point"]


def test_a_project_file_that_is_none_is_found(folder):
    (folder / "pyproject.toml").write_text("[project")
    assert codes(folder) == ["project_file"]


def test_a_plugin_that_lies_in_no_src_is_found_too(folder):
    shutil.move(folder / "src" / "nkv_storage_mine", folder / "nkv_storage_mine")
    assert codes(folder) == []


def test_what_is_not_there_cannot_be_checked(tmp_path):
    with pytest.raises(PluginNotFound, match="There is no file or folder"):
        check(tmp_path / "nothing")
