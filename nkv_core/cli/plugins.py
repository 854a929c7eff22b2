"""`nkv plugins`: asks a running node, over its admin socket, to change its plugins."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from nkv_core.cli.admin import as_json, ask, data_dir_option, of_node, values
from nkv_core.cli.authoring import check, new
from nkv_core.cli.output import print_json, print_table
from nkv_core.specs import absolute_spec

_COLUMNS: Final = ("name", "state", "generation", "kinds", "source", "remarks")


@click.group()
@data_dir_option("NKV_DATA_DIR")
@click.pass_context
def plugins(ctx: click.Context, data_dir: str | None) -> None:
    """See, load, replace and unload plugins of a running node."""
    ctx.obj = data_dir


_settings = click.option(
    "--set",
    "assignments",
    metavar="KEY=VALUE",
    multiple=True,
    help="Give one of the plugin's settings a value, on top of the node's.",
)
_sha256 = click.option(
    "--sha256", metavar="HEX", help="Only if this is the SHA-256 of its source; else nothing runs."
)
_if_generation = click.option(
    "--if-generation", metavar="N", type=int, help="Only if this generation of it is loaded."
)


@plugins.command("list")
@as_json
@of_node
def list_(path: Path, as_json: bool) -> None:
    """List the plugins that are loaded."""
    found = ask(path, "plugins.list")
    if as_json:
        print_json(found)
    else:
        print_table(_COLUMNS, [_row(info) for info in found])


@plugins.command()
@click.argument("spec")
@_settings
@_sha256
@as_json
@of_node
def load(
    path: Path, spec: str, assignments: tuple[str, ...], sha256: str | None, as_json: bool
) -> None:
    """Load a plugin.

    SPEC is an entry point's name, a module, or a path to a file or a package's folder.
    """
    params = {"spec": absolute_spec(spec), "settings": values(assignments), "sha256": sha256}
    _tell(ask(path, "plugins.load", params), as_json)


@plugins.command()
@click.argument("name")
@click.argument("spec")
@_settings
@_sha256
@_if_generation
@as_json
@of_node
def replace(  # noqa: PLR0917  # click gives them by name
    path: Path,
    name: str,
    spec: str,
    assignments: tuple[str, ...],
    sha256: str | None,
    if_generation: int | None,
    as_json: bool,
) -> None:
    """Replace the plugin NAME with a new generation of it, from SPEC.

    Requests under way finish with the old one. If the new one fails, the old one serves on.
    """
    params = {
        "name": name,
        "spec": absolute_spec(spec),
        "settings": values(assignments),
        "sha256": sha256,
        "if_generation": if_generation,
    }
    _tell(ask(path, "plugins.replace", params), as_json)


@plugins.command()
@click.argument("name")
@_if_generation
@of_node
def unload(path: Path, name: str, if_generation: int | None) -> None:
    """Unload the plugin NAME. Requests under way finish first, within a deadline."""
    ask(path, "plugins.unload", {"name": name, "if_generation": if_generation})


plugins.add_command(new)
plugins.add_command(check)

commands: Final[list[click.Command]] = [plugins]


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
