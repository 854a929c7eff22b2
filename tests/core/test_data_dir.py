"""The data directory: identity, lock, refusals that touch nothing, interrupted upgrades."""

import errno
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from nkv_core import data_dir, data_dir_upgrade, files
from nkv_core.data_dir import DataDir
from nkv_core.errors import DataDamaged, DataDirBusy, DataDirError, NewerFormat

FIRST_ID = "00000000000000ff"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def as_stranger():
    """Run a function as a user without rights, where need be in a process of its own."""

    def run(function) -> str:
        if os.geteuid() != 0:
            try:
                return str(function())
            except DataDirError as error:
                return f"{type(error).__name__}: {error}"
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                text = str(function())
            except BaseException as error:  # noqa: BLE001  # told to the parent
                text = f"{type(error).__name__}: {error}"
            os.write(writing, text.encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            text = pipe.read()
        os.waitpid(child, 0)
        return text

    return run


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """All that is in a folder, with modes."""
    return {
        f"{path.relative_to(folder)} {path.lstat().st_mode:o}": path.read_bytes()
        if path.is_file()
        else None
        for path in sorted(folder.rglob("*"))
    }


def old_folder(folder: Path, number: int = 1) -> dict[str, bytes | None]:
    folder.mkdir()
    folder.joinpath("nkv.json").write_text(json.dumps({"format": number, "node_id": FIRST_ID}))
    folder.joinpath("storage").mkdir()
    folder.joinpath("storage", "data").write_bytes(b"old")
    folder.joinpath("link").symlink_to("storage/data")
    return snapshot(folder)


def rewrite(path: Path) -> None:
    """An upgrade: data changes in place, one file comes, one goes."""
    data = path / "storage" / "data"
    assert data.read_bytes() == b"old", "a step must see the files as they were"
    data.write_bytes(b"new")
    path.joinpath("added").write_bytes(b"added")
    path.joinpath("link").unlink()


def current(folder: Path) -> dict[str, bytes | None]:
    """What is there but for the copies and the lock."""
    return {
        name: content
        for name, content in snapshot(folder).items()
        if not name.startswith(("backup-format-", "nkv.lock"))
    }


# --- a new folder ---------------------------------------------------------------------------------


def test_a_new_folder_is_for_its_user_alone(folder):
    with DataDir.open(folder) as opened:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert opened.path == folder
        assert opened.admin_socket == folder / "admin.sock"
        assert 0 < opened.node_id < 2**64
        for path in folder.iterdir():
            assert path.stat().st_mode & 0o077 == 0, path


def test_the_identity_stays(folder):
    with DataDir.open(folder) as opened:
        node_id = opened.node_id
    with DataDir.open(str(folder)) as opened:
        assert opened.node_id == node_id
    written = json.loads(folder.joinpath("nkv.json").read_text())
    assert written == {"format": data_dir.FORMAT, "node_id": f"{node_id:016x}"}


def test_two_folders_have_two_identities(tmp_path):
    with DataDir.open(tmp_path / "a") as a, DataDir.open(tmp_path / "b") as b:
        assert a.node_id != b.node_id


def test_an_empty_folder_is_taken_over_and_closed_to_others(folder):
    folder.mkdir(mode=0o755)
    folder.joinpath("lost+found").mkdir()
    with DataDir.open(folder):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_what_an_interrupted_first_start_left_is_no_obstacle(folder):
    folder.mkdir()
    folder.joinpath("nkv.lock").write_text("1\n")
    folder.joinpath("nkv.json.new").write_text('{"for')
    with DataDir.open(folder):
        assert not folder.joinpath("nkv.json.new").exists()


def test_a_relative_path_means_the_same_after_a_change_of_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with DataDir.open("data") as opened:
        assert opened.path == tmp_path / "data"


def test_the_identity_is_on_the_disk_before_it_has_its_name(folder, monkeypatch):
    synced, replaced = [], []
    fsync, replace = os.fsync, Path.replace

    def noted(handle):
        synced.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(
        Path, "replace", lambda self, to: (replaced.append(list(synced)), replace(self, to))
    )
    DataDir.open(folder).close()
    assert replaced[-1][-1] == str(folder / "nkv.json.new")
    assert synced[-1] == str(folder)


# --- the lock -------------------------------------------------------------------------------------


def test_a_second_node_is_told_who_has_the_folder(folder):
    with DataDir.open(folder):
        before = snapshot(folder)
        with pytest.raises(DataDirBusy, match=f"process {os.getpid()}"):
            DataDir.open(folder)
        assert snapshot(folder) == before
    DataDir.open(folder).close()


def test_closing_twice_releases_once(folder):
    opened = DataDir.open(folder)
    opened.close()
    with DataDir.open(folder):
        opened.close()
        with pytest.raises(DataDirBusy):
            DataDir.open(folder)


def test_the_folder_is_free_once_its_node_was_killed(folder):
    program = (
        "import sys; from nkv_core.data_dir import DataDir\n"
        "held = DataDir.open(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
    )
    arguments = [sys.executable, "-c", program, str(folder)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as node:
        assert node.stdout.readline() == b"held\n"
        with pytest.raises(DataDirBusy, match=f"process {node.pid}"):
            DataDir.open(folder)
        node.kill()
        node.wait(10)
        DataDir.open(folder).close()


def test_a_refused_folder_is_not_held(folder):
    old_folder(folder)
    for _ in range(2):
        with pytest.raises(DataDirError, match="can no longer upgrade"):
            DataDir.open(folder, format_number=3)
    DataDir.open(folder).close()


# --- refusals that touch nothing ------------------------------------------------------------------


def test_a_file_is_no_folder(folder):
    folder.write_bytes(b"mine")
    with pytest.raises(DataDirError, match="not a folder"):
        DataDir.open(folder)
    with pytest.raises(DataDirError, match="not a folder"):
        DataDir.open(folder / "below")
    assert folder.read_bytes() == b"mine"


def test_somebody_elses_folder_is_refused(folder):
    folder.mkdir(mode=0o755)
    folder.joinpath("thesis.tex").write_text("...")
    before = snapshot(folder.parent)
    with pytest.raises(DataDirError, match=r"thesis\.tex"):
        DataDir.open(folder)
    assert snapshot(folder.parent) == before


def test_data_without_an_identity_is_refused(folder):
    DataDir.open(folder).close()
    folder.joinpath("nkv.json").unlink()
    folder.joinpath("storage.diskcache").mkdir()
    with pytest.raises(DataDirError, match=r"no nkv\.json"):
        DataDir.open(folder)


def test_a_newer_format_is_refused(folder):
    before = old_folder(folder, data_dir.FORMAT + 1)
    with pytest.raises(NewerFormat, match=f"format {data_dir.FORMAT + 1}"):
        DataDir.open(folder)
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"format": "1", "node_id": "00000000000000ff"}',
        b'{"format": true, "node_id": "00000000000000ff"}',
        b'{"format": 0, "node_id": "00000000000000ff"}',
        b'{"format": 1}',
        b'{"format": 1, "node_id": 255}',
        b'{"format": 1, "node_id": "ff"}',
        b'{"format": 1, "node_id": "00000000000000FF"}',
        b'{"format": 1, "node_id": "0x000000000000ff"}',
        b'{"format": 1, "node_id": "00000000000000ff"}' + b" " * 70_000,
        b"[" * 60_000,
    ],
)
def test_a_damaged_identity_is_refused(folder, content):
    folder.mkdir()
    folder.joinpath("nkv.json").write_bytes(content)
    before = snapshot(folder)
    with pytest.raises(DataDamaged, match=r"nkv\.json"):
        DataDir.open(folder)
    assert snapshot(folder) == before


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/etc/passwd")])
def test_an_identity_that_is_no_file_is_refused(folder, make):
    folder.mkdir()
    make(folder / "nkv.json")
    with pytest.raises(DataDirError):
        DataDir.open(folder)


def test_a_link_in_place_of_the_lock_is_not_followed(folder, tmp_path):
    old_folder(folder)
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    folder.joinpath("nkv.lock").symlink_to(target)
    with pytest.raises(DataDirError):
        DataDir.open(folder)
    assert target.read_bytes() == b"precious"


@pytest.fixture
def reachable():
    """A folder that every user can get to, but not write to."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        yield path
        path.chmod(0o755)


def test_a_folder_that_is_not_writable_is_named(reachable, as_stranger):
    folder = reachable / "data"
    folder.mkdir()
    folder.chmod(0o555)
    text = as_stranger(lambda: DataDir.open(folder))
    assert text.startswith("DataDirError")
    assert f"{folder} is not writable" in text
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(reachable, as_stranger):
    reachable.chmod(0o555)
    text = as_stranger(lambda: DataDir.open(reachable / "data"))
    assert text.startswith("DataDirError")
    assert f"{reachable / 'data'} cannot be used" in text


def test_a_folder_that_cannot_be_read_is_named(reachable, as_stranger):
    folder = reachable / "data"
    DataDir.open(folder).close()
    folder.chmod(0)
    text = as_stranger(lambda: DataDir.open(folder))
    assert text.startswith("DataDirError")
    assert f"{folder} cannot be used" in text


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only"), (errno.EIO, "error")],
)
def test_a_failing_disk_is_named(folder, monkeypatch, number, reason):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(DataDirError, match=reason) as caught:
        DataDir.open(folder)
    assert str(folder) in caught.value.detail
    monkeypatch.undo()
    assert not folder.joinpath("nkv.json").exists()
    DataDir.open(folder).close()


# --- upgrades -------------------------------------------------------------------------------------


def test_an_older_format_is_upgraded_and_what_was_is_kept(folder):
    before = old_folder(folder)
    with DataDir.open(folder, format_number=2, steps={1: rewrite}) as opened:
        assert opened.node_id == int(FIRST_ID, 16)
    assert folder.joinpath("storage", "data").read_bytes() == b"new"
    assert folder.joinpath("added").read_bytes() == b"added"
    assert not folder.joinpath("link").is_symlink()
    assert json.loads(folder.joinpath("nkv.json").read_text())["format"] == 2
    assert snapshot(folder / "backup-format-1") == before
    assert not folder.joinpath(data_dir_upgrade.MARKER).exists()
    with pytest.raises(NewerFormat):
        DataDir.open(folder)


def test_several_steps_run_in_order(folder):
    old_folder(folder)
    ran = []
    steps = {number: lambda _, number=number: ran.append(number) for number in (3, 1, 2)}
    DataDir.open(folder, format_number=4, steps=steps).close()
    assert ran == [1, 2, 3]


def test_nothing_is_upgraded_where_a_step_is_missing(folder):
    before = old_folder(folder)
    with pytest.raises(DataDirError, match="can no longer upgrade"):
        DataDir.open(folder, format_number=3, steps={1: rewrite})
    assert current(folder) == before


@pytest.mark.parametrize("error", [ValueError("odd"), OSError(errno.ENOSPC, "full")])
def test_a_step_that_fails_leaves_everything_as_it_was(folder, error):
    def fail(path):
        rewrite(path)
        raise error

    before = old_folder(folder)
    with pytest.raises(DataDirError):
        DataDir.open(folder, format_number=2, steps={1: fail})
    assert current(folder) == before
    DataDir.open(folder).close()


def test_an_upgrade_that_is_interrupted_anywhere_is_repeated_from_the_copy(folder, monkeypatch):
    """Each call that changes the disk is, in turn, the last one that is made."""

    class Killed(BaseException):
        """Nothing catches it, as nothing catches a kill."""

    calls = 0
    limit = None

    def counted(original):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if limit is not None and calls > limit:
                raise Killed
            return original(*args, **kwargs)

        return call

    for name in ("write_bytes", "unlink", "mkdir", "replace", "symlink_to"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))
    monkeypatch.setattr(data_dir_upgrade.shutil, "copy2", counted(data_dir_upgrade.shutil.copy2))
    monkeypatch.setattr(data_dir_upgrade.shutil, "rmtree", counted(data_dir_upgrade.shutil.rmtree))

    def attempt(path: Path, stop_after: int | None) -> bool:
        nonlocal calls, limit
        calls, limit = 0, stop_after
        try:
            DataDir.open(path, format_number=2, steps={1: rewrite}).close()
        except Killed:
            return False
        finally:
            limit = None
        return True

    point = 0
    while True:
        path = folder.with_name(f"data-{point}")
        before = old_folder(path)
        whole = attempt(path, point)
        if not whole:
            attempt(path, point // 2)  # the second start is interrupted as well, elsewhere
            assert attempt(path, None)
        assert path.joinpath("storage", "data").read_bytes() == b"new"
        assert path.joinpath("added").read_bytes() == b"added"
        assert not path.joinpath(data_dir_upgrade.MARKER).exists()
        kept = [snapshot(copy) for copy in path.glob("backup-format-1*")]
        assert before in kept
        if whole:
            break
        point += 1
    assert point > 10  # so many places there are


def test_an_earlier_copy_is_never_taken_for_the_present_one(folder):
    old_folder(folder)
    DataDir.open(folder, format_number=2, steps={1: rewrite}).close()
    # Somebody puts the old format back, works on with it, and upgrades once more.
    folder.joinpath("nkv.json").write_text(json.dumps({"format": 1, "node_id": FIRST_ID}))

    def fail(path):
        path.joinpath("added").write_bytes(b"half")
        raise ValueError("odd")

    with pytest.raises(DataDirError):
        DataDir.open(folder, format_number=2, steps={1: fail})
    assert folder.joinpath("storage", "data").read_bytes() == b"new"
    assert folder.joinpath("added").read_bytes() == b"added"
    assert folder.joinpath("backup-format-1-2", "storage", "data").read_bytes() == b"new"


@pytest.mark.parametrize(
    "content", ["", "{}", '{"backup": "../elsewhere"}', '{"backup": "storage"}']
)
def test_a_marker_that_names_no_copy_changes_nothing(folder, content):
    before = old_folder(folder)
    folder.joinpath(data_dir_upgrade.MARKER).write_text(content)
    with pytest.raises(DataDamaged, match="interrupted upgrade"):
        DataDir.open(folder, format_number=2, steps={1: rewrite})
    folder.joinpath(data_dir_upgrade.MARKER).unlink()
    assert current(folder) == before


def test_an_upgrade_without_room_for_the_copy_is_refused(folder, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = old_folder(folder)
    monkeypatch.setattr(data_dir_upgrade.shutil, "copy2", full)
    with pytest.raises(DataDirError, match="disk is full"):
        DataDir.open(folder, format_number=2, steps={1: rewrite})
    assert current(folder) == before
    assert list(folder.glob("backup-format-*")) == []
