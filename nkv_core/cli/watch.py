"""`nkv watch`: tells of changes as they happen."""

import shutil
from collections.abc import Callable
from typing import Any, Final

import click
import msgspec

from nkv_core.cli.data import connected, stdout
from nkv_core.cli.output import on_terminal, printable
from nkv_core.client import Changed, Client, Gap, SnapshotEnd, SnapshotStart, WatchItem
from nkv_core.errors import NkvError
from nkv_core.times import format_time, format_timestamp

_COLOURS: Final = {
    "put": "green",
    "touch": "cyan",
    "delete": "red",
    "expire": "yellow",
    "clear": "magenta",
}
#: Where the time of day is in a time such as 2026-01-31T12:00:00.250Z.
_TIME_OF_DAY: Final = slice(11, 23)
#: Columns in front of the key and value of a line.
_BEFORE: Final = 22
#: Bytes of a value that are looked at to show its beginning; characters have at most four.
_SHOWN: Final = 4 * 1000


@click.command()
@click.argument("pattern", default="*")
@click.option("--since", metavar="T", help="Go on behind this token.")
@click.option("--latest", is_flag=True, help="Values that have been replaced may be skipped.")
@click.option("--snapshot", is_flag=True, help="Tell the present records first.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines, on a terminal too.")
@connected
def watch(
    client: Client,
    *,
    pattern: str,
    since: str | None,
    latest: bool,
    snapshot: bool,
    as_json: bool,
) -> None:
    """Tell of each change to the keys that match PATTERN, all of them without one.

    It goes on over restarts of the node, until Ctrl-C. Then it prints, on standard error, the token
    with which --since goes on.
    """
    write = json_line if as_json or not on_terminal() else lambda item: person_line(item).encode()
    out = stdout()
    watching = client.watch(
        pattern,
        since=since,
        mode="latest" if latest else "every",
        snapshot=snapshot,
        on_link=link_teller(lambda text: click.echo(text, err=True)),
    )
    try:
        with watching:
            for item in watching:
                out.write(write(item) + b"\n")
                out.flush()
    finally:
        if watching.token is not None:
            click.echo(f"nkv: to go on: --since {watching.token}", err=True)


def link_teller(tell: Callable[[str], None]) -> Callable[[NkvError | None], None]:
    """Tells people that the connection is lost, and that it is back."""

    def on_link(error: NkvError | None) -> None:
        if error is None:
            tell("nkv: watching again")
        else:
            tell(f"nkv: {printable(error.detail)} Trying again. ({printable(error.code)})")

    return on_link


def person_line(item: WatchItem) -> str:
    """One line for people, in colours, cut at the width of the terminal."""
    match item:
        case Changed():
            time = format_timestamp(item.modified)[_TIME_OF_DAY]
            room = max(shutil.get_terminal_size().columns - _BEFORE, 8)
            text = item.key + ("*" if item.kind == "clear" else "")
            if item.value is not None:
                text += "  " + _text(item.value)
            kind = click.style(f"{item.kind:<7}", fg=_COLOURS[item.kind])
            return f"{click.style(time, dim=True)}  {kind} {_cut(printable(text), room)}"
        case Gap():
            follows = "; all records follow" if item.resync else ""
            return click.style(f"gap: some changes are lost{follows}", fg="red", bold=True)
        case SnapshotStart():
            return click.style("the records as they are:", dim=True)
        case SnapshotEnd():
            return click.style("changes from here on:", dim=True)


def json_line(item: WatchItem) -> bytes:
    """One JSON object: the name of the event, the token, and the fields of `/v1/watch`."""
    fields: dict[str, Any]
    match item:
        case Changed():
            fields = {"event": item.kind, "token": item.token, **_change_fields(item)}
        case Gap():
            fields = {
                "event": "gap",
                "token": item.token,
                "after": item.after,
                "upto": item.upto,
                "snapshot_follows": item.resync,
            }
        case SnapshotStart():
            fields = {"event": "snapshot-start", "token": None}
        case SnapshotEnd():
            fields = {"event": "snapshot-end", "token": item.token}
    return msgspec.json.encode(fields)


def _change_fields(change: Changed) -> dict[str, Any]:
    fields: dict[str, Any] = {"prefix" if change.kind == "clear" else "key": change.key}
    if change.value is not None:
        try:
            fields["value"] = change.value.decode()
        except UnicodeDecodeError:
            fields["value_base64"] = change.value
    versions = {"version": change.version, "previous": change.previous}
    fields.update({name: version for name, version in versions.items() if version is not None})
    fields["modified"] = format_timestamp(change.modified)
    if change.expires is not None:
        fields["expires"] = format_time(change.expires)
    if change.cause is not None:
        fields["cause"] = change.cause
    return fields


def _text(value: bytes) -> str:
    beginning = value[:_SHOWN]
    try:
        return beginning.decode()
    except UnicodeDecodeError as error:
        # A character may have been cut in two where the beginning ends.
        if len(value) > _SHOWN and error.start > _SHOWN - 4:
            return beginning[: error.start].decode()
        return f"<{len(value)} bytes>"


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 1] + "…"


commands: Final[list[click.Command]] = [watch]
