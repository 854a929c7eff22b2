"""`nkv token`: makes tokens for the file that `auth.tokens` names."""

import os
import tomllib
from pathlib import Path
from typing import Final

import click

from nkv_core.cli.serve import config_file
from nkv_core.config import load_settings
from nkv_core.errors import SettingsError


@click.group()
def token() -> None:
    """Make the tokens that clients show."""


@token.command()
@click.argument("name")
@click.option("--read", "reads", metavar="PREFIX", multiple=True, help="May read these keys.")
@click.option("--write", "writes", metavar="PREFIX", multiple=True, help="May write these keys.")
@click.option("--file", metavar="FILE", help="The file of tokens; that of auth.tokens by default.")
def new(name: str, reads: tuple[str, ...], writes: tuple[str, ...], file: str | None) -> None:
    """Make a token for NAME and print it, once: the file holds its hash alone.

    A right is for all keys that begin with PREFIX; an empty one ('') is that of all keys.
    """
    from nkv_core.auth import new_token  # noqa: PLC0415  # the help needs none of it
    from nkv_core.contracts.identity import Right  # noqa: PLC0415

    if not (reads or writes):
        raise click.UsageError("A token without rights opens nothing: give --read or --write.")
    rights = tuple(
        Right(prefix, read=prefix in reads, write=prefix in writes)
        for prefix in dict.fromkeys((*reads, *writes))
    )
    path = Path(file) if file else _configured()
    secret, line = new_token(name, rights)
    _append(path, name, line)
    click.echo(
        f"nkv: added to {path}, which a node reads when it starts. The token is shown this once:",
        err=True,
    )
    click.echo(secret)


commands: Final[list[click.Command]] = [token]


def _configured() -> Path:
    configured = load_settings(config=config_file(), environ=os.environ).auth.tokens
    if configured is None:
        raise SettingsError("No file of tokens is set: give --file, or set auth.tokens.")
    return Path(configured)


def _append(path: Path, name: str, line: str) -> None:
    """Add a line at the end; a file that is new is for this user alone.

    Raises `SettingsError` where the file could not be read with it.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "r+b", buffering=0) as file:
        before = file.read()
        try:
            names = tomllib.loads(before.decode())
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise SettingsError(f"The file of tokens {path} cannot be read: {error}.") from None
        if name in names:
            raise SettingsError(f"{path} has a token for {name!r} already: remove its line first.")
        end_line = b"\n" * (not before.endswith(b"\n") and bool(before))
        file.write(end_line + line.encode() + b"\n")
        os.fsync(handle)
