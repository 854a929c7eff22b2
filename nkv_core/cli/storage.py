"""`nkv storage`: asks a running node to exchange its storage while it serves."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from nkv_core.cli.admin import as_json, ask, data_dir_option, of_node, values
from nkv_core.cli.output import FAILED, complain, print_fields, print_json

_INTERVAL: Final = 0.25  # seconds between looks
_UNDER_WAY: Final = ("opening", "copying", "verifying", "switching")


@click.group()
@data_dir_option("NKV_DATA_DIR")
@click.pass_context
def storage(ctx: click.Context, data_dir: str | None) -> None:
    """See and exchange the storage of a running node."""
    ctx.obj = data_dir


@storage.command()
@click.argument("name")
@click.option(
    "--set",
    "assignments",
    metavar="KEY=VALUE",
    multiple=True,
    help="Give one of the storage's settings a value, on top of the node's.",
)
@click.option(
    "--allow-volatile", is_flag=True, help="Even if it keeps nothing beyond the node's end."
)
@click.option(
    "--bake",
    type=click.FloatRange(min=0),
    metavar="S",
    help="Seconds in which it can be rolled back.  [60]",
)
@as_json
@of_node
def migrate(
    path: Path,
    *,
    name: str,
    assignments: tuple[str, ...],
    allow_volatile: bool,
    bake: float | None,
    as_json: bool,
) -> None:
    """Move all data to the storage NAME, while the node serves, and put it in charge.

    Versions, expiries and watch tokens stay valid. If it fails, the storage of before serves on.
    Interrupting this command does not interrupt the migration: nkv storage rollback does.
    """
    params = {
        "name": name,
        "settings": values(assignments),
        "allow_volatile": allow_volatile,
        "bake": bake,
    }
    found = ask(path, "storage.migrate", params)
    identity = found["migration"]["id"]
    last = ""
    while found["migration"]["phase"] in _UNDER_WAY and found["migration"]["id"] == identity:
        last = _show(found["migration"], last)
        time.sleep(_INTERVAL)
        found = ask(path, "storage.status")
    _end_show()
    if as_json:
        print_json(found)
    _conclude(found["migration"], identity, quiet=as_json)


@storage.command()
@as_json
@of_node
def status(path: Path, as_json: bool) -> None:
    """Show which storage is in charge, and how far a migration is."""
    _print(ask(path, "storage.status"), as_json)


@storage.command()
@as_json
@of_node
def rollback(path: Path, as_json: bool) -> None:
    """Go back to the storage of before, with all that was written since.

    A migration that has not switched yet is called off.
    """
    _print(ask(path, "storage.rollback"), as_json)


@storage.command()
@as_json
@of_node
def commit(path: Path, as_json: bool) -> None:
    """End the time in which a migration can be rolled back."""
    _print(ask(path, "storage.commit"), as_json)


commands: Final[list[click.Command]] = [storage]


def _print(found: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        print_fields({name: value for name, value in found.items() if value is not None})


def _conclude(migration: Mapping[str, Any], identity: str, *, quiet: bool) -> None:
    """Say what became of it; where it failed, the command fails too."""
    phase, error = migration["phase"], migration["error"]
    if migration["id"] != identity or phase in ("failed", "rolled_back"):
        if error is None:
            error = {"detail": "The migration was called off.", "code": "migration_failed"}
        complain(error["detail"], error["code"])
        sys.exit(FAILED)
    if quiet:
        return
    click.echo(f"{migration['to']} is in charge: {migration['copied']} records copied")
    if phase == "baking":
        click.echo(
            f"nkv: for {migration['baking_for']:g} s: nkv storage rollback, or commit", err=True
        )


def _show(migration: Mapping[str, Any], last: str) -> str:
    """Tell how far it is: in one line for people, one line for each phase otherwise."""
    phase = migration["phase"]
    done = {"copying": migration["copied"], "verifying": migration["compared"]}.get(phase)
    if sys.stderr.isatty():
        part = "" if done is None else f" {done:,} of {migration['records']:,} records"
        click.echo(f"\r\x1b[K{phase}{part}", err=True, nl=False)
    elif phase != last:
        click.echo(phase, err=True)
    return str(phase)


def _end_show() -> None:
    if sys.stderr.isatty():
        click.echo("\r\x1b[K", err=True, nl=False)
