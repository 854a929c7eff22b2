"""The tables of first-party plugins, of dependencies and of documents say the same everywhere."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = sorted(path.name for path in (ROOT / "plugins").iterdir() if path.is_dir())


def test_each_plugin_folder_is_an_entry_point_of_its_own_name():
    entry_points = PROJECT["project"]["entry-points"]["nkv.plugins"]
    assert entry_points == {name: name for name in FOLDERS}


def test_each_plugin_folder_is_packaged():
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert packages == ["nkv_core", *(f"plugins/{name}" for name in FOLDERS)]


def test_each_plugin_folder_is_type_checked_and_held_to_the_import_rules():
    assert PROJECT["tool"]["mypy"]["packages"] == ["nkv_core", *FOLDERS]
    assert PROJECT["tool"]["importlinter"]["root_packages"] == ["nkv_core", *FOLDERS]
    independence = next(
        contract
        for contract in PROJECT["tool"]["importlinter"]["contracts"]
        if contract["type"] == "independence"
    )
    assert independence["modules"] == FOLDERS


@pytest.mark.parametrize("name", FOLDERS)
def test_each_plugin_has_its_tests_its_readme_and_its_type_marker(name):
    assert list((ROOT / "tests" / "plugins" / name).glob("test_*.py"))
    assert (ROOT / "plugins" / name / "README.md").read_text().startswith(f"# {name}\n")
    assert (ROOT / "plugins" / name / "py.typed").exists()


@pytest.mark.parametrize("name", FOLDERS)
def test_each_plugin_has_an_environment_in_the_matrix(name):
    kind_and_name = name.removeprefix("nkv_")
    assert f"\n    {kind_and_name}" in (ROOT / "tox.ini").read_text().split("[testenv]")[0]


def test_dependencies_are_those_of_the_core_and_of_the_default_plugins():
    groups = PROJECT["dependency-groups"]
    parts = groups["core"] + groups["storage-diskcache"] + groups["transport-http"]
    assert sorted(PROJECT["project"]["dependencies"]) == sorted(parts)


def test_extras_and_groups_of_the_same_name_ask_for_the_same():
    assert (
        PROJECT["project"]["optional-dependencies"]["test"] == PROJECT["dependency-groups"]["test"]
    )


def test_no_module_is_much_longer_than_400_lines():
    for folder in ("nkv_core", "plugins"):
        for path in (ROOT / folder).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 440, path
