"""The command line as a whole: what it has, how it ends, what it prints with."""

import io
import os
import subprocess
import sys
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import click
import pytest

from nkv_core.cli import main
from nkv_core.cli import main as exported
from nkv_core.cli.main import MODULES, nkv
from nkv_core.cli.output import exit_code, print_fields, print_json, print_table, printable
from nkv_core.errors import (
    DataDirBusy,
    DeadlineExceeded,
    NotFound,
    OutcomeUnknown,
    PluginNotFound,
    SettingsError,
    Unreachable,
)


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "nkv_core", *arguments]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=60, **options
    )


@pytest.fixture
def command(monkeypatch):
    """Put a function in the place of a command."""

    def put(function):
        monkeypatch.setattr(type(nkv), "get_command", lambda *_: click.command()(function))

    return put


@contextmanager
def terminal():
    """Have standard output be a terminal; gives what comes to it."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    with pytest.MonkeyPatch.context() as patch:
        screen = Terminal()
        patch.setattr(sys, "stdout", screen)
        patch.setenv("TERM", "dumb")
        patch.setenv("COLUMNS", "120")
        yield screen


def test_every_command_is_where_the_table_says():
    for module in set(MODULES.values()):
        listed = {command.name for command in import_module(f"nkv_core.cli.{module}").commands}
        assert listed == {name for name, where in MODULES.items() if where == module}


def test_every_command_and_option_has_help():
    def walk(command):
        assert command.help, command.name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, (command.name, parameter.name)
        for below in getattr(command, "commands", {}).values():
            walk(below)

    for name in MODULES:
        walk(nkv.get_command(click.Context(nkv), name))


def test_the_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in MODULES:
        assert f"\n  {name} " in shown


def test_the_version_is_that_of_the_distribution(capsys):
    from importlib.metadata import version

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"nkv {version('nkv-core')}\n"


def test_the_module_is_the_command():
    assert exported is main
    done = run("--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "nkv")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["srve"],
        ["--nope"],
        ["serve", "extra"],
        ["serve", "--port", "x"],
        ["serve", "--port", "70000"],
        ["plugins"],
        ["plugins", "load"],
        ["token"],
    ],
)
def test_wrong_use_exits_with_2_and_says_so_on_standard_error(arguments, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Usage:" in err or (err.startswith("nkv: ") and "(usage)" in err and "--help" in err)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFound("x"), 1),
        (DataDirBusy("x"), 1),
        (SettingsError("x"), 2),
        (PluginNotFound("x"), 2),
        (Unreachable("x"), 3),
        (DeadlineExceeded("x"), 3),
        (OutcomeUnknown("x"), 3),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(error, code, command, capsys):
    def fail():
        raise error

    command(fail)
    assert main(["x"]) == code == exit_code(error)
    assert capsys.readouterr() == ("", f"nkv: x ({error.code})\n")


def test_an_error_cannot_steer_the_terminal(command, capsys):
    def fail():
        raise NotFound("a\x1b]0;owned\x07\nb")

    command(fail)
    main(["x"])
    assert capsys.readouterr().err == "nkv: a\\x1b]0;owned\\x07\\nb (not_found)\n"


def test_an_interrupted_command_exits_as_shells_have_it(command):
    def interrupt():
        raise KeyboardInterrupt

    command(interrupt)
    assert main(["x"]) == 130


def test_a_mistake_of_ours_is_not_hidden(command):
    def fail():
        raise ZeroDivisionError

    command(fail)
    with pytest.raises(ZeroDivisionError):
        main(["x"])


def test_a_file_that_cannot_be_used_is_named(command, capsys):
    command(lambda: Path("/nowhere/file").read_bytes())
    assert main(["x"]) == 1
    assert "/nowhere/file: No such file" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_an_error():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "nkv_core", "--help"],
            check=False,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    assert done.stderr == "nkv: Output: No space left on device. (io_error)\n"


def test_a_reader_that_has_seen_enough_is_no_trouble():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "nkv_core", "--help"],
        check=False,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_no_command_pays_for_the_libraries_of_another():
    program = (
        "import sys, click\nfrom nkv_core.cli.main import nkv\n"
        "nkv.get_command(click.Context(nkv), 'serve')\n"
        "print([name for name in ('httpx2', 'rich', 'starlette', 'hypercorn', 'diskcache')"
        " if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "[]\n"


# --- printing -------------------------------------------------------------------------------------


def test_printable_leaves_text_and_shows_control_characters():
    assert printable("grün 日本 a b") == "grün 日本 a b"
    assert printable("a\tb\r\n\x1b[31m\u202e") == "a\\tb\\r\\n\\x1b[31m\\u202e"


def test_a_table_for_programs_is_tabs_without_a_headline(capsys):
    print_table(("name", "state"), [("a", "active"), ("b\tb", "x\ny")])
    assert capsys.readouterr().out == "a\tactive\nb\\tb\tx\\ny\n"


def test_a_table_for_people_has_a_headline_and_shows_markup_as_it_is():
    with terminal() as screen:
        print_table(("name", "state"), [("[bold]a", "active"), ("b", "\x1b[2J")])
    lines = screen.getvalue().splitlines()
    assert [line.split() for line in lines] == [
        ["name", "state"],
        ["[bold]a", "active"],
        ["b", "\\x1b[2J"],
    ]


def test_fields_are_flat(capsys):
    print_fields({"a": 1, "b": {"c": "text", "d": {"e": None}}, "f": ["x", "y"], "g": [1, {}]})
    assert capsys.readouterr().out == ("a\t1\nb.c\ttext\nb.d.e\tnull\nf\tx, y\ng\t[1,{}]\n")


def test_json_is_one_line_for_programs_and_indented_for_people(capsys):
    with terminal() as screen:
        print_json({"a": [1]})
    assert screen.getvalue() == '{\n  "a": [\n    1\n  ]\n}\n'
    print_json({"a": [1]})
    assert capsys.readouterr().out == '{"a":[1]}\n'
