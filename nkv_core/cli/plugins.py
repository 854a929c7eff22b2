"""`nkv plugins`: asks a running node, over its admin socket, to change its plugins."""

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import click

from nkv_core.cli.output import print_json, print_table
from nkv_core.cli.serve import config_file
from nkv_core.config import load_settings, nested, parse_assignment
from nkv_core.data_dir import ADMIN_SOCKET

#: Seconds: a plugin's set-up and the draining of what it replaces have deadlines of their own.
_TIMEOUT: Final = 120.0

P = ParamSpec("P")
Command = TypeVar("Command", bound=Callable[..., Any])

_COLUMNS: Final = ("name", "state", "generation", "kinds", "source", "remarks")


def _data_dir(envvar: str | None = None) -> Callable[[Command], Command]:
    return click.option(
        "--data-dir",
        metavar="DIR",
        envvar=envvar,
        show_envvar=True,
        help="Of the running node.  [./nkv-data]",
    )


@click.group()
@_data_dir("NKV_DATA_DIR")
@click.pass_context
def plugins(ctx: click.Context, data_dir: str | None) -> None:
    """See, load, replace and unload plugins of a running node."""
    ctx.obj = data_dir


def _of_node(function: Callable[Concatenate[Path, P], None]) -> Callable[P, None]:
    """Give a command the path of a node's socket. The folder may be named behind the command too,
    where most would look for it.
    """

    @_data_dir()
    @click.pass_context
    @functools.wraps(function)
    def command(ctx: click.Context, /, *args: P.args, **options: P.kwargs) -> None:
        folder = options.pop("data_dir") or ctx.obj
        if folder is None:
            folder = load_settings(config=config_file(), environ=os.environ).node.data_dir
        function(Path(str(folder)) / ADMIN_SOCKET, *args, **options)

    return command


_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_settings = click.option(
    "--set",
    "assignments",
    metavar="KEY=VALUE",
    multiple=True,
    help="Give one of the plugin's settings a value, on top of the node's.",
)


@plugins.command("list")
@_as_json
@_of_node
def list_(path: Path, as_json: bool) -> None:
    """List the plugins that are loaded."""
    found = _ask(path, "plugins.list")
    if as_json:
        print_json(found)
    else:
        print_table(_COLUMNS, [_row(info) for info in found])


@plugins.command()
@click.argument("spec")
@_settings
@_as_json
@_of_node
def load(path: Path, spec: str, assignments: tuple[str, ...], as_json: bool) -> None:
    """Load a plugin.

    SPEC is an entry point's name, a module, or a path to a file or a package's folder.
    """
    params = {"spec": absolute(spec), "settings": _values(assignments)}
    _tell(_ask(path, "plugins.load", params), as_json)


@plugins.command()
@click.argument("name")
@click.argument("spec")
@_settings
@_as_json
@_of_node
def replace(path: Path, name: str, spec: str, assignments: tuple[str, ...], as_json: bool) -> None:
    """Replace the plugin NAME with a new generation of it, from SPEC.

    Requests under way finish with the old one. If the new one fails, the old one serves on.
    """
    params = {"name": name, "spec": absolute(spec), "settings": _values(assignments)}
    _tell(_ask(path, "plugins.replace", params), as_json)


@plugins.command()
@click.argument("name")
@_of_node
def unload(path: Path, name: str) -> None:
    """Unload the plugin NAME. Requests under way finish first, within a deadline."""
    _ask(path, "plugins.unload", {"name": name})


commands: Final[list[click.Command]] = [plugins]


def absolute(spec: str) -> str:
    """A SPEC as the node is to have it: a path means the same there as here."""
    if os.sep in spec or spec.endswith(".py") or spec.startswith("~"):
        return str(Path(spec).expanduser().absolute())
    return spec


def _ask(path: Path, verb: str, params: Mapping[str, Any] | None = None) -> Any:
    from nkv_core.admin import call_admin  # noqa: PLC0415  # the help needs none of it

    return call_admin(path, verb, params, timeout=_TIMEOUT)


def _values(assignments: tuple[str, ...]) -> dict[str, Any] | None:
    return nested(dict(map(parse_assignment, assignments))) or None


def _tell(info: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(info)
    else:
        click.echo(f"{info['name']} is {info['state']}, generation {info['generation']}")


def _row(info: Mapping[str, Any]) -> tuple[str, ...]:
    remarks = [
        info.get("error") or "",
        info.get("in_use") or "",
        *(f"quarantined: {listener}" for listener in info.get("quarantined", ())),
        *(f"held by {holder}" for holder in info.get("held_by", ())),
    ]
    return (
        info["name"],
        info["state"],
        str(info["generation"]),
        ", ".join(info["kinds"]),
        info["sha256"][:12],
        "; ".join(filter(None, remarks)),
    )
