"""`nkv plugins`: what is asked of the node, and what is shown of its answer."""

import json
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest

from nkv_core.admin import Changes, plugin_verbs, serve_admin, verbs
from nkv_core.cli import main
from nkv_core.errors import PluginInUse, PluginNotFound
from nkv_core.plugin_host import PluginInfo
from nkv_core.plugin_host.audit import Audit

INFO = PluginInfo(
    name="hello",
    spec="/somewhere/hello.py",
    state="active",
    generation=1,
    sha256="0123456789abcdef" * 4,
    kinds=("handlers", "listeners"),
    section="plugin.hello",
    loaded_at=1_700_000_000_000,
)


class Host:
    """Answers as a plugin host does, and remembers what it was asked."""

    def __init__(self):
        self.asked = []
        self.infos = [INFO]

    def plugins(self):
        return self.infos

    async def load(self, spec, settings=None, *, sha256=None, attempt):
        self.asked.append(("load", spec, settings, *filter(None, [sha256])))
        attempt.generation = 1
        if spec == "nothing":
            raise PluginNotFound("There is no plugin nothing.")
        return INFO

    async def replace(
        self, name, spec=None, settings=None, *, sha256=None, if_generation=None, attempt
    ):
        given = filter(None, [sha256, if_generation])
        self.asked.append(("replace", name, spec, settings, *given))
        return PluginInfo(
            **{**{f: getattr(INFO, f) for f in INFO.__struct_fields__}, "generation": 2}
        )

    async def unload(self, name, *, if_generation=None, attempt):
        self.asked.append(("unload", name, *filter(None, [if_generation])))
        if name == "nkv_storage_diskcache":
            raise PluginInUse("nkv_storage_diskcache holds the data.")


@pytest.fixture
def node(tmp_path, monkeypatch):
    """A node's admin socket in a thread; the current folder is empty and the environment bare."""
    monkeypatch.chdir(tmp_path)
    for name in ("NKV_DATA_DIR", "HOSTNAME", "PORT"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "data"
    folder.mkdir()
    host, ready, stopping = Host(), threading.Event(), threading.Event()

    async def serve():
        async with anyio.create_task_group() as tasks:
            changes = Changes(Audit(folder), 5)
            table = verbs(plugin_verbs(host, changes))
            await tasks.start(serve_admin, folder / "admin.sock", table)
            ready.set()
            await anyio.to_thread.run_sync(stopping.wait)
            tasks.cancel_scope.cancel()

    thread = threading.Thread(target=partial(anyio.run, serve))
    thread.start()
    assert ready.wait(20)
    yield SimpleNamespace(folder=folder, host=host)
    stopping.set()
    thread.join(20)


def test_the_list_is_tabs_for_programs(node, capsys):
    node.host.infos = [
        INFO,
        PluginInfo(
            **{
                **{field: getattr(INFO, field) for field in INFO.__struct_fields__},
                "name": "old",
                "state": "leaked",
                "error": "it\nfailed",
                "quarantined": ("RequestStart: old.slow",),
                "held_by": ("a thread",),
                "in_use": "it holds the data",
            }
        ),
    ]
    assert main(["plugins", "list", "--data-dir", str(node.folder)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "hello\tactive\t1\thandlers, listeners\t0123456789ab\t",
        "old\tleaked\t1\thandlers, listeners\t0123456789ab\t"
        "it\\nfailed; it holds the data; quarantined: RequestStart: old.slow; held by a thread",
    ]


def test_the_list_as_json_has_everything(node, capsys):
    assert main(["plugins", "list", "--json", "--data-dir", str(node.folder)]) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert set(shown) == set(INFO.__struct_fields__)
    assert shown["loaded_at"] == INFO.loaded_at


@pytest.mark.parametrize("how", ["group", "variable", "long variable", "file", "default"])
def test_the_node_is_found_in_every_way(node, how, monkeypatch, capsys):
    arguments = ["plugins", "list"]
    if how == "group":
        arguments = ["plugins", "--data-dir", str(node.folder), "list"]
    elif how == "variable":
        monkeypatch.setenv("NKV_DATA_DIR", str(node.folder))
    elif how == "long variable":
        monkeypatch.setenv("NKV_NODE__DATA_DIR", str(node.folder))
    elif how == "file":
        Path("nkv.toml").write_text(f'[node]\ndata_dir = "{node.folder}"\n')
    else:
        Path("nkv-data").symlink_to(node.folder)
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("hello\t")


def test_the_option_beats_the_variable(node, monkeypatch, capsys):
    monkeypatch.setenv("NKV_DATA_DIR", "/nowhere")
    assert main(["plugins", "--data-dir", str(node.folder), "list"]) == 0
    assert main(["plugins", "list", "--data-dir", str(node.folder)]) == 0


def test_a_path_is_made_absolute_before_it_is_sent(node, capsys, tmp_path):
    arguments = ["--data-dir", str(node.folder)]
    assert main(["plugins", "load", "./hello.py", *arguments]) == 0
    assert main(["plugins", "load", "nkv_transport_http", *arguments]) == 0
    assert main(["plugins", "replace", "hello", "hello.py", *arguments]) == 0
    assert node.host.asked == [
        ("load", str(tmp_path / "hello.py"), None),
        ("load", "nkv_transport_http", None),
        ("replace", "hello", str(tmp_path / "hello.py"), None),
    ]
    assert capsys.readouterr().out.splitlines() == [
        "hello is active, generation 1",
        "hello is active, generation 1",
        "hello is active, generation 2",
    ]


def test_settings_go_along(node):
    assert (
        main(
            [
                "plugins",
                "load",
                "hello",
                "--set",
                "greeting=hi there",
                "--set",
                'names=["a", "b"]',
                "--set",
                "deep.er=1",
                "--data-dir",
                str(node.folder),
            ]
        )
        == 0
    )
    assert node.host.asked == [
        ("load", "hello", {"greeting": "hi there", "names": ["a", "b"], "deep": {"er": "1"}})
    ]


def test_the_answer_as_json(node, capsys):
    assert main(["plugins", "load", "hello", "--json", "--data-dir", str(node.folder)]) == 0
    assert json.loads(capsys.readouterr().out)["sha256"] == INFO.sha256


def test_unloading_says_nothing(node, capsys):
    assert main(["plugins", "unload", "hello", "--data-dir", str(node.folder)]) == 0
    assert capsys.readouterr() == ("", "")
    assert node.host.asked == [("unload", "hello")]


def test_refusals_end_with_their_codes(node, capsys):
    arguments = ["--data-dir", str(node.folder)]
    assert main(["plugins", "load", "nothing", *arguments]) == 2
    assert main(["plugins", "unload", "nkv_storage_diskcache", *arguments]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "nkv: There is no plugin nothing. (plugin_not_found)",
        "nkv: nkv_storage_diskcache holds the data. (plugin_in_use)",
    ]


def test_without_a_node_the_socket_is_named(tmp_path, capsys):
    assert main(["plugins", "list", "--data-dir", str(tmp_path)]) == 3
    assert str(tmp_path / "admin.sock") in capsys.readouterr().err


def test_an_unusable_settings_file_is_no_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NKV_DATA_DIR", raising=False)
    Path("nkv.toml").write_text("[node\n")
    assert main(["plugins", "list"]) == 2
    assert "nkv.toml" in capsys.readouterr().err


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("verb", "params"),
    [
        ("plugins.load", {}),
        ("plugins.load", {"spec": 5}),
        ("plugins.load", {"spec": "x", "settings": []}),
        ("plugins.load", {"spec": "x", "other": 1}),
        ("plugins.replace", {"spec": "x"}),
        ("plugins.unload", {}),
    ],
)
async def test_a_malformed_call_changes_nothing(verb, params):
    from nkv_core.admin import Call
    from nkv_core.errors import BadRequest

    host = Host()
    with pytest.raises(BadRequest, match=verb):
        await plugin_verbs(host, Changes(None, 1))[verb](Call(verb, params, None, None))
    assert host.asked == []
