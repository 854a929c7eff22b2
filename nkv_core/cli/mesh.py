"""`nkv mesh`: asks a running node, over its admin socket, about the mesh that it is in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from nkv_core.cli.admin import ask, data_dir_option, of_node
from nkv_core.cli.output import print_json, print_table

_COLUMNS: Final = ("name", "address", "state", "kind", "lag", "behind", "detail")


@click.group(invoke_without_command=True)
@data_dir_option("NKV_DATA_DIR")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def mesh(ctx: click.Context, data_dir: str | None, as_json: bool) -> None:
    """See the mesh of a running node: its members and how far each has come."""
    ctx.obj = data_dir
    if ctx.invoked_subcommand is None:
        ctx.invoke(_show, as_json=as_json, data_dir=None)


@click.command()
@of_node
def _show(path: Path, as_json: bool) -> None:
    found = ask(path, "mesh.status")
    if as_json:
        print_json(found)
        return
    print_table(_COLUMNS, [_row(member) for member in found["members"]])
    for one in found.get("catching_up", ()):
        click.echo(f"catching up from {one['from']}: {one['why']}", err=True)


@mesh.command()
@of_node
def leave(path: Path) -> None:
    """Leave for good: hand over what other nodes lack, and forget them."""
    ask(path, "mesh.leave")


commands: Final[list[click.Command]] = [mesh]


def _row(member: Mapping[str, Any]) -> tuple[str, ...]:
    """A member as a row; what is not known is empty."""
    return tuple("" if member.get(name) is None else str(member[name]) for name in _COLUMNS)
