"""Distributions that are written for somebody to begin with."""

import re
import tomllib

import pytest

from nkv_core.errors import BadRequest, DataDirError
from nkv_core.scaffold import KINDS, names_of, write


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_all_that_a_distribution_has(tmp_path, kind):
    folder = write(kind, "my_own", tmp_path)
    names = names_of(kind, "my_own")
    assert folder == tmp_path / names.distribution
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["name"] == names.distribution
    assert project["project"]["entry-points"]["nkv.plugins"] == {names.module: names.module}
    for part in ("README.md", "tox.ini", f"src/{names.module}/py.typed", "tests/conftest.py"):
        assert (folder / part).is_file(), part
    assert list((folder / "tests").glob("test_*.py"))
    assert not [path for path in folder.rglob("*") if path.suffix == ".txt" or "[[" in path.name]
    for path in folder.rglob("*"):
        if path.is_file():
            assert not re.search(r"\[\[\w+\]\]", path.read_text()), path
            if path.suffix == ".py":
                compile(path.read_text(), path, "exec")


def test_the_plugin_is_called_by_its_kind():
    assert names_of("mesh", "a_b").module == "nkv_mesh_a_b"
    assert names_of("handlers", "a_b").module == "nkv_a_b"
    assert names_of("storage", "a_b").prefix == "AB"


@pytest.mark.parametrize(
    "name", ["", "A", "a-b", "1a", "a__b", "_a", "a_", "class", "../a", "a.b", "a" * 41, "é"]
)
def test_what_is_no_name_is_refused(tmp_path, name):
    with pytest.raises(BadRequest, match="is no name for a plugin"):
        write("storage", name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_left_as_it_is(tmp_path):
    mine = tmp_path / "nkv-storage-mine" / "README.md"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(DataDirError, match="exists already"):
        write("storage", "mine", tmp_path)
    assert [path.name for path in mine.parent.iterdir()] == ["README.md"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataDirError, match="cannot be made: Not a directory"):
        write("storage", "mine", tmp_path / "file")


def test_what_was_written_by_half_is_taken_away(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nkv_core.scaffold._copy", full)
    with pytest.raises(DataDirError, match="cannot be written: No space left"):
        write("storage", "mine", tmp_path)
    assert list(tmp_path.iterdir()) == []
