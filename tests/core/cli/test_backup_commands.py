"""`nkv backup` and `nkv restore`, with a keyspace behind a real admin socket."""

import importlib
from functools import partial

import anyio
import pytest
from anyio.from_thread import start_blocking_portal

from nkv_core.admin import call_admin, serve_admin, verbs
from nkv_core.cli import main
from nkv_core.config import load_settings
from nkv_core.contracts.settings import KeyspaceSettings
from nkv_core.data_dir import ADMIN_SOCKET, DataDir, new_data_dir
from nkv_core.errors import BadRequest, DataDirError
from nkv_core.keyspace import LocalKeyspace
from nkv_core.keyspace.backup import answer_backup
from nkv_core.restore import restore_node

pytest.importorskip("diskcache")


async def opened(folder, node_id):
    plugin = importlib.import_module("nkv_storage_diskcache")
    settings = plugin.nkv_settings()(directory=str(folder))
    keyspace = LocalKeyspace(
        plugin.nkv_storage("diskcache", settings), KeyspaceSettings(), node_id=node_id
    )
    await keyspace.open()
    return keyspace


class Running:
    """A data directory, and a keyspace in it with an admin socket that can make backups."""

    def __init__(self, path, portal):
        self.data = DataDir.open(path)
        self.portal = portal
        folder = path / "nkv_storage_diskcache"
        self.keyspace = portal.call(opened, folder, self.data.node_id)

    async def serve(self, *, task_status):
        async def backup(call):
            return await answer_backup(
                self.keyspace, call.params, call.progress, node_id=self.data.node_id
            )

        await serve_admin(
            self.data.admin_socket, verbs({"backup": backup}), task_status=task_status
        )


@pytest.fixture
def running(tmp_path):
    with start_blocking_portal() as portal:
        node = Running(tmp_path / "data", portal)
        serving, _ = portal.start_task(node.serve)
        yield node
        serving.cancel()
        portal.call(node.keyspace.aclose)
        node.data.close()


@pytest.fixture
def nkv(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NKV_DATA_DIR", raising=False)

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def read_data_dir():
    """All records in a data directory."""

    async def records(path):
        with DataDir.open(path) as data:
            keyspace = await opened(path / "nkv_storage_diskcache", data.node_id)
            try:
                found = (await keyspace.scan()).records
                return data.node_id, keyspace.history, {one.key: one.value for one in found}
            finally:
                await keyspace.aclose()

    return lambda path: anyio.run(records, path)


def test_a_backup_of_a_running_node_becomes_a_node_of_its_own(
    nkv, running, tmp_path, read_data_dir
):
    for number in range(600):
        running.portal.call(running.keyspace.put, f"k{number:03}", b"%d" % number)
    code, out, err = nkv("backup", "all.nkv", "--data-dir", "data")
    assert (code, err) == (0, "")
    assert out.startswith("600 records, ")
    assert out.endswith(f", up to {running.keyspace.token}\n")

    code, out, err = nkv("restore", "all.nkv", "--data-dir", "copy")
    assert (code, out) == (0, f"600 records, up to {running.keyspace.token}\n")
    assert err == "nkv: serve it with: nkv serve --data-dir copy\n"
    node_id, history, records = read_data_dir(tmp_path / "copy")
    assert records == {f"k{number:03}": b"%d" % number for number in range(600)}
    assert node_id != running.data.node_id
    assert history != running.keyspace.history
    assert sorted(entry.name for entry in (tmp_path / "copy").iterdir()) == [
        "nkv.json",
        "nkv.lock",
        "nkv_storage_diskcache",
    ]


def test_a_file_that_exists_needs_force(nkv, running, tmp_path):
    (tmp_path / "all.nkv").write_text("precious")
    code, _, err = nkv("backup", "all.nkv", "--data-dir", "data")
    assert code == 1
    assert "--force" in err
    assert (tmp_path / "all.nkv").read_text() == "precious"
    assert nkv("backup", "all.nkv", "--data-dir", "data", "--force")[0] == 0


def test_without_a_node_there_is_no_backup(nkv, tmp_path):
    code, _, err = nkv("backup", "all.nkv", "--data-dir", "nowhere")
    assert code == 3
    assert "(unreachable)" in err
    assert not (tmp_path / "all.nkv").exists()


@pytest.mark.parametrize(
    "params",
    [{}, {"file": 1}, {"file": "/x", "force": "yes"}, {"file": "x"}, {"file": "/x", "a": 1}],
)
def test_a_malformed_request_is_refused(running, params):
    with pytest.raises(BadRequest):
        call_admin(running.data.path / ADMIN_SOCKET, "backup", params)


# --- restoring ------------------------------------------------------------------------------------


@pytest.fixture
def backup_file(nkv, running, tmp_path):
    running.portal.call(running.keyspace.put, "a", b"1")
    assert nkv("backup", "all.nkv", "--data-dir", "data")[0] == 0
    return tmp_path / "all.nkv"


def test_a_data_directory_that_is_used_is_not_touched(nkv, backup_file, running):
    code, _, err = nkv("restore", backup_file, "--data-dir", "data")
    assert code == 1
    assert "move this one away" in err
    assert running.portal.call(running.keyspace.get, "a").value == b"1"


def test_a_folder_of_somebody_else_is_not_touched(nkv, backup_file, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "precious").write_text("1")
    assert nkv("restore", backup_file, "--data-dir", "folder")[0] == 1
    assert [entry.name for entry in folder.iterdir()] == ["precious"]


def test_an_empty_folder_is_taken(nkv, backup_file, tmp_path, read_data_dir):
    (tmp_path / "folder").mkdir()
    assert nkv("restore", backup_file, "--data-dir", "folder")[0] == 0
    assert read_data_dir(tmp_path / "folder")[2] == {"a": b"1"}


@pytest.mark.parametrize("content", [b"", b"nonsense\n", None])
def test_a_damaged_backup_makes_nothing(nkv, backup_file, tmp_path, content):
    whole = backup_file.read_bytes()
    backup_file.write_bytes(whole[:-10] if content is None else content)
    code, _, err = nkv("restore", backup_file, "--data-dir", "copy")
    assert code == 1
    assert "(data_damaged)" in err
    assert not (tmp_path / "copy").exists()


def test_a_backup_that_is_not_there_is_told(nkv):
    code, _, err = nkv("restore", "never.nkv", "--data-dir", "copy")
    assert code == 1
    assert "never.nkv" in err


def test_a_record_beyond_the_limits_leaves_an_empty_folder(nkv, running, tmp_path):
    running.portal.call(running.keyspace.put, "a", b"x" * 1000)
    assert nkv("backup", "all.nkv", "--data-dir", "data")[0] == 0
    arguments = ("restore", "all.nkv", "--data-dir", "copy")
    code, _, err = nkv(*arguments, "--set", "keyspace.max_value_bytes=10")
    assert code == 1
    assert "(value_too_large)" in err
    assert [entry.name for entry in (tmp_path / "copy").iterdir()] == ["nkv.lock"]
    assert nkv(*arguments)[0] == 0


def test_a_storage_that_keeps_nothing_or_is_elsewhere_is_refused(nkv, backup_file, tmp_path):
    arguments = ("restore", backup_file, "--data-dir", "copy")
    code, _, err = nkv(*arguments, "--storage", "memory")
    assert code == 2
    assert "keeps nothing" in err
    code, _, err = nkv(*arguments, "--set", f"storage.diskcache.directory={tmp_path / 'other'}")
    assert code == 2
    assert "storage.diskcache.directory" in err
    code, _, err = nkv(*arguments, "--storage", "nonsense")
    assert code == 2
    assert "nonsense" in err
    assert not (tmp_path / "other").exists()


def test_a_restore_that_was_interrupted_is_no_data_directory(backup_file, tmp_path, read_data_dir):
    copy = tmp_path / "copy"
    settings = load_settings(flags={"node.data_dir": str(copy)})

    # What a kill leaves is what is there before anything is tidied up.
    before = {}

    async def look(_):
        before.update({entry.name: entry.is_dir() for entry in copy.iterdir()})
        with pytest.raises(DataDirError):
            DataDir.open(copy)

    with backup_file.open("rb") as file:
        anyio.run(partial(restore_node, settings, file, look))
    assert before == {"nkv.lock": False, "nkv.restoring": False, "nkv_storage_diskcache": True}
    assert read_data_dir(copy)[2] == {"a": b"1"}

    other = tmp_path / "other"
    (other / "nkv_storage_diskcache").mkdir(parents=True)
    (other / "nkv_storage_diskcache" / "half").write_text("1")
    (other / "nkv.restoring").touch()
    with pytest.raises(DataDirError):
        DataDir.open(other)
    settings = load_settings(flags={"node.data_dir": str(other)})
    with backup_file.open("rb") as file:
        anyio.run(partial(restore_node, settings, file))
    assert read_data_dir(other)[2] == {"a": b"1"}
    assert not (other / "nkv.restoring").exists()


@pytest.mark.anyio
async def test_a_restore_that_is_cancelled_leaves_an_empty_folder(backup_file, tmp_path):
    settings = load_settings(flags={"node.data_dir": str(tmp_path / "copy")})
    with anyio.CancelScope() as scope:

        async def cancel(_):
            scope.cancel()
            await anyio.sleep_forever()

        with backup_file.open("rb") as file:
            await restore_node(settings, file, cancel)
    assert [entry.name for entry in (tmp_path / "copy").iterdir()] == ["nkv.lock"]


def test_two_restores_do_not_share_a_folder(tmp_path):
    with new_data_dir(tmp_path / "copy"):
        with pytest.raises(DataDirError):
            DataDir.open(tmp_path / "copy")
        with pytest.raises(DataDirError), new_data_dir(tmp_path / "copy"):
            pass
    DataDir.open(tmp_path / "copy").close()
