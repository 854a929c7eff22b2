"""`nkv plugins new`: for those who write plugins. It asks no node."""

from pathlib import Path

import click

from nkv_core.scaffold import KINDS, write


@click.command()
@click.argument("kind", metavar="KIND", type=click.Choice(KINDS))
@click.argument("name")
@click.option(
    "--into",
    metavar="DIR",
    default=".",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder to make it in.  [.]",
)
def new(kind: str, name: str, into: Path) -> None:
    """Write a distribution with a plugin that works, for you to go on from.

    It has a project file, the plugin, its tests with the contract suite, tox.ini and README.md.
    """
    (known,) = (one for one in KINDS if one == kind)
    folder = write(known, name, into)
    click.echo(
        f"{folder} has a plugin that works. To try it:\n\n"
        f"    cd {folder}\n    pip install -e '.[test]'\n    pytest"
    )
