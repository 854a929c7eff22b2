"""Commands that ask a running node over its admin socket: which node, and how it is asked."""

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import click

from nkv_core.cli.serve import config_file
from nkv_core.config import load_settings
from nkv_core.data_dir import ADMIN_SOCKET

#: Seconds: a plugin's set-up and the draining of what it replaces have deadlines of their own.
_TIMEOUT: Final = 120.0

P = ParamSpec("P")
Command = TypeVar("Command", bound=Callable[..., Any])


def data_dir_option(envvar: str | None = None) -> Callable[[Command], Command]:
    """The option that names the data directory of the node; of a group, with its variable."""
    return click.option(
        "--data-dir",
        metavar="DIR",
        envvar=envvar,
        show_envvar=True,
        help="Of the running node.  [./nkv-data]",
    )


def of_node(function: Callable[Concatenate[Path, P], None]) -> Callable[P, None]:
    """Give a command the path of a node's socket. The folder may be named behind the command too,
    where most would look for it.
    """

    @data_dir_option()
    @click.pass_context
    @functools.wraps(function)
    def command(ctx: click.Context, /, *args: P.args, **options: P.kwargs) -> None:
        folder = options.pop("data_dir") or ctx.obj
        if folder is None:
            folder = load_settings(config=config_file(), environ=os.environ).node.data_dir
        function(Path(str(folder)) / ADMIN_SOCKET, *args, **options)

    return command


def ask(path: Path, verb: str, params: Mapping[str, Any] | None = None) -> Any:
    """What the node answers to a verb. Raises its error."""
    from nkv_core.admin import call_admin  # noqa: PLC0415  # the help needs none of it

    return call_admin(path, verb, params, timeout=_TIMEOUT)
