"""What all commands print with: tables, JSON, complaints, exit codes."""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from io import UnsupportedOperation
from typing import Any, Final

import click
import msgspec

from nkv_core.errors import NkvError, PluginNotFound, SettingsError

FAILED: Final = 1  #: not found, or refused
USAGE: Final = 2  #: also an unknown storage, plugin or setting
UNREACHABLE: Final = 3
INTERRUPTED: Final = 130  #: by the user, as shells have it

#: No answer came: the node may be down, or too slow.
_NO_ANSWER: Final = frozenset({"unreachable", "outcome_unknown", "deadline_exceeded"})


def exit_code(error: NkvError) -> int:
    """What the program exits with for an error."""
    if isinstance(error, SettingsError | PluginNotFound):
        return USAGE
    return UNREACHABLE if error.code in _NO_ANSWER else FAILED


def complain(detail: str, code: str) -> None:
    """Say on standard error what is wrong, in one line."""
    click.echo(f"nkv: {printable(detail)} ({printable(code)})", err=True)


def printable(text: str) -> str:
    """The text without control characters: what a node sends must not steer a terminal."""
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in text
    )


def on_terminal() -> bool:
    """Whether a person reads standard output."""
    return sys.stdout.isatty()


def mute() -> None:
    """Let nothing more come to standard output, what is still to be flushed neither: nobody reads
    it, or it cannot be written.
    """
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    with suppress(UnsupportedOperation):  # not a file: nothing is flushed to anywhere
        os.dup2(null, sys.stdout.fileno())
    os.close(null)


def print_json(value: Any) -> None:
    """Print as JSON: indented for people, in one line otherwise."""
    encoded = msgspec.json.encode(value)
    if on_terminal():
        encoded = msgspec.json.format(encoded, indent=2)
    click.echo(encoded.decode())


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table with a headline for people; otherwise lines of cells between tabs, alone."""
    safe = [[printable(cell) for cell in row] for row in rows]
    if not on_terminal():
        for row in safe:
            click.echo("\t".join(row))
        return
    from rich.console import Console  # noqa: PLC0415  # for people only, and slow to import
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in safe:
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table)


def print_fields(fields: Mapping[str, Any]) -> None:
    """Print names and values in two columns; what is nested gets names with dots."""
    print_table(("", ""), [(name, _cell(value)) for name, value in _flat(fields)])


def _flat(fields: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return msgspec.json.encode(value).decode()
