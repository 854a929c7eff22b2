"""The files that `nkv import` reads and `nkv export` writes.

JSON Lines: one object a line, with `key`, one of `value` (text) and `value_base64`, and `expires`
(RFC 3339) where the record has an expiry. CSV and TSV: two columns, key and value, quoted as usual.
Nothing here holds more than one line, one row and one chunk.
"""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec
from msgspec import UNSET, UnsetType

from nkv_core.client import Item
from nkv_core.client.calls import MAX_KEY
from nkv_core.errors import NkvError
from nkv_core.keys import check_key
from nkv_core.times import format_time, parse_time

_CHUNK: Final = 256 * 1024
_BOM: Final = b"\xef\xbb\xbf"

EXTENSIONS: Final = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
}


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One record to import."""

    line: int  #: the first that it stands in, from 1
    key: str
    value: bytes
    expires: int | None = None  #: milliseconds since 1970


class Skipped(msgspec.Struct, frozen=True, gc=False):
    """What was not imported, and why."""

    line: int
    reason: str


Parsed = Entry | Skipped


class Lines:
    """The lines of a file, without their ends; of one that is too long, None.

    Only as much is read as is at hand, so that what comes through a pipe is not held up.
    """

    def __init__(self, file: BinaryIO, limit: int) -> None:
        """`limit`: bytes of a line."""
        self._file = file
        self._limit = limit
        self._ready: Iterator[bytes] = iter(())
        self._left = 0
        self._rest = b""
        self._dropping = False
        self._ended = False
        #: The number of the line given last, from 1; those of skipped ones count.
        self.number = 0

    @property
    def at_hand(self) -> bool:
        """Whether the next line is there already; otherwise reading it may have to wait."""
        return self._left > 0

    def __iter__(self) -> "Lines":
        return self

    def __next__(self) -> bytes | None:
        while not self._left:
            if self._ended:
                raise StopIteration
            self._read()
        self._left -= 1
        line = next(self._ready)
        self.number += 1
        if self._dropping:  # the end of the line whose beginning was dropped
            self._dropping = False
            return None
        if len(line) > self._limit:
            return None
        if self.number == 1 and line.startswith(_BOM):
            line = line[len(_BOM) :]
        return line[:-1] if line.endswith(b"\r") else line

    def _read(self) -> None:
        chunk = self._file.read1(_CHUNK)  # type: ignore[attr-defined]  # all that we open have it
        if not chunk:
            self._ended = True
            if self._rest or self._dropping:
                self._ready, self._left, self._rest = iter([self._rest]), 1, b""
            return
        head, end, tail = chunk.rpartition(b"\n")
        if end:
            lines = (self._rest + head).split(b"\n")
            self._ready, self._left, self._rest = iter(lines), len(lines), tail
        else:
            self._rest += chunk
        # While the lines before it are still to be given, the rest is less than one chunk.
        if not end and (self._dropping or len(self._rest) > self._limit):
            self._rest, self._dropping = b"", True


Read = Callable[[Lines, int], Iterator[Parsed]]


# --- JSON Lines -----------------------------------------------------------------------------------


class _Object(msgspec.Struct, forbid_unknown_fields=True):
    key: str
    value: str | UnsetType = UNSET
    value_base64: bytes | UnsetType = UNSET
    expires: str | None = None


_object: Final = msgspec.json.Decoder(_Object)
_encoder: Final = msgspec.json.Encoder()


def read_json_lines(lines: Lines, first: int = 1) -> Iterator[Parsed]:
    """Read objects, from the line with the number `first` on. Empty lines are passed over."""
    for line in lines:
        number = lines.number
        if number < first:
            continue
        if line is None:
            yield Skipped(number, "the line is too long")
        elif line.strip():
            yield _entry_of(number, line)


def _entry_of(number: int, line: bytes) -> Parsed:
    try:
        found = _object.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return Skipped(number, f"not a record: {error}")
    if isinstance(found.value, str):
        if found.value_base64 is not UNSET:
            return Skipped(number, "both `value` and `value_base64`")
        value = found.value.encode()
    elif isinstance(found.value_base64, bytes):
        value = found.value_base64
    else:
        return Skipped(number, "neither `value` nor `value_base64`")
    try:
        expires = None if found.expires is None else parse_time(found.expires)
    except NkvError as error:
        return Skipped(number, error.detail)
    return _checked(number, found.key, value, expires)


def write_json_line(item: Item) -> bytes:
    """What `read_json_lines` reads as this record, with its line end."""
    fields: dict[str, Any] = {"key": item.key}
    try:
        fields["value"] = item.value.decode()
    except UnicodeDecodeError:
        fields["value_base64"] = item.value
    if item.expires is not None:
        fields["expires"] = format_time(item.expires)
    return _encoder.encode(fields) + b"\n"


# --- CSV and TSV ----------------------------------------------------------------------------------


def csv_reader(delimiter: str, *, header: bool, limit: int) -> Read:
    """What reads rows of two columns. `header`: pass over the first row. `limit`: bytes of one."""

    def read(lines: Lines, first: int = 1) -> Iterator[Parsed]:
        previous = csv.field_size_limit(limit)
        try:
            yield from _read_rows(lines, first, delimiter, header=header)
        finally:
            csv.field_size_limit(previous)

    return read


def _read_rows(lines: Lines, first: int, delimiter: str, *, header: bool) -> Iterator[Parsed]:
    too_long: list[int] = []
    begin = 0  # the first line of the row that is being read

    def texts() -> Iterator[str]:
        nonlocal begin
        for line in lines:
            if line is None:
                too_long.append(lines.number)
                continue
            begin = begin or lines.number
            # What is not UTF-8 passes through as it is: a value is bytes.
            yield line.decode("utf-8", "surrogateescape") + "\n"

    rows = csv.reader(texts(), delimiter=delimiter, strict=True)
    while True:
        begin, problem = 0, ""
        try:
            row = next(rows, None)
        except csv.Error as error:
            row, problem = [], str(error)
        for number in too_long:
            if number >= first:
                yield Skipped(number, "the line is too long")
            if number > begin and row:
                problem = "a line within is too long"
        too_long.clear()
        if row is None:
            return
        if begin < first or (header and begin == 1):
            continue
        if problem:
            until = "" if lines.number == begin else f" (up to line {lines.number})"
            yield Skipped(begin, f"not a row: {problem}{until}")
        elif row:
            yield _pair(begin, row)


def _pair(number: int, row: list[str]) -> Parsed:
    if len(row) != 2:
        return Skipped(number, f"{len(row)} columns instead of two")
    return _checked(number, row[0], row[1].encode("utf-8", "surrogateescape"), None)


# --- both -----------------------------------------------------------------------------------------


def _checked(number: int, key: str, value: bytes, expires: int | None) -> Parsed:
    try:
        check_key(key, MAX_KEY)  # how long it may be is for the node to say
    except NkvError as error:
        return Skipped(number, error.detail)
    return Entry(number, key, value, expires)


def format_of(path: str) -> str | None:
    """The format that a file's name stands for, or None."""
    return EXTENSIONS.get(Path(path).suffix.lower())
