"""`nkv status`: what a node says about itself."""

from typing import Final

import click

from nkv_core.cli.data import connected
from nkv_core.cli.output import print_fields, print_json
from nkv_core.client import Client


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@connected
def status(client: Client, as_json: bool) -> None:
    """Show how the node is: its name, keyspace, plugins, and what waits."""
    found = client.status()
    if as_json:
        print_json(found)
    else:
        print_fields(found)


commands: Final[list[click.Command]] = [status]
