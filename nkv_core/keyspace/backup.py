"""Backup of a keyspace: everything at one revision, while it serves.

A backup is a file of lines, each a JSON array: a header; then records, tombstones, clears, changes
and the state of plugins; and an end with the revision, the number of lines and a SHA-256.

No writer waits for a backup. The records are read page by page, each page at its own moment, and
what was changed meanwhile follows from the change log, up to one revision. Together they say what
there was at that revision: a record as read holds unless a later change says otherwise.
"""

import errno
import hashlib
import os
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from itertools import starmap
from pathlib import Path
from time import monotonic
from typing import Any, BinaryIO, Final, Protocol, TypeVar

import msgspec
from anyio import to_thread

from nkv_core.contracts.keyspace import ChangePage, Page
from nkv_core.contracts.storage import Storage, Table
from nkv_core.errors import BadRequest, ConditionFailed, Overloaded, StorageFull
from nkv_core.files import sync_folder
from nkv_core.keys import EVERYTHING, Pattern
from nkv_core.keyspace.draft import Draft
from nkv_core.keyspace.layout import Pairs, chunks
from nkv_core.keyspace.reading import Steps
from nkv_core.records import (
    Change,
    Kind,
    Record,
    Token,
    unpack_range_tombstone,
    unpack_tombstone,
    wall_clock,
)
from nkv_core.times import format_time

FORMAT: Final = 1

_PAGE: Final = 256
_CHANGES: Final = 1000
_BUFFER: Final = 1024 * 1024

T = TypeVar("T")


# --- the lines of a backup ------------------------------------------------------------------------


class Head(msgspec.Struct, array_like=True, tag="nkv-backup", frozen=True):
    """The first line."""

    format: int
    node_id: int
    begun: str  #: when, for people


class RecordLine(msgspec.Struct, array_like=True, tag="record", frozen=True, gc=False):
    """A record as it was at some moment of the backup."""

    key: str
    value: bytes
    revision: int
    modified: int
    origin: int
    expires: int | None = None


class TombstoneLine(msgspec.Struct, array_like=True, tag="tombstone", frozen=True, gc=False):
    """A key that had been deleted."""

    key: str
    revision: int
    modified: int
    origin: int


class ClearLine(msgspec.Struct, array_like=True, tag="clear", frozen=True, gc=False):
    """A prefix that had been cleared."""

    prefix: str
    revision: int
    modified: int
    origin: int


class ChangeLine(msgspec.Struct, array_like=True, tag="change", frozen=True, gc=False):
    """What was changed while the backup was made."""

    kind: Kind
    key: str  #: for a clear, the prefix
    revision: int
    modified: int
    origin: int
    value: bytes | None = None
    expires: int | None = None


class StateLine(msgspec.Struct, array_like=True, tag="state", frozen=True, gc=False):
    """One entry of the durable state of a plugin."""

    plugin: str
    key: str
    value: bytes


class End(msgspec.Struct, array_like=True, tag="end", frozen=True):
    """The last line."""

    token: str  #: the place in the change stream that the backup stands for
    lines: int  #: between the first and this one
    sha256: str  #: of everything before this line, and the token


Content = RecordLine | TombstoneLine | ClearLine | ChangeLine | StateLine
Line = Head | Content | End

_encoder: Final = msgspec.json.Encoder()


# --- what a backup is made of, and goes to --------------------------------------------------------


class Source(Protocol):
    """A local keyspace, as far as a backup needs it."""

    @property
    def token(self) -> Token:
        """The place behind the last committed change."""

    async def scan(
        self, pattern: Pattern = EVERYTHING, *, after: str | None = None, limit: int = 1000
    ) -> Page:
        """Records in key order."""

    async def changes(
        self, since: Token, pattern: Pattern = EVERYTHING, *, limit: int = 1000
    ) -> ChangePage:
        """Changes behind `since`."""

    @property
    def storage(self) -> Storage:
        """Where it keeps everything; for reading through `read` alone."""

    async def read(self, steps: Steps[T]) -> T:
        """Drive a read to its end, where the storage wants it."""

    async def write(self, plan: Callable[[Draft], T], size: int) -> T:
        """Have a write planned and committed, behind those that came before."""


class Summary(msgspec.Struct, frozen=True):
    """What a backup has."""

    token: str
    records: int
    bytes: int


#: Is told how many records were written so far.
Progress = Callable[[int], Awaitable[object]]


class _Writer:
    """Writes lines and keeps their sum. Its methods run in a worker thread, one at a time."""

    def __init__(self, file: BinaryIO) -> None:
        self._file: Final = file
        self._sum: Final = hashlib.sha256()
        self._buffer = bytearray()
        self._lines = 0
        self.bytes = 0

    def write(self, lines: Iterable[Line]) -> None:
        for line in lines:
            _encoder.encode_into(line, self._buffer, -1)
            self._buffer += b"\n"
            self._lines += 1
            if len(self._buffer) >= _BUFFER:
                self._flush()
        self._flush()

    def end(self, token: Token) -> None:
        text = str(token)
        self._sum.update(text.encode())
        self.write([End(text, self._lines - 1, self._sum.hexdigest())])

    def _flush(self) -> None:
        self._sum.update(self._buffer)
        self._file.write(self._buffer)
        self.bytes += len(self._buffer)
        self._buffer.clear()


# --- writing --------------------------------------------------------------------------------------


async def write_backup(
    keyspace: Source, file: BinaryIO, *, node_id: int = 0, progress: Progress | None = None
) -> Summary:
    """Write everything in the keyspace, as it is at one revision.

    Raises `Overloaded` where more is written to the keyspace meanwhile than its change log holds,
    and `OSError` where the file cannot be written.
    """
    writer = _Writer(file)
    await _write(writer, [Head(FORMAT, node_id, format_time(wall_clock()))])
    place = keyspace.token
    rows = _Rows(keyspace)
    for table, line_of in _TABLES:
        pieces = chunks(rows, table, b"", None)
        while pairs := await keyspace.read(_next(pieces)):
            await _write(writer, starmap(line_of, pairs))
    records, after = 0, None
    while True:
        page = await keyspace.scan(EVERYTHING, after=after, limit=_PAGE)
        await _write(writer, map(_record_line, page.records))
        place = await _follow(keyspace, writer, place)
        records, after = records + len(page.records), page.after
        if progress is not None:
            await progress(records)
        if after is None:
            break
    # A page may show what was committed a moment ago and has not been told yet. Behind a write that
    # does nothing, all of that has been.
    await keyspace.write(_nothing, 0)
    place = await _follow(keyspace, writer, place)
    await to_thread.run_sync(writer.end, place)
    return Summary(str(place), records, writer.bytes)


class _Rows:
    """The rows of the storage in charge, even if that becomes another one meanwhile."""

    def __init__(self, keyspace: Source) -> None:
        self._keyspace: Final = keyspace

    def scan(self, table: Table, start: bytes, stop: bytes | None, *, limit: int) -> Pairs:
        return self._keyspace.storage.scan(table, start, stop, limit=limit)


def _next(pieces: Iterator[Pairs]) -> Steps[Pairs]:
    """Some more rows; none at the end."""
    yield from ()
    return next(pieces, [])


def _nothing(_: Draft) -> None:
    pass


async def _write(writer: _Writer, lines: Iterable[Line]) -> None:
    await to_thread.run_sync(writer.write, lines)


async def _follow(keyspace: Source, writer: _Writer, place: Token) -> Token:
    """Write what was changed behind a place, up to now; returns the place behind it."""
    until = keyspace.token.revision
    while place.revision < until:
        page = await keyspace.changes(place, EVERYTHING, limit=_CHANGES)
        if page.gap or page.token == place:
            raise Overloaded(
                "While the backup was made, more was written than the change log holds: try again"
                " at a quieter time, or with a greater keyspace.log_bytes."
            )
        await _write(writer, map(_change_line, page.changes))
        place = page.token
    return place


def _record_line(record: Record) -> RecordLine:
    return RecordLine(
        record.key, record.value, record.revision, record.modified, record.origin, record.expires
    )


def _change_line(change: Change) -> ChangeLine:
    return ChangeLine(
        change.kind,
        change.key,
        change.revision,
        change.modified,
        change.origin,
        change.value,
        change.expires,
    )


def _state_line(row: bytes, value: bytes) -> StateLine:
    plugin, _, key = row.partition(b"\0")
    return StateLine(plugin.decode(), key.decode(), value)


def _tombstone_line(row: bytes, packed: bytes) -> TombstoneLine | ClearLine:
    text = row[1:].decode()
    if row[:1] == b"k":
        one = unpack_tombstone(text, packed)
        return TombstoneLine(text, one.revision, one.modified, one.origin)
    clear = unpack_range_tombstone(text, packed)
    return ClearLine(text, clear.revision, clear.modified, clear.origin)


_TABLES: Final[tuple[tuple[Table, Callable[[bytes, bytes], Line]], ...]] = (
    ("state", _state_line),
    ("tombstones", _tombstone_line),
)


# --- files ----------------------------------------------------------------------------------------


async def save_backup(
    keyspace: Source,
    path: Path,
    *,
    node_id: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Write a backup to a file that appears under its name only once it is whole and on the disk.

    It is readable for the node's user alone. Raises `ConditionFailed` where the file exists and
    `force` is not given, `StorageFull`, `BadRequest` where the file cannot be made, and as
    `write_backup`. Where it raises, or is cancelled, nothing is left.
    """
    if not path.is_absolute():
        raise BadRequest(f"{path} is not an absolute path.")
    new = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.new")
    try:
        _refuse_existing(path, force=force)
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                summary = await write_backup(keyspace, file, node_id=node_id, progress=progress)
                file.flush()
                await to_thread.run_sync(os.fsync, handle)
            _publish(new, path, force=force)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"There is no room for a backup at {path}.") from error
        raise BadRequest(f"{path} cannot be written: {error.strerror}.") from error
    return summary


def _refuse_existing(path: Path, *, force: bool) -> None:
    if os.path.lexists(path) and not force:
        raise ConditionFailed(f"{path} exists already: give --force to replace it.")


def _publish(new: Path, path: Path, *, force: bool) -> None:
    """Give the file its name, in one step."""
    _refuse_existing(path, force=force)  # somebody else may have been faster
    new.replace(path)
    sync_folder(path.parent)


# --- being asked ----------------------------------------------------------------------------------


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    file: str
    force: bool = False


async def answer_backup(
    keyspace: Source, params: Mapping[str, Any], tell: Progress, *, node_id: int
) -> dict[str, Any]:
    """Carry out the verb `backup` of the admin socket: `{"file": PATH, "force": false}`.

    `tell` is called about once a second. Returns the summary, for JSON. Raises `BadRequest`, and as
    `save_backup`.
    """
    try:
        asked = msgspec.convert(params, _Asked)
    except msgspec.ValidationError as error:
        raise BadRequest(f"A backup cannot be made so: {error}.") from None
    told = monotonic()

    async def progress(records: int) -> None:
        nonlocal told
        if monotonic() - told >= 1:
            told = monotonic()
            await tell(records)

    summary = await save_backup(
        keyspace, Path(asked.file), node_id=node_id, force=asked.force, progress=progress
    )
    found: dict[str, Any] = msgspec.to_builtins(summary)
    return found
