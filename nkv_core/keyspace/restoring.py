"""Reading a backup, and putting what it has into an empty keyspace.

A backup is read twice: first to see that it is whole, down to its sum, and what was changed while
it was made; then to take in the records, each as it was at the backup's revision.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import BinaryIO, Final, Protocol

import msgspec
from anyio import to_thread

from nkv_core.contracts.context import State
from nkv_core.contracts.keyspace import Foreign
from nkv_core.errors import ConditionFailed, DataDamaged, NewerFormat
from nkv_core.keyspace.backup import (
    FORMAT,
    ChangeLine,
    ClearLine,
    End,
    Head,
    Line,
    Progress,
    RecordLine,
    StateLine,
    TombstoneLine,
)
from nkv_core.records import RangeTombstone, Record, Token, Tombstone

#: Bytes of a line: a greater value than this cannot be restored.
MAX_LINE: Final = 512 * 1024 * 1024

_TAKEN_LINES: Final = 500
_TAKEN_BYTES: Final = 1024 * 1024

_decoder: Final = msgspec.json.Decoder(Line)


class Target(Protocol):
    """An empty local keyspace."""

    @property
    def token(self) -> Token:
        """The place behind the last committed change."""

    async def apply_foreign(self, records: Sequence[Foreign]) -> int:
        """Take records and tombstones as they are."""

    def state(self, name: str) -> State:
        """The durable state of a plugin."""


class Contents(msgspec.Struct):
    """What a backup says, apart from its records: read by `examine_backup`."""

    head: Head
    end: End
    records: int = 0
    #: What was changed last while the backup was made: revisions by key, and by cleared prefix.
    changed: dict[str, int] = {}
    cleared: dict[str, int] = {}
    lengths: set[int] = set()  #: of the cleared prefixes

    def overtaken(self, key: str, revision: int) -> bool:
        """Whether the key was changed, or cleared, behind this revision."""
        if self.changed.get(key, 0) > revision:
            return True
        return any(self.cleared.get(key[:length], 0) > revision for length in self.lengths)


def examine_backup(file: BinaryIO, max_line: int = MAX_LINE) -> Contents:
    """Read a whole backup. Raises `DataDamaged` where it is none or not whole, `NewerFormat`."""
    found = Contents(Head(FORMAT, 0, ""), End("", 0, ""))
    for line in _lines(file, max_line):
        if isinstance(line, RecordLine):
            found.records += 1
        elif isinstance(line, ChangeLine):
            last = found.changed
            if line.kind == "clear":
                last = found.cleared
                found.lengths.add(len(line.key))
            last[line.key] = max(last.get(line.key, 0), line.revision)
        elif isinstance(line, Head):
            found.head = line
        elif isinstance(line, End):
            found.end = line
    return found


async def restore_backup(
    keyspace: Target,
    file: BinaryIO,
    *,
    contents: Contents | None = None,
    max_line: int = MAX_LINE,
    progress: Progress | None = None,
) -> Contents:
    """Put what a backup has into an empty keyspace, whose history goes on as it began.

    `contents` is what `examine_backup` found, where the file has been read already.

    Nothing is changed unless the whole file was found good. Raises `ConditionFailed` where the
    keyspace is not empty, `DataDamaged`, `NewerFormat`, and what the keyspace does with records
    beyond its limits; it then has a part of them, and is to be thrown away.
    """
    if keyspace.token.revision:
        raise ConditionFailed("A backup is restored into an empty keyspace only.")
    if contents is None:
        contents = await to_thread.run_sync(examine_backup, file, max_line)
    file.seek(0)
    lines = _lines(file, max_line)
    taken = 0
    while some := await to_thread.run_sync(partial(_some, lines, contents)):
        foreign = [one for one in some if not isinstance(one, StateLine)]
        await keyspace.apply_foreign(foreign)
        for one in some:
            if isinstance(one, StateLine):
                await keyspace.state(one.plugin).put(one.key, one.value)
        taken += len(foreign)
        if progress is not None:
            await progress(taken)
    return contents


def _some(lines: Iterator[Line], contents: Contents) -> list[Foreign | StateLine]:
    """Some of what holds; nothing at the end."""
    some: list[Foreign | StateLine] = []
    size = 0
    for line in lines:
        one = _meaning(line, contents)
        if one is None:
            continue
        some.append(one)
        size += len(one.value) if isinstance(one, (Record, StateLine)) else 0
        if len(some) >= _TAKEN_LINES or size >= _TAKEN_BYTES:
            break
    return some


def _meaning(line: Line, contents: Contents) -> Foreign | StateLine | None:
    """What a line stands for, unless a later one says otherwise."""
    if isinstance(line, StateLine):
        return line
    if isinstance(line, ClearLine) or (isinstance(line, ChangeLine) and line.kind == "clear"):
        prefix = line.prefix if isinstance(line, ClearLine) else line.key
        return RangeTombstone(prefix, line.revision, line.modified, line.origin)
    if isinstance(line, (Head, End)) or contents.overtaken(line.key, line.revision):
        return None
    if isinstance(line, TombstoneLine) or (isinstance(line, ChangeLine) and line.kind == "delete"):
        return Tombstone(line.key, line.revision, line.modified, line.origin)
    value = line.value or b""
    return Record(line.key, value, line.revision, line.modified, line.origin, line.expires)


def _lines(file: BinaryIO, max_line: int) -> Iterator[Line]:
    """All lines, each found to be where it belongs. Raises `DataDamaged`, `NewerFormat`."""
    digest = hashlib.sha256()
    head, end, count = None, None, 0
    while text := file.readline(max_line + 1):
        if end is not None:
            raise DataDamaged("The backup goes on behind its end.")
        line = _decoded(text, count + 1)
        if head is None:
            head = line
            if not isinstance(line, Head):
                raise DataDamaged("This is not a backup of nkv.")
            if line.format != FORMAT:
                raise NewerFormat(f"The backup has format {line.format}; this nkv knows {FORMAT}.")
        elif isinstance(line, Head):
            raise DataDamaged(f"Line {count + 1} of the backup is a second beginning.")
        elif isinstance(line, End):
            end = line
            digest.update(line.token.encode())
            if line.lines != count - 1 or line.sha256 != digest.hexdigest():
                raise DataDamaged("The backup is damaged: its content does not match its sum.")
        digest.update(text)
        count += 1
        yield line
    if head is None:
        raise DataDamaged("The backup is empty.")
    if end is None:
        raise DataDamaged("The backup has no end: it was cut off.")


def _decoded(text: bytes, number: int) -> Line:
    if not text.endswith(b"\n"):
        raise DataDamaged(
            f"Line {number} of the backup has no end: it was cut off, or is too long."
        )
    try:
        line: Line = _decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        if number == 1:
            raise DataDamaged("This is not a backup of nkv.") from None
        raise DataDamaged(f"Line {number} of the backup is damaged: {error}.") from None
    if isinstance(line, ChangeLine) and line.kind in ("put", "touch") and line.value is None:
        raise DataDamaged(f"Line {number} of the backup has no value.")
    return line
