"""`nkv reload`: has a running node read its settings again."""

from pathlib import Path
from typing import Final

import click

from nkv_core.cli.admin import as_json, ask, of_node
from nkv_core.cli.output import print_json

#: What is told of each part of a plan: done, and of one that would be.
_TOLD: Final = {
    "load": ("loaded", "would load"),
    "replace": ("replaced", "would replace"),
    "unload": ("unloaded", "would unload"),
    "settings": ("in force", "would be in force"),
    "restart": ("needs a new start", "would need a new start"),
}


@click.command()
@click.option("--dry-run", is_flag=True, help="Tell what would be done, and do nothing.")
@as_json
@of_node
def reload(path: Path, dry_run: bool, as_json: bool) -> None:
    """Have a running node read its settings again.

    Plugins whose settings have changed are replaced, new ones loaded, others unloaded. Where
    anything of it fails, nothing is changed.
    """
    made = ask(path, "reload", {"dry_run": dry_run})
    if as_json:
        print_json(made)
        return
    for part, words in _TOLD.items():
        for name in made[part]:
            click.echo(f"{words[dry_run]}: {name}")
    if not any(made.values()):
        click.echo("nothing has changed")


commands: Final[list[click.Command]] = [reload]
