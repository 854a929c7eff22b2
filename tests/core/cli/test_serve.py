"""`nkv serve` around a node: settings in, one line out, signals, and how a start fails."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import anyio
import pytest

from nkv_core.cli import main
from nkv_core.cli.log import JsonFormatter, TextFormatter
from nkv_core.errors import (
    AddressInUse,
    DataDamaged,
    DataDirBusy,
    NewerFormat,
    PluginNotFound,
    PluginSetupFailed,
    SettingsError,
    StorageFull,
)


@pytest.fixture(autouse=True)
def bare(tmp_path, monkeypatch):
    """An empty folder, an environment without settings, and logging as it was."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("NKV_") or name in ("PORT", "HOSTNAME", "MESH_NETWORK_URL"):
            monkeypatch.delenv(name)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in ("nkv", "nkv_core"):
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture
def node(monkeypatch):
    """Put a node in the place of the real one: it is started, and ends by itself or fails."""

    class Node:
        settings = None
        error = None
        backend = None
        addresses = ("http://127.0.0.1:8080",)

        def __init__(self, settings, *, reread=None):
            self.settings = Node.settings = settings
            Node.reread = reread

        async def run(self, started):
            Node.backend = anyio.sleep.__module__ and _backend()
            if Node.error is not None:
                raise Node.error
            started(self)

    module = ModuleType("nkv_core.node")
    module.Node = Node
    monkeypatch.setitem(sys.modules, "nkv_core.node", module)
    return Node


def _backend() -> str:
    import sniffio

    return sniffio.current_async_library()


# --- settings -------------------------------------------------------------------------------------


def test_once_it_serves_one_line_says_where(node, capsys):
    assert main(["serve"]) == 0
    assert capsys.readouterr().out == ("nkv: serving http://127.0.0.1:8080 (data in ./nkv-data)\n")


def test_several_addresses_are_all_said(node, capsys):
    node.addresses = ("http://127.0.0.1:1", "https://[::1]:2")
    assert main(["serve", "--data-dir", "elsewhere"]) == 0
    assert capsys.readouterr().out == (
        "nkv: serving http://127.0.0.1:1, https://[::1]:2 (data in elsewhere)\n"
    )


def test_every_option_is_a_setting(node):
    arguments = "serve --host ::1 --port 0 --data-dir d --storage memory --insecure"
    assert main([*arguments.split(), "--set", "node.name=x", "--set", "bus.budget=2"]) == 0
    settings = node.settings
    assert dict(settings.section("transport.http")) == {"host": "::1", "port": 0}
    assert (settings.node.data_dir, settings.node.insecure) == ("d", True)
    assert (settings.node.name, settings.bus.budget) == ("x", 2.0)
    assert settings.storage == "memory"


def test_without_options_nothing_is_set(node):
    from nkv_core.config import Settings

    assert main(["serve"]) == 0
    assert node.settings == Settings()


def test_flags_beat_the_environment_which_beats_the_file(node, monkeypatch):
    Path("nkv.toml").write_text(
        '[node]\nname = "file"\nstop_deadline = 1\n[transport.http]\nport = 1\n'
    )
    monkeypatch.setenv("NKV_NODE__NAME", "environment")
    monkeypatch.setenv("PORT", "2")
    assert main(["serve"]) == 0
    assert node.settings.node.name == "environment"
    assert node.settings.node.stop_deadline == 1.0
    assert node.settings.section("transport.http")["port"] == "2"
    assert main(["serve", "--port", "3", "--set", "node.name=flag"]) == 0
    assert node.settings.node.name == "flag"
    assert node.settings.section("transport.http")["port"] == 3


def test_an_option_of_its_own_beats_set(node):
    assert main(["serve", "--set", "storage.name=a", "--storage", "b"]) == 0
    assert node.settings.storage == "b"


def test_another_settings_file_is_taken_in_place_of_the_default(node):
    Path("nkv.toml").write_text("[node\n")
    Path("other.toml").write_text('[node]\nname = "other"\n')
    assert main(["serve", "--config", "other.toml"]) == 0
    assert node.settings.node.name == "other"


def test_plugins_come_on_top_of_those_of_the_file(node):
    Path("nkv.toml").write_text('[plugins]\nload = ["a"]\n')
    assert main(["serve", "--plugin", "./b.py", "--plugin", "c"]) == 0
    assert node.settings.plugins.load == ("a", "./b.py", "c")
    assert main(["serve", "--set", "plugins.load=", "--plugin", "c"]) == 0
    assert node.settings.plugins.load == ("c",)


def test_the_node_to_join_is_a_setting_of_the_mesh(node):
    assert main(["serve", "--join", "http://a:1", "--join", "http://b:2"]) == 0
    assert node.settings.section("mesh.full")["join"] == ["http://a:1", "http://b:2"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_backend_is_the_one_that_is_set(node, backend):
    assert main(["serve", "--set", f"node.backend={backend}"]) == 0
    assert node.backend == backend


def test_a_backend_that_is_not_installed_is_named(node, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["nkv_core.cli.serve"], "find_spec", lambda _: None)
    assert main(["serve", "--set", "node.backend=trio"]) == 2
    assert "nkv-core[trio]" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config", "none.toml"],
        ["--set", "node.nmae=x"],
        ["--set", "noed.name=x"],
        ["--set", "node.name"],
        ["--set", "node.backend=twisted"],
        ["--data-dir", ""],
        ["--storage", ""],
    ],
)
def test_wrong_settings_end_with_2_and_touch_nothing(node, arguments, capsys):
    assert main(["serve", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("nkv: ")
    assert err.endswith("(invalid_settings)\n")
    assert err.count("\n") == 1
    assert node.settings is None
    assert list(Path().iterdir()) == []


# --- a start that fails ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SettingsError("There is no setting transport.http.prot."), 2),
        (PluginNotFound("There is no plugin x."), 2),
        (AddressInUse("127.0.0.1:8080 is taken."), 1),
        (DataDirBusy("./nkv-data is in use by process 5."), 1),
        (NewerFormat("./nkv-data has format 9."), 1),
        (DataDamaged("nkv.json is damaged."), 1),
        (StorageFull("The disk is full."), 1),
        (PluginSetupFailed("hello: it raised."), 1),
    ],
)
@pytest.mark.parametrize("grouped", [False, True])
def test_a_start_that_fails_is_one_line_and_a_code(node, error, code, grouped, capsys):
    node.error = ExceptionGroup("a", [ExceptionGroup("b", [error])]) if grouped else error
    assert main(["serve"]) == code
    assert capsys.readouterr() == ("", f"nkv: {error.detail} ({error.code})\n")


def test_a_refusal_of_the_system_is_one_line(node, capsys):
    node.error = OSError(errno.ENOSPC, "No space left on device", "./nkv-data/x")
    assert main(["serve"]) == 1
    assert capsys.readouterr().err == (
        "nkv: ./nkv-data/x: No space left on device. (cannot_start)\n"
    )


@pytest.mark.parametrize(
    "error", [KeyError("x"), ExceptionGroup("a", [KeyError("x"), ValueError()])]
)
def test_a_mistake_of_ours_keeps_its_traceback(node, error):
    node.error = error
    with pytest.raises(type(error)):
        main(["serve"])


# --- signals --------------------------------------------------------------------------------------

PROGRAM = """
import signal, sys, time, anyio
from types import ModuleType

class Node:
    addresses = ("http://127.0.0.1:8080",)
    def __init__(self, settings, *, reread=None):
        self.settings = settings
    async def run(self, started):
        mode = self.settings.node.name
        try:
            started(self)
            if mode == "woken":
                fd = signal.set_wakeup_fd(-1)
                signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
                print("woken by signals" if fd != -1 else "deaf", flush=True)
            if mode == "blocked":
                time.sleep(60)
            if mode != "brief":
                await anyio.sleep(60)
        finally:
            with anyio.CancelScope(shield=True):
                print("stopping", flush=True)
                if mode == "slow":
                    await anyio.sleep(60)
                await anyio.sleep(0)
            print("stopped", flush=True)

module = ModuleType("nkv_core.node")
module.Node = Node
sys.modules["nkv_core.node"] = module
from nkv_core.cli import main
code = main(["serve", "--set", "node.name=" + sys.argv[1], "--set", "node.backend=" + sys.argv[2]])
print("exit", code, flush=True)
sys.exit(code)
"""


@pytest.fixture(params=["asyncio", "trio"])
def process(request):
    """A node in a process of its own that serves already."""
    started = []

    def start(mode):
        child = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, mode, request.param],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(child)
        assert child.stdout.readline().startswith("nkv: serving ")
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate(timeout=20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_node_in_order(process, number):
    child = process("quick")
    child.send_signal(number)
    out, err = child.communicate(timeout=20)
    assert out.splitlines() == ["stopping", "stopped", "exit 0"]
    assert (err, child.returncode) == ("", 0)


def test_a_signal_just_before_the_event_loop_waits_is_not_slept_through(process):
    child = process("woken")
    assert child.stdout.readline() == "woken by signals\n"
    child.send_signal(signal.SIGTERM)
    out, _ = child.communicate(timeout=20)
    assert out.splitlines() == ["stopping", "stopped", "exit 0"]


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(process, second):
    child = process("slow")
    child.send_signal(signal.SIGTERM)
    assert child.stdout.readline() == "stopping\n"
    child.send_signal(second)
    out, _ = child.communicate(timeout=20)
    assert (out, child.returncode) == ("", -second)


def test_a_second_signal_ends_a_node_whose_loop_is_blocked(process):
    child = process("blocked")
    child.send_signal(signal.SIGINT)
    # The first has been taken once the process has its usual reaction to signals again.
    status = Path(f"/proc/{child.pid}/status")
    with anyio_deadline():
        while _catches(status, signal.SIGINT):
            pass
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=20)
    assert child.returncode == -signal.SIGINT


def anyio_deadline():
    """Fail, in a plain function, where the block takes longer than 20 s."""
    from contextlib import contextmanager

    def late(*_):
        raise TimeoutError("waited for 20 s")

    @contextmanager
    def guard():
        before = signal.signal(signal.SIGALRM, late)
        signal.alarm(20)
        try:
            yield
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)

    return guard()


def _catches(status: Path, number: int) -> bool:
    caught = next(line for line in status.read_text().splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def test_a_reader_that_goes_does_not_stop_the_node():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "brief", "asyncio"],
        check=False,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=20,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


# --- the log --------------------------------------------------------------------------------------


def record(message: str = "hello %s", *arguments: object, error: bool = False) -> logging.LogRecord:
    info = None
    if error:
        try:
            raise ValueError("why")
        except ValueError:
            info = sys.exc_info()
    made = logging.LogRecord("nkv.x", logging.WARNING, "f.py", 1, message, arguments, info)
    made.created = 1_700_000_000.25
    return made


def test_a_line_of_the_log_is_one_line_whatever_it_is_about():
    formatted = TextFormatter().format(
        record("hello %s", "a\n2023-11-14T22:13:20.250Z info nkv: b")
    )
    assert formatted == (
        "2023-11-14T22:13:20.250Z warning nkv.x: hello a\\n2023-11-14T22:13:20.250Z info nkv: b"
    )


def test_a_traceback_follows_the_line():
    lines = TextFormatter().format(record("failed", error=True)).splitlines()
    assert lines[0].endswith("nkv.x: failed")
    assert lines[1].startswith("Traceback")
    assert lines[-1] == "ValueError: why"


def test_json_has_the_same_in_one_object():
    fields = json.loads(JsonFormatter().format(record("hello %s", "\ud800\n", error=True)))
    assert {name: fields[name] for name in ("time", "level", "logger", "message")} == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "logger": "nkv.x",
        "message": "hello ?\n",
    }
    assert fields["error"].endswith("ValueError: why")


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", ["nkv debug", "nkv info", "nkv warning", "library warning"]),
        ("info", ["nkv info", "nkv warning", "library warning"]),
        ("warning", ["nkv warning", "library warning"]),
        ("error", []),
    ],
)
def test_the_level_is_for_nkv_and_libraries_tell_warnings_alone(node, level, shown, capsys):
    assert main(["serve", "--set", f"log.level={level}", "--set", "log.format=json"]) == 0
    for logger, name in (
        (logging.getLogger("nkv.x"), "nkv"),
        (logging.getLogger("lib"), "library"),
    ):
        logger.debug("%s debug", name)
        logger.info("%s info", name)
        logger.warning("%s warning", name)
    told = [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()]
    assert told == shown
