"""`nkv shell`: lines, completion, and a terminal of its own."""

import os
import pty
import queue
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nkv_core.cli.main import main
from nkv_core.cli.shell import Completer, Screen, Shell
from nkv_core.client import Client

DEADLINE = 30


@pytest.fixture
def client(node_url):
    with Client(node_url) as made:
        yield made


@pytest.fixture
def shell(client):
    made = Shell(client, 10)
    yield made
    made.close()


class Shown(Screen):
    """Keeps what was shown for the test to wait for."""

    def __init__(self):
        super().__init__()
        self.lines = queue.Queue()

    def show(self, line):
        self.lines.put(line)


def test_lines_are_commands_with_their_options(shell, client, capfd):
    assert shell.run("put a.b 'two words' --ttl 60") == 0
    assert client.get("a.b").value == b"two words"
    assert shell.run("get a.b") == 0
    assert shell.run("ls a.*") == 0
    out = capfd.readouterr().out
    assert "two words" in out
    assert "a.b" in out
    assert shell.run("get missing") == 1
    assert shell.run("rm a.b") == shell.run("") == 0
    assert client.get("a.b") is None


@pytest.mark.parametrize(
    "line", ["serve", "shell", "nothing", "get 'open", "get", "put a -", "watch --nothing"]
)
def test_what_is_no_line_for_it_is_wrong_use_and_no_end(shell, capfd, line):
    assert shell.run(line) == 2
    assert capfd.readouterr().err.startswith("nkv: ")


def test_help_tells_every_command(shell, capfd):
    assert shell.run("help") == 0
    out = capfd.readouterr().out
    for name in ("get", "put", "watch", "unwatch", "exit"):
        assert re.search(rf"^{name} +\S", out, re.MULTILINE)
    assert shell.run("watch --help") == shell.run("get --help") == 0


def test_a_watch_tells_of_changes_beside_the_prompt(shell, client, capfd, monkeypatch):
    shown = Shown()
    monkeypatch.setattr(shell, "_screen", shown)
    assert shell.run("watch a.*") == 0
    assert shell.run("watch b --snapshot") == 0
    client.put("a.b", b"hello")
    while "hello" not in (line := shown.lines.get(timeout=DEADLINE)):
        assert line.startswith("[2] ")
    assert line.startswith("[1] ")
    assert shell.run("unwatch 2") == 0
    assert shell.run("unwatch 2") == 1
    assert shell.run("unwatch") == 0
    assert "[1] over; --since 1." in capfd.readouterr().out
    assert shell.run("watch a --since rubbish") == 1
    assert not shell._watches


def test_there_is_a_bound_on_watches(shell):
    assert [shell.run("watch") for _ in range(17)] == [0] * 16 + [2]


def test_the_tabulator_offers_commands_options_and_keys(client):
    for key in ("a.b", "a.c", "a.c.d", "ab", "with space", "b"):
        client.put(key, b"")
    offers = Completer(client).offers
    assert offers("", "un") == ["unwatch"]
    assert "get" in offers("", "")
    assert offers("put k v ", "--t") == ["--ttl"]
    assert "--url" not in offers("get ", "-")
    assert offers("get ", "a.") == ["a.b", "a.c", "a.c.d"]
    assert offers("rm ", "a.c") == ["a.c", "a.c.d"]
    assert offers("ls ", "") == ["a.b", "a.c", "a.c.d", "ab", "b", "'with space'"]
    assert offers("put ", "b") == ["b"]
    assert offers("put b ", "a") == offers("status ", "a") == offers("get ", "zz") == []


def test_a_node_that_is_gone_does_not_disturb_whoever_types(closed_url, capfd):
    with Client(closed_url) as client:
        assert Completer(client).offers("get ", "a") == []
    assert capfd.readouterr() == ("", "")


def test_what_is_shown_keeps_what_is_being_typed(capfd):
    class Editing:
        @staticmethod
        def get_line_buffer():
            return "get a"

    screen = Screen()
    screen.show("one")
    with screen.prompting(Editing):
        screen.show("two")
    assert capfd.readouterr().out == "one\n\r\x1b[Ktwo\nnkv> get a"


def test_lines_of_a_file_are_carried_out_and_the_last_one_gives_the_code(
    node_url, client, monkeypatch, tmp_path, capfd
):
    monkeypatch.setenv("NKV_URL", node_url)
    script = tmp_path / "script"
    for text, code in (("put a 1\nget a\n", 0), ("put a 2\nget no\n", 1), ("exit\nput a 3\n", 0)):
        script.write_text(text)
        with script.open() as lines:
            monkeypatch.setattr(sys, "stdin", lines)
            assert main(["shell"]) == code
    assert client.get("a").value == b"2"
    assert "nkv> " not in capfd.readouterr().out


class Terminal:
    """`nkv shell` on a terminal of its own."""

    def __init__(self, url, history):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nkv_core", "shell", "--url", url, "--history", str(history)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        )
        os.close(slave)
        self.said = ""

    def type(self, text):
        os.write(self.master, text.encode())

    def wait_for(self, text):
        """Read until the text comes; returns what came up to it."""
        end = time.monotonic() + DEADLINE
        while text not in self.said:
            ready, _, _ = select.select([self.master], [], [], max(end - time.monotonic(), 0))
            assert ready, f"{text!r} did not come: {self.said!r}"
            self.said += os.read(self.master, 4096).decode(errors="replace")
        before, _, self.said = self.said.partition(text)
        return before

    def interrupt(self):
        """SIGINT, as Ctrl-C sends it, once the shell waits for a key.

        One that comes just before Python's readline begins to wait is not heeded until a key is
        pressed: Python's own gap, which a person does not hit.
        """
        state = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/stat")
        end = time.monotonic() + DEADLINE
        while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "S":
            assert time.monotonic() < end, "it never waits"
            time.sleep(0.01)
        self.process.send_signal(signal.SIGINT)

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(DEADLINE)
        os.close(self.master)


@pytest.fixture
def terminal(node_url, tmp_path):
    opened = []

    def start():
        opened.append(Terminal(node_url, tmp_path / "state" / "history"))
        opened[-1].wait_for("nkv> ")
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_a_person_types_completes_watches_and_comes_back(terminal, client, tmp_path):
    client.put("service.a", b"1")
    first = terminal()
    first.type("get serv\t\n")
    first.wait_for("service.a")
    first.wait_for("1\r\n")
    first.wait_for("nkv> ")
    first.type("watch service.*\n")
    first.wait_for("[1] watching service.*")
    first.wait_for("nkv> ")
    first.type("put half")
    first.wait_for("put half")
    client.put("service.b", b"told")
    first.wait_for("told")
    first.wait_for("nkv> put half")
    first.interrupt()  # gives up the line
    first.wait_for("nkv> ")
    first.type("\x04")
    assert first.process.wait(DEADLINE) == 0
    history = tmp_path / "state" / "history"
    assert history.stat().st_mode & 0o077 == 0
    assert "watch service.*" in history.read_text()
    second = terminal()
    second.type("\x1b[A\x1b[A\n")  # the line before the last
    second.wait_for("1\r\n")
