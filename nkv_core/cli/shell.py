"""`nkv shell`: the commands at a prompt, with history, completion and watches beside it."""

import contextlib
import os
import shlex
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import click

from nkv_core.cli.data import connected
from nkv_core.cli.main import MODULES, main
from nkv_core.cli.output import FAILED, INTERRUPTED, USAGE, complain, exit_code
from nkv_core.cli.watch import link_teller, person_line
from nkv_core.cli.watch import watch as watch_command
from nkv_core.client import Client, Watch
from nkv_core.errors import NkvError

PROMPT: Final = "nkv> "
#: Commands of `nkv` that the prompt takes as they are.
COMMANDS: Final = ("get", "put", "rm", "ls", "import", "export", "status")
#: Those that the prompt has itself.
OWN: Final = {
    "watch": "tell of changes beside the prompt: watch [PATTERN] [--latest] [--snapshot]",
    "unwatch": "end a watch, or all of them: unwatch [N]",
    "help": "tell what there is",
    "exit": "leave, as Ctrl-D does",
}
#: Commands whose arguments are keys or patterns.
_OF_KEYS: Final = frozenset({"get", "put", "rm", "ls", "export", "watch"})

_COMPLETIONS: Final = 100
_COMPLETION_DEADLINE: Final = 2.0
_HISTORY_LINES: Final = 1000
_MAX_WATCHES: Final = 16
_JOIN: Final = 5.0


@click.command()
@click.option(
    "--history",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Where lines are remembered.  [~/.local/state/nkv/history]",
)
@connected
def shell(client: Client, *, history: Path | None) -> int:
    """Take commands at a prompt: get, put, rm, ls, watch and others; `help` lists them.

    The tabulator completes commands, options and keys. Where standard input is no terminal, its
    lines are carried out one by one, and the exit code is that of the last.
    """
    timeout: float = click.get_current_context().params["timeout"]
    told = Shell(client, timeout)
    try:
        if not sys.stdin.isatty():
            return told.run_all(sys.stdin)
        with _line_editing(Completer(client), history or _default_history()) as editing:
            return told.interact(editing)
    finally:
        told.close()


class Shell:
    """Carries out lines."""

    def __init__(self, client: Client, timeout: float) -> None:
        """`timeout`: of each answer, in seconds."""
        self._client: Final = client
        self._timeout: Final = timeout
        self._screen: Final = Screen()
        self._watches: Final[dict[int, tuple[Watch, threading.Thread]]] = {}
        self._count = 0

    def interact(self, editing: ModuleType | None) -> int:
        """Ask for lines until the end; returns the exit code."""
        while True:
            try:
                with self._screen.prompting(editing):
                    line = input(PROMPT)
            except EOFError:
                click.echo()
                return 0
            except KeyboardInterrupt:
                click.echo()
                continue
            if self.run(line) < 0:
                return 0

    def run_all(self, lines: Iterator[str] | Any) -> int:
        """Carry out lines; returns the exit code of the last."""
        code = 0
        for line in lines:
            done = self.run(line)
            if done < 0:
                break
            code = done
        return code

    def run(self, line: str) -> int:
        """Carry out one line; returns its exit code, or a negative number for the end."""
        try:
            words = shlex.split(line)
        except ValueError as error:
            complain(f"The line cannot be read: {error}.", "usage")
            return USAGE
        if not words:
            return 0
        name, *arguments = words
        own: dict[str, Callable[[list[str]], int]] = {
            "watch": self._watch,
            "unwatch": self._unwatch,
            "help": self._help,
            "exit": lambda _: -1,
            "quit": lambda _: -1,
        }
        try:
            if name in own:
                return own[name](arguments)
            return self._command(name, arguments)
        except KeyboardInterrupt:
            click.echo(err=True)
            return INTERRUPTED

    def close(self) -> None:
        """End all watches."""
        for number in list(self._watches):
            self._end_watch(number)

    def _command(self, name: str, arguments: list[str]) -> int:
        if name not in COMMANDS:
            complain(f"There is no command {name!r} here; `help` lists them.", "usage")
            return USAGE
        if "-" in arguments:
            complain("Standard input is taken for the lines of the shell itself.", "usage")
            return USAGE
        node = ["--url", self._client.url, "--timeout", str(self._timeout)]
        return main([name, *node, *arguments])

    def _help(self, _: list[str]) -> int:
        for name, text in OWN.items():
            click.echo(f"{name:<8}  {text}")
        for name in COMMANDS:
            found = _command_of(name)
            click.echo(f"{name:<8}  {'' if found is None else found.get_short_help_str(80)}")
        click.echo("COMMAND --help tells what a command takes.")
        return 0

    # --- watches ----------------------------------------------------------------------------------

    def _watch(self, arguments: list[str]) -> int:
        if len(self._watches) >= _MAX_WATCHES:
            complain(f"There are {_MAX_WATCHES} watches already; end one with `unwatch`.", "usage")
            return USAGE
        try:
            asked = watch_command.make_context("watch", arguments).params
        except click.UsageError as error:
            complain(error.format_message(), "usage")
            return USAGE
        except click.exceptions.Exit:  # it was asked for help
            return 0
        self._count = number = self._count + 1
        watch = self._client.watch(
            asked["pattern"],
            since=asked["since"],
            mode="latest" if asked["latest"] else "every",
            snapshot=asked["snapshot"],
            on_link=link_teller(lambda text: self._screen.show(f"[{number}] {text}")),
        )
        try:
            watch.__enter__()
        except NkvError as error:
            complain(error.detail, error.code)
            return exit_code(error)
        thread = threading.Thread(target=self._follow, args=(number, watch), daemon=True)
        self._watches[number] = watch, thread
        click.echo(f"[{number}] watching {asked['pattern']}")
        thread.start()
        return 0

    def _follow(self, number: int, watch: Watch) -> None:
        """Show what a watch tells, in a thread of its own."""
        try:
            for item in watch:
                self._screen.show(f"[{number}] {person_line(item)}")
        except NkvError as error:
            self._screen.show(f"[{number}] nkv: the watch is over: {error.detail} ({error.code})")

    def _unwatch(self, arguments: list[str]) -> int:
        numbers = list(self._watches)
        if arguments:
            numbers = [number for number in numbers if str(number) in arguments]
        for number in numbers:
            watch = self._end_watch(number)
            click.echo(f"[{number}] over" + (f"; --since {watch.token}" if watch.token else ""))
        if not numbers:
            complain("There is no such watch.", "not_found")
            return FAILED
        return 0

    def _end_watch(self, number: int) -> Watch:
        watch, thread = self._watches.pop(number)
        watch.close()
        thread.join(_JOIN)
        return watch


class Screen:
    """Shows what comes from the background above the prompt, with what is being typed kept."""

    def __init__(self) -> None:
        self._lock: Final = threading.Lock()
        self._editing: ModuleType | None = None

    @contextlib.contextmanager
    def prompting(self, editing: ModuleType | None) -> Iterator[None]:
        """While within, a line is being typed."""
        with self._lock:
            self._editing = editing
        try:
            yield
        finally:
            with self._lock:
                self._editing = None

    def show(self, line: str) -> None:
        """Show a line, from any thread."""
        with self._lock:
            if self._editing is None:
                click.echo(line)
                return
            typed = self._editing.get_line_buffer()
            sys.stdout.write(f"\r\x1b[K{line}\n{PROMPT}{typed}")
            sys.stdout.flush()


class Completer:
    """What the tabulator offers: commands, their options, and keys that the node has."""

    def __init__(self, client: Client) -> None:
        self._client: Final = client
        self._offered: list[str] = []

    def offers(self, before: str, text: str) -> list[str]:
        """What `text` may become; `before` is the line in front of it."""
        words = before.split()
        if not words:
            return [name for name in sorted([*OWN, *COMMANDS]) if name.startswith(text)]
        if text.startswith("-"):
            return [option for option in _options_of(words[0]) if option.startswith(text)]
        if words[0] not in _OF_KEYS or (words[0] == "put" and len(words) > 1):
            return []
        return self._keys(text)

    def _keys(self, text: str) -> list[str]:
        """Keys that begin with the text: in the order of keys they come right behind it."""
        found: list[str] = []
        try:
            if text and self._client.get(text, timeout=_COMPLETION_DEADLINE) is not None:
                found.append(text)
            pattern = text[: text.rfind(".") + 1] + "*"
            behind = self._client.scan(pattern, after=text or None, timeout=_COMPLETION_DEADLINE)
            for item in islice(behind, _COMPLETIONS):
                if not item.key.startswith(text):
                    break
                found.append(item.key)
        except NkvError:
            return found  # whoever types is not to be disturbed: the command will say what is wrong
        return [shlex.quote(key) for key in found]

    def complete(self, editing: ModuleType, text: str, state: int) -> str | None:
        """As the line editor asks for it: the offer of this number, None behind the last."""
        if state == 0:
            before = editing.get_line_buffer()[: editing.get_begidx()]
            self._offered = self.offers(before, text)
        if state >= len(self._offered):
            return None
        offer = self._offered[state]
        return offer + " " if len(self._offered) == 1 else offer


def _command_of(name: str) -> click.Command | None:
    if name == "watch":
        return watch_command
    if name not in COMMANDS:
        return None
    commands: list[click.Command] = import_module(f"nkv_core.cli.{MODULES[name]}").commands
    return next((command for command in commands if command.name == name), None)


def _options_of(name: str) -> list[str]:
    command = _command_of(name)
    found = (
        []
        if command is None
        else [one for one in command.params if one.param_type_name == "option"]
    )
    return sorted(word for option in found for word in option.opts if word not in _OF_THE_NODE)


#: Options that the shell gives to every command itself.
_OF_THE_NODE: Final = frozenset({"--url", "--timeout"})


# --- line editing ---------------------------------------------------------------------------------


def _default_history() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "nkv" / "history"


@contextlib.contextmanager
def _line_editing(completer: Completer, history: Path) -> Iterator[ModuleType | None]:
    """Set up readline, where Python has it, and remember the lines for the next time."""
    try:
        import readline  # noqa: PLC0415  # not every Python has it
    except ImportError:
        yield None
        return
    readline.set_completer_delims(" \t")
    readline.set_completer(lambda text, state: completer.complete(readline, text, state))
    readline.parse_and_bind("tab: complete")
    readline.set_history_length(_HISTORY_LINES)
    remembers = _make_private(history)
    if remembers:
        with contextlib.suppress(OSError):
            readline.read_history_file(history)
    try:
        yield readline
    finally:
        readline.set_completer(None)
        if remembers:
            with contextlib.suppress(OSError):
                readline.write_history_file(history)


def _make_private(history: Path) -> bool:
    """Make the file, for its owner alone: values may stand in it. Says whether it can be used."""
    try:
        history.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(history, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    except OSError as error:
        complain(f"{history}: {error.strerror}; nothing will be remembered.", "io_error")
        return False
    return True


commands: Final[list[click.Command]] = [shell]
