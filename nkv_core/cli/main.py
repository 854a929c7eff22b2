"""The commands of `nkv`, each imported when it is asked for, and how their errors end."""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

import click

from nkv_core.cli.output import FAILED, INTERRUPTED, USAGE, complain, exit_code, mute
from nkv_core.errors import NkvError

#: Where each command is, in the order of the help: a list `commands` in a module beside this one.
MODULES: Final[dict[str, str]] = {
    "serve": "serve",
    "get": "data",
    "put": "data",
    "rm": "data",
    "ls": "data",
    "watch": "watch",
    "import": "transfer",
    "export": "transfer",
    "backup": "backup",
    "restore": "backup",
    "status": "status",
    "shell": "shell",
    "plugins": "plugins",
    "storage": "storage",
    "reload": "reload",
    "mesh": "mesh",
    "token": "token",
    "bench": "bench",
}


class _Commands(click.Group):
    """Imports the module of a command on its first use, so that no command pays for another."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in MODULES:
            return None
        module = import_module(f"nkv_core.cli.{MODULES[cmd_name]}")
        commands: list[click.Command] = module.commands
        return next((command for command in commands if command.name == cmd_name), None)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="nkv-core", prog_name="nkv", message="%(prog)s %(version)s")
def nkv() -> None:
    """A key-value node that tells its clients when a value changes.

    Exit codes: 0 done, 1 not found or refused, 2 wrong use, 3 no node answers.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, that of the process by default; returns the exit code."""
    try:
        result = nkv.main(args=arguments, prog_name="nkv", standalone_mode=False)
        sys.stdout.flush()
    except NkvError as error:
        complain(error.detail, error.code)
        return exit_code(error)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return USAGE
    except click.UsageError as error:
        complain(error.format_message(), "usage")
        if error.ctx is not None:
            click.echo(f"Try '{error.ctx.command_path} --help'.", err=True)
        return USAGE
    except click.ClickException as error:
        complain(error.format_message(), "refused")
        return FAILED
    except click.Abort:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has seen enough, as `head` does
        mute()
        return FAILED
    except OSError as error:
        complain(f"{error.filename or 'Output'}: {error.strerror}.", "io_error")
        mute()
        return FAILED
    return result if isinstance(result, int) else 0
