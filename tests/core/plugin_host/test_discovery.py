"""From a SPEC to a plugin's files, and to its source."""

import hashlib
import os
import sys
import sysconfig
from pathlib import Path

import pytest

from nkv_core.errors import PluginInvalid, PluginNotFound, UntrustedFile
from nkv_core.plugin_host import discovery, source
from nkv_core.plugin_host.discovery import available, find, install_hint
from nkv_core.plugin_host.source import check_pins, read_source

EXTENSION = sysconfig.get_config_var("EXT_SUFFIX")


@pytest.fixture
def installed(write, monkeypatch, tmp_path):
    """Write files as if installed; `dist` writes a distribution's metadata."""
    monkeypatch.syspath_prepend(tmp_path / "plugins")

    def dist(name, entries="", metadata="", direct=None):
        folder = f"{name.replace('-', '_')}-1.0.dist-info"
        write(
            f"{folder}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{metadata}"
        )
        write(f"{folder}/entry_points.txt", f"[nkv.plugins]\n{entries}")
        if direct:
            write(f"{folder}/direct_url.json", direct)

    return dist


def test_our_own_plugins_are_found_by_name():
    assert {"nkv_storage_memory", "nkv_storage_diskcache", "nkv_transport_http"} <= set(available())
    candidate = find("nkv_storage_memory")
    assert (candidate.name, candidate.is_package) == ("nkv_storage_memory", True)
    assert (candidate.installed, candidate.distribution) == (True, "nkv-core")


def test_a_path_is_a_file_or_a_folder_with_an_init(write, tmp_path, monkeypatch):
    path = write("one.py", "")
    assert find(path).name == "one"
    write("pack/__init__.py", "")
    assert find(str(tmp_path / "plugins" / "pack")).path.name == "__init__.py"
    assert find(str(tmp_path / "plugins" / "pack") + "/").name == "pack"
    monkeypatch.chdir(tmp_path / "plugins")
    assert find("one.py").path == Path(path)
    assert find("./pack").is_package
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find("~/plugins/one.py").path == Path(path)


@pytest.mark.parametrize(
    "case",
    [
        ("", PluginNotFound, "empty"),
        ("no_such_plugin", PluginNotFound, "There are: .*nkv_storage_memory"),
        ("nkv_storage_memry", PluginNotFound, "Did you mean nkv_storage_memory"),
        ("not a module", PluginNotFound, "neither an entry point nor a module"),
        ("os.path.join", PluginNotFound, "neither an entry point nor a module"),
        ("./none.py", PluginNotFound, "no file or folder"),
        ("./empty", PluginInvalid, "has no __init__.py"),
        ("./notes.txt", PluginInvalid, "neither a .py file nor"),
        ("./two-words.py", PluginInvalid, "'two-words' cannot be a plugin's name"),
        ("./nkv.py", PluginInvalid, "'nkv' cannot be a plugin's name"),
        ("./pack/__init__.py", PluginInvalid, "give its folder"),
        ("sys", PluginInvalid, "no source file on disk"),
        ("msgspec._core", PluginInvalid, "extension module"),
        ("one", PluginNotFound, r"\./one"),
    ],
)
def test_what_cannot_be_found_is_told(write, tmp_path, monkeypatch, case):
    spec, error, told = case
    write("pack/__init__.py", "")
    for name in ("notes.txt", "two-words.py", "nkv.py", "empty/readme", "one.py"):
        write(name, "")
    monkeypatch.chdir(tmp_path / "plugins")
    with pytest.raises(error, match=told):
        find(spec)


def test_finding_imports_nothing(write, installed):
    write("far_away/__init__.py", "raise RuntimeError")
    write("far_away/inside/__init__.py", "raise RuntimeError")
    find("far_away")  # from here on all is imported that finding itself needs
    before = set(sys.modules)
    assert find("far_away.inside").name == "inside"
    assert set(sys.modules) == before


def test_a_broken_entry_point_or_distribution_stops_no_other(installed, write, caplog):
    installed("broken-dist", "gone = gone_module\n")
    write("damaged-1.0.dist-info/entry_points.txt", "[nkv.plugins]\nnonsense\n")
    write("damaged-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: damaged\nVersion: 1\n")
    assert {"gone", "nkv_storage_memory"} <= set(available())
    assert "unreadable metadata" in caplog.text
    with pytest.raises(
        PluginNotFound, match=r"broken-dist declares the plugin gone.*installed whole"
    ):
        find("gone")


def test_an_editable_install_that_cannot_be_found_yet_is_explained(installed):
    direct = '{"url": "file:///somewhere", "dir_info": {"editable": true}}'
    installed("editing", "edited = edited_module\n", direct=direct)
    with pytest.raises(PluginNotFound, match=r"editable install.*restart"):
        find("edited")


def test_two_distributions_with_one_name_are_both_named(installed):
    installed("first-dist", "same = first_module\n")
    installed("second-dist", "same = second_module\n")
    with pytest.raises(PluginInvalid, match=r"first-dist.*second-dist|second-dist.*first-dist"):
        find("same")


def test_an_entry_point_to_an_object_is_refused(installed):
    installed("object-dist", "thing = some_module:thing\n")
    with pytest.raises(PluginInvalid, match="must name a module"):
        find("thing")


def test_a_finder_that_raises_stops_no_other(write, installed, monkeypatch, caplog):
    class Broken:
        def find_spec(self, *args):
            raise RuntimeError("broken")

    write("plain_module.py", "")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    assert find("plain_module").name == "plain_module"
    assert "could not look for plain_module" in caplog.text


def test_what_is_missing_is_installed_by_the_extra(installed, write):
    write("nkv_kind_short/__init__.py", "")
    extras = (
        "Provides-Extra: lmdb\nProvides-Extra: short\n"
        "Requires-Dist: lmdb>=1; extra == 'lmdb'\nRequires-Dist: Py-Thing; extra == \"short\"\n"
    )
    installed("with-extras", "nkv_kind_short = nkv_kind_short\n", extras)
    candidate = find("nkv_kind_short")
    assert install_hint("lmdb", candidate) == "pip install 'with-extras[lmdb]'"
    assert install_hint("py_thing", candidate) == "pip install 'with-extras[short]'"
    assert install_hint("other", candidate) == "pip install 'with-extras[short]'"
    installed("without", "plain_one = plain_one\n")
    write("plain_one.py", "")
    assert install_hint("other", find("plain_one")) == "pip install other"


def test_a_helper_beside_a_file_needs_a_package(write):
    write("helper.py", "")
    assert "from . import helper" in install_hint("helper", find(write("uses.py", "")))


# --- source ---------------------------------------------------------------------------------------


def test_a_package_is_read_whole_and_its_sum_is_of_a_list(write, tmp_path):
    folder = tmp_path / "plugins" / "pack"
    for name in ("__init__.py", "a.py", "sub/b.py", "sub/deep/__init__.py", ".hidden.py"):
        write(f"pack/{name}", f"# {name}")
    write("pack/data/readme.txt", "")
    write("pack/not-a-module.py", "")
    write("pack/__pycache__/a.py", "")
    write("pack/both.py", "")
    write("pack/both/__init__.py", "")
    read = read_source(find(str(folder)))
    assert set(read.files) == {"", "a", "sub", "sub.b", "sub.deep", "both"}
    assert read.files["sub"].data == b""  # a folder without a file of its own is a package
    assert read.files["both"].is_package
    names = ("__init__.py", "a.py", "both/__init__.py", "sub/b.py", "sub/deep/__init__.py")
    lines = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    assert read.sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_an_extension_module_inside_is_refused(write, tmp_path):
    write("pack/__init__.py", "")
    write(f"pack/fast{EXTENSION}", "")
    with pytest.raises(PluginInvalid, match=r"fast.*cannot unload"):
        read_source(find(str(tmp_path / "plugins" / "pack")))


def test_files_that_others_could_change_are_refused(write, tmp_path):
    path = Path(write("one.py", ""))
    path.chmod(0o646)
    with pytest.raises(UntrustedFile, match="chmod go-w"):
        read_source(find(str(path)))
    path.chmod(0o664)
    os.chown(path, -1, 12345)
    with pytest.raises(UntrustedFile, match="can be written by others"):
        read_source(find(str(path)))
    os.chown(path, -1, path.stat().st_uid)  # a group of the user's own
    read_source(find(str(path)))
    os.chown(path, 12345, 12345)
    with pytest.raises(UntrustedFile, match="belongs to user 12345"):
        read_source(find(str(path)))


test_files_that_others_could_change_are_refused = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can give files away"
)(test_files_that_others_could_change_are_refused)


def test_a_folder_that_others_could_change_is_refused(write, tmp_path):
    write("pack/__init__.py", "")
    write("pack/sub/a.py", "")
    (tmp_path / "plugins" / "pack" / "sub").chmod(0o777)
    with pytest.raises(UntrustedFile, match="sub can be written by others"):
        read_source(find(str(tmp_path / "plugins" / "pack")))


@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_a_folder_above_that_others_could_change_is_refused(write, tmp_path, mode):
    path = write("deep/inside/one.py", "")
    folder = tmp_path / "plugins" / "deep"
    folder.chmod(mode)
    if mode == 0o775:
        os.chown(folder, -1, os.getegid() + 1) if os.geteuid() == 0 else pytest.skip("needs root")
    with pytest.raises(UntrustedFile, match=f"chmod go-w {folder}$"):
        read_source(find(path))
    folder.chmod(0o1777)  # as /tmp: nobody can rename what others have there
    assert read_source(find(path)).files


def test_what_is_pinned_must_be_what_was_read(write):
    source = read_source(find(write("one.py", "x = 1")))
    check_pins(source, None, source.sha256, source.sha256.upper())
    with pytest.raises(UntrustedFile, match=f"{source.sha256}, and {'0' * 64} was asked for"):
        check_pins(source, source.sha256, "0" * 64)


def test_symbolic_links_and_pipes_are_refused(write, tmp_path):
    target = write("target.py", "")
    link = tmp_path / "plugins" / "link.py"
    link.symlink_to(target)
    with pytest.raises(UntrustedFile, match="symbolic link"):
        read_source(find(str(link)))
    folder = tmp_path / "plugins" / "linked"
    write("pack/__init__.py", "")
    folder.symlink_to(tmp_path / "plugins" / "pack")
    with pytest.raises(UntrustedFile, match="linked is not a regular file or folder"):
        read_source(find(str(folder)))
    inner = tmp_path / "plugins" / "pack" / "inner.py"
    inner.symlink_to(target)
    with pytest.raises(UntrustedFile, match="symbolic link"):
        read_source(find(str(tmp_path / "plugins" / "pack")))
    pipe = tmp_path / "plugins" / "pipe.py"
    os.mkfifo(pipe)
    with pytest.raises(UntrustedFile, match="not a regular file"):
        read_source(find(str(pipe)))


def test_what_is_installed_may_be_a_link(write, installed, tmp_path):
    target = Path(write("elsewhere.txt", "x = 1"))
    (tmp_path / "plugins" / "linked_module.py").symlink_to(target)
    assert read_source(find("linked_module")).files[""].data == b"x = 1"


def test_where_folders_are_listed_a_path_must_lie_in_one(write, tmp_path):
    path = write("allowed/one.py", "")
    inside = (str(tmp_path / "plugins" / "allowed"),)
    assert read_source(find(path), inside)
    with pytest.raises(UntrustedFile, match=r"none of the plugins\.folders"):
        read_source(find(path), (str(tmp_path / "other"),))
    assert read_source(find("nkv_storage_memory"), inside)  # what is installed is another matter


def test_size_and_number_are_bounded(write, monkeypatch, tmp_path):
    write("pack/__init__.py", "")
    write("pack/a.py", "x = 1")
    candidate = find(str(tmp_path / "plugins" / "pack"))
    monkeypatch.setattr(source, "MAX_FILES", 1)
    with pytest.raises(PluginInvalid, match="at most 1 files"):
        read_source(candidate)
    monkeypatch.setattr(source, "MAX_FILES", 10)
    monkeypatch.setattr(source, "MAX_BYTES", 4)
    with pytest.raises(PluginInvalid, match="more than 0 MiB"):
        read_source(candidate)


def test_a_file_that_cannot_be_read_is_told(write):
    candidate = find(write("one.py", ""))
    candidate.path.unlink()
    with pytest.raises(PluginNotFound, match="no file"):
        read_source(candidate)


def test_reserved_names_are_the_nodes_own():
    assert sorted(discovery.RESERVED) == ["nkv", "nkv_core"]
