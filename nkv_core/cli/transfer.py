"""`nkv import` and `nkv export`: many records, from a file and to one."""

import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

import click
import msgspec

from nkv_core.cli.data import connected, stdin, stdout
from nkv_core.cli.formats import (
    Entry,
    Lines,
    Parsed,
    Read,
    Skipped,
    csv_reader,
    format_of,
    read_json_lines,
    write_json_line,
)
from nkv_core.cli.output import FAILED, printable
from nkv_core.cli.sending import Batch, Sender, Sent
from nkv_core.client import Client
from nkv_core.errors import Forbidden, NkvError, SettingsError
from nkv_core.files import write_atomically
from nkv_core.records import wall_clock
from nkv_core.times import format_time

STDIN: Final = "-"
FORMATS: Final = ("jsonl", "csv", "tsv")
DEFAULT_MAX_LINE: Final = 16 * 1024 * 1024

_TOLD: Final = 10  #: skipped lines that are told one by one
_NOTE_INTERVAL: Final = 1.0  #: seconds between notes of progress


@click.command("import")
@click.argument("file")
@click.option(
    "--format",
    "format_name",
    type=click.Choice(FORMATS),
    help="What FILE is; by default its name tells, and standard input is jsonl.",
)
@click.option("--header", is_flag=True, help="The first row of a CSV or TSV has names: skip it.")
@click.option(
    "--from-line",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="Begin with this line, to go on where an import ended.",
)
@click.option(
    "--progress-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Keep in this file how far the import is; one that is there is gone on with.",
)
@click.option(
    "--skipped",
    "skipped_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write what was skipped, and why, to this file as JSON Lines.",
)
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="S",
    help="How long to go on trying where the node stops answering.",
)
@click.option(
    "--max-line",
    type=click.IntRange(min=1),
    default=DEFAULT_MAX_LINE,
    show_default=True,
    metavar="BYTES",
    help="A longer line is skipped.",
)
@connected
def import_(
    client: Client,
    *,
    file: str,
    format_name: str | None,
    header: bool,
    from_line: int,
    progress_file: Path | None,
    skipped_file: Path | None,
    wait: float,
    max_line: int,
) -> int:
    """Put the records of FILE, or of standard input where that is `-`.

    JSON Lines: {"key", "value" or "value_base64", "expires"?} on each line, expires as in
    2026-01-31T12:00:00.000Z. CSV and TSV: two columns, key and value. A line that is no record is
    skipped, told, and makes the exit code 1.
    """
    read = _reader(file, format_name, header=header, max_line=max_line)
    _check_answers(client)
    note = Note(progress_file, file)
    begin = max(from_line, note.line + 1)
    with ExitStack() as stack:
        source = stdin() if file == STDIN else stack.enter_context(Path(file).open("rb"))
        log = SkipLog(stack.enter_context(skipped_file.open("wb")) if skipped_file else None)
        meter = Meter(source, _size(source))
        stack.callback(meter.clear)
        lines = Lines(source, max_line)
        sender = stack.enter_context(Sender(client, wait))
        run = _Import(
            lines=lines,
            parsed=read(lines, begin),
            sender=sender,
            log=log,
            note=note,
            meter=meter,
            done=begin - 1,
        )
        try:
            run.all()
        except (NkvError, KeyboardInterrupt):
            sender.stop()
            meter.clear()
            log.tell_rest()
            note.write(run.done, run.imported, log.count, at_once=True)
            _tell_where(run, log)
            raise
    log.tell_rest()
    note.remove()
    click.echo(f"imported {run.imported} records, skipped {log.count}")
    return FAILED if log.count else 0


@click.command()
@click.argument("pattern", default="*")
@connected
def export(client: Client, *, pattern: str) -> None:
    """Write the records that match PATTERN, all without one, to standard output as JSON Lines.

    They come in key order, as `nkv import` reads them. Each record is one that was there at some
    moment; what is written meanwhile may be in or not. `nkv backup` gives one moment of all.
    """
    out = stdout()
    for item in client.scan(pattern):
        out.write(write_json_line(item))
    out.flush()


class _Import:
    """One run: what is read goes to the sender, what comes back is counted and noted."""

    def __init__(
        self,
        *,
        lines: Lines,
        parsed: Iterator[Parsed],
        sender: Sender,
        log: "SkipLog",
        note: "Note",
        meter: "Meter",
        done: int,
    ) -> None:
        self._lines: Final = lines
        self._parsed: Final = parsed
        self._sender: Final = sender
        self._log: Final = log
        self._note: Final = note
        self._meter: Final = meter
        self.imported = 0
        self.done = done  #: everything up to this line is dealt with

    def all(self) -> None:
        """Import everything. Raises the error of the batch that could not be sent."""
        batch = Batch()
        for found in self._parsed:
            if isinstance(found, Skipped):
                self._log.add(found)
            elif found.expires is not None and found.expires <= wall_clock():
                self._log.add(_expired(found))
            else:
                batch.add(found)
            # What is there is sent before waiting for more. Where the node is slower than the
            # source, sending waits, and there is more at hand behind it.
            if batch.full or (batch.entries and not self._lines.at_hand):
                batch = self._send(batch)
        if batch.entries:
            self._send(batch)
        self._take(self._sender.finish())

    def _send(self, batch: Batch) -> Batch:
        batch.through = self._lines.number
        self._take(self._sender.send(batch))
        return Batch()

    def _take(self, acknowledged: Iterator[Sent]) -> None:
        for sent in acknowledged:
            for skipped in sent.skipped:
                self._log.add(skipped)
            self.imported += sent.imported
            self.done = sent.through
            self._note.write(self.done, self.imported, self._log.count)
            self._meter.show(self.imported, self._log.count)


def _expired(entry: Entry) -> Skipped:
    return Skipped(entry.line, f"expired at {format_time(entry.expires or 0)}")


def _check_answers(client: Client) -> None:
    """Raise where no node answers, before anything is read."""
    with suppress(Forbidden):  # a token that may write need not be one that sees the status
        client.status()


def _tell_where(run: _Import, log: "SkipLog") -> None:
    """Say how far it came, and how to go on."""
    click.echo(
        f"nkv: imported {run.imported} records, skipped {log.count}; everything up to line"
        f" {run.done} is dealt with: go on with --from-line {run.done + 1}",
        err=True,
    )


# --- the parts of a run ---------------------------------------------------------------------------


class SkipLog:
    """Tells what was skipped: the first ones one by one, all of it in a file if there is one."""

    def __init__(self, file: BinaryIO | None) -> None:
        self._file: Final = file
        self.count = 0

    def add(self, skipped: Skipped) -> None:
        """Tell of one more."""
        self.count += 1
        if self.count <= _TOLD:
            click.echo(f"nkv: line {skipped.line}: {printable(skipped.reason)}", err=True)
        if self._file is not None:
            self._file.write(msgspec.json.encode(skipped) + b"\n")

    def tell_rest(self) -> None:
        """Say how many were not told."""
        if self.count > _TOLD:
            more = (
                "all are in the file" if self._file is not None else "--skipped FILE has them all"
            )
            click.echo(f"nkv: and {self.count - _TOLD} more lines were skipped; {more}", err=True)


class _Progress(msgspec.Struct):
    """What is in a progress file."""

    source: str
    line: int = 0  #: everything up to it is dealt with
    imported: int = 0
    skipped: int = 0


class Note:
    """How far an import is, in a file, so that the next run can go on after any crash."""

    def __init__(self, path: Path | None, source: str) -> None:
        """Read what an earlier run left. Raises `SettingsError` where it is of another file."""
        self._path: Final = path
        self._source: Final = source if source == STDIN else str(Path(source).absolute())
        self._written = time.monotonic()
        self.line = 0
        if path is None or not path.exists():
            return
        try:
            found = msgspec.json.decode(path.read_bytes(), type=_Progress)
        except msgspec.MsgspecError:
            raise SettingsError(f"{path} is not a progress file of nkv.") from None
        if found.source != self._source:
            raise SettingsError(f"{path} is about {found.source}, not {self._source}.")
        self.line = found.line

    def write(self, line: int, imported: int, skipped: int, *, at_once: bool = False) -> None:
        """Note how far it is; at most once a second, unless `at_once`."""
        now = time.monotonic()
        if self._path is None or (now - self._written < _NOTE_INTERVAL and not at_once):
            return
        progress = _Progress(self._source, line, imported, skipped)
        write_atomically(self._path, msgspec.json.encode(progress) + b"\n")
        self._written = now

    def remove(self) -> None:
        """Remove the file: everything is in."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


class Meter:
    """Shows progress on standard error where that is a terminal."""

    def __init__(self, source: BinaryIO, size: int | None) -> None:
        """`size`: bytes of the whole, where it is known."""
        self._source: Final = source
        self._progress: Any = None
        if not sys.stderr.isatty():
            return
        from rich.console import Console  # noqa: PLC0415  # for people only, and slow to import
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn  # noqa: PLC0415

        columns = [TextColumn("{task.description}")]
        if size:
            columns += [BarColumn(), TaskProgressColumn()]  # type: ignore[list-item]
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task("importing", total=size)
        self._started = time.monotonic()
        self._progress.start()

    def show(self, imported: int, skipped: int) -> None:
        """Show how far it is."""
        if self._progress is None:
            return
        rate = imported / max(time.monotonic() - self._started, 0.001)
        text = f"{imported:,} records, {rate:,.0f}/s" + (f", {skipped:,} skipped" * bool(skipped))
        at = self._source.tell() if self._source.seekable() else 0
        self._progress.update(self._task, completed=at, description=text)

    def clear(self) -> None:
        """Remove it from the terminal. Doing so twice does nothing."""
        if self._progress is not None:
            self._progress.stop()


def _reader(file: str, format_name: str | None, *, header: bool, max_line: int) -> Read:
    name = format_name or ("jsonl" if file == STDIN else format_of(file))
    if name is None:
        raise click.UsageError(f"Say what {file} is with --format: {', '.join(FORMATS)}.")
    if name == "jsonl":
        if header:
            raise click.UsageError("--header is for CSV and TSV.")
        return read_json_lines
    return csv_reader("," if name == "csv" else "\t", header=header, limit=max_line)


def _size(source: BinaryIO) -> int | None:
    try:
        found = os.fstat(source.fileno())
    except OSError:  # a file that is none of the system's
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


commands: Final[list[click.Command]] = [import_, export]
