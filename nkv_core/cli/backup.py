"""`nkv backup` and `nkv restore`: all of a node, to a file and back."""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from nkv_core.cli.serve import config_file
from nkv_core.config import load_settings, parse_assignment
from nkv_core.data_dir import ADMIN_SOCKET

_file = click.argument("file", type=click.Path(path_type=Path))
_data_dir = click.option(
    "--data-dir", metavar="DIR", envvar="NKV_DATA_DIR", show_envvar=True, help="[./nkv-data]"
)
_config = click.option(
    "--config", metavar="FILE", help="Settings file; ./nkv.toml if there is one."
)


@click.command()
@_file
@_data_dir
@_config
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=24 * 3600.0,
    show_default="a day",
    metavar="S",
    help="How long the node may take.",
)
def backup(
    file: Path, data_dir: str | None, config: str | None, force: bool, timeout: float
) -> None:
    """Have the running node write all of its data to FILE, as it is at one moment.

    The node serves on meanwhile. It is the node that writes: FILE is for its user alone, and
    appears once it is whole.
    """
    from nkv_core.admin import call_admin  # noqa: PLC0415  # the help needs none of it

    settings = load_settings(
        config=config_file(config), environ=os.environ, flags=_flags(data_dir, None, ())
    )
    path = Path(settings.node.data_dir) / ADMIN_SOCKET
    params = {"file": os.path.abspath(file), "force": force}  # noqa: PTH100  # no link is followed
    done = call_admin(path, "backup", params, timeout, _show)
    _end_show()
    click.echo(f"{done['records']} records, {done['bytes']} bytes, up to {done['token']}")


@click.command()
@_file
@_data_dir
@_config
@click.option("--storage", metavar="NAME", help="The storage to be in charge.  [diskcache]")
@click.option(
    "--set",
    "assignments",
    metavar="SECTION.KEY=VALUE",
    multiple=True,
    help="Give any setting a value.",
)
def restore(
    file: Path,
    data_dir: str | None,
    config: str | None,
    storage: str | None,
    assignments: tuple[str, ...],
) -> None:
    """Make a new data directory with what the backup FILE has.

    The directory must not exist yet, or be empty. All of the backup goes in, or nothing. Versions
    and watch tokens of before are no longer valid: a history of its own begins.
    """
    import anyio  # noqa: PLC0415  # the help needs none of this

    from nkv_core.restore import restore_node  # noqa: PLC0415

    flags = _flags(data_dir, storage, assignments)
    settings = load_settings(config=config_file(config), environ=os.environ, flags=flags)

    async def show(records: int) -> None:
        _show(records)

    with file.open("rb") as opened:
        contents = anyio.run(
            partial(restore_node, settings, opened, show), backend=settings.node.backend
        )
    _end_show()
    click.echo(f"{contents.records} records, up to {contents.end.token}")
    click.echo(f"nkv: serve it with: nkv serve --data-dir {settings.node.data_dir}", err=True)


def _flags(
    data_dir: str | None, storage: str | None, assignments: tuple[str, ...]
) -> dict[str, Any]:
    flags: dict[str, Any] = dict(map(parse_assignment, assignments))
    given = {"node.data_dir": data_dir, "storage.name": storage}
    return flags | {name: value for name, value in given.items() if value is not None}


def _show(records: Any) -> None:
    """Tell a person how far it is."""
    if sys.stderr.isatty():
        click.echo(f"\r{records:,} records", err=True, nl=False)


def _end_show() -> None:
    if sys.stderr.isatty():
        click.echo("\r\x1b[K", err=True, nl=False)


commands: Final[list[click.Command]] = [backup, restore]
