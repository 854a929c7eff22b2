"""`nkv get`, `put`, `rm` and `ls`: one record, or a list of them."""

import functools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final, TypeVar

import click
import msgspec

from nkv_core.client import Client, Item
from nkv_core.client.connection import DEFAULT_TIMEOUT, DEFAULT_URL
from nkv_core.errors import NotFound, ValueTooLarge
from nkv_core.times import format_time, format_timestamp

#: How much of standard input is taken for a value. What a value may have is for the node to say.
_MAX_STDIN: Final = 256 * 1024 * 1024

T = TypeVar("T")


# --- what all commands that talk to a node share --------------------------------------------------


def connected(function: Callable[..., T]) -> Callable[..., T]:
    """Give a command the options that name a node, and its function a client as first argument."""

    @click.option(
        "--url",
        envvar="NKV_URL",
        default=DEFAULT_URL,
        show_default=True,
        show_envvar=True,
        help="The node.",
    )
    @click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=DEFAULT_TIMEOUT,
        show_default=True,
        metavar="S",
        help="Seconds to wait for each answer.",
    )
    @functools.wraps(function)
    def command(*, url: str, timeout: float, **options: Any) -> T:
        with Client(url, token=_token(), timeout=timeout) as client:
            return function(client, **options)

    return command


def _token() -> str | None:
    return os.environ.get("NKV_TOKEN") or None


def stdin() -> BinaryIO:
    """Standard input, as bytes."""
    return sys.stdin.buffer


def stdout() -> BinaryIO:
    """Standard output, as bytes."""
    return sys.stdout.buffer


# --- commands -------------------------------------------------------------------------------------


@click.command()
@click.argument("key")
@click.option("-v", "--verbose", is_flag=True, help="Tell version and times on standard error.")
@connected
def get(client: Client, *, key: str, verbose: bool) -> None:
    """Write the value of KEY to standard output, byte for byte.

    On a terminal a line end is added.
    """
    item = client.get(key)
    if item is None:
        raise NotFound(f"There is no {key!r}.")
    if verbose:
        for name, text in _facts(item):
            click.echo(f"{name}: {text}", err=True)
    out = stdout()
    out.write(item.value)
    if out.isatty() and not item.value.endswith(b"\n"):
        out.write(b"\n")
    out.flush()


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("key")
@click.argument("value")
@click.option(
    "--ttl",
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="Seconds after which it expires.",
)
@click.option("--if-version", metavar="V", help="Only if the record has this version.")
@click.option("--if-absent", is_flag=True, help="Only if there is no record yet.")
@connected
def put(
    client: Client,
    *,
    key: str,
    value: str,
    ttl: float | None,
    if_version: str | None,
    if_absent: bool,
) -> None:
    """Set KEY to VALUE; a VALUE of `-` is read from standard input, byte for byte."""
    if if_version is not None and if_absent:
        raise click.UsageError("--if-version and --if-absent exclude each other.")
    data = _all_of_stdin() if value == "-" else os.fsencode(value)
    client.put(key, data, ttl=ttl, if_version=if_version, if_absent=if_absent)


@click.command()
@click.argument("key")
@click.option("--if-version", metavar="V", help="Only if the record has this version.")
@connected
def rm(client: Client, *, key: str, if_version: str | None) -> None:
    """Delete KEY."""
    if not client.delete(key, if_version=if_version):
        raise NotFound(f"There is no {key!r}.")


@click.command()
@click.argument("pattern", default="*")
@click.option("-l", "--long", "long", is_flag=True, help="With size, version and times.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each record.")
@connected
def ls(client: Client, *, pattern: str, long: bool, as_json: bool) -> None:
    """List the keys that match PATTERN, in order; all of them without one.

    `a.b` is that key, `a.*` everything below `a`, `*` in the middle one level.
    """
    out = stdout()
    write = _json_line if as_json else _long_line if long else _key_line
    for item in client.scan(pattern):
        out.write(write(item))
    out.flush()


def _all_of_stdin() -> bytes:
    data = stdin().read(_MAX_STDIN + 1)
    if len(data) > _MAX_STDIN:
        raise ValueTooLarge(f"Standard input has more than {_MAX_STDIN} bytes.")
    return data


def _facts(item: Item) -> Iterator[tuple[str, str]]:
    yield "version", item.version
    yield "modified", format_timestamp(item.modified)
    if item.expires is not None:
        yield "expires", format_time(item.expires)


def _key_line(item: Item) -> bytes:
    return item.key.encode() + b"\n"


def _long_line(item: Item) -> bytes:
    expires = "-" if item.expires is None else format_time(item.expires)
    modified = format_timestamp(item.modified)
    fields = (f"{len(item.value):>9}", item.version, f"{modified:<26}", f"{expires:<24}", item.key)
    return "  ".join(fields).encode() + b"\n"


def _json_line(item: Item) -> bytes:
    fields: dict[str, Any] = {"key": item.key, "bytes": len(item.value), **dict(_facts(item))}
    return msgspec.json.encode(fields) + b"\n"


commands: Final[list[click.Command]] = [get, put, rm, ls]
