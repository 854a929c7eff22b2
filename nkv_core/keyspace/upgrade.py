"""Stores of an older format: a copy is kept, then they are brought up to date, step by step."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from nkv_core.contracts.storage import TABLES, Batch, Storage, Table
from nkv_core.errors import DataDamaged, NewerFormat, StartError
from nkv_core.keyspace.layout import FORMAT, META_FORMAT, chunks

#: Brings a store from the format that it is filed under to the next. It may be killed at any time
#: and is then run again, so it must recognise what it has done already. It leaves the number of the
#: format alone.
Step = Callable[[Storage], None]

#: By the format that a step starts from. Format 1 is the first there ever was.
STEPS: Final[Mapping[int, Step]] = {}

_MAGIC: Final = b"nkv store copy 1\n"
_LENGTH_BYTES: Final = 4


def bring_up_to_date(
    storage: Storage,
    copy_to: Path | None,
    *,
    steps: Mapping[int, Step] = STEPS,
    wanted: int = FORMAT,
) -> None:
    """Upgrade the store where it is of an older format; `copy_to` is the folder for its copy.

    Raises `NewerFormat` where it is of a newer one, `DataDamaged` where it has none, `StartError`
    where no step leads on or there is nowhere to keep a copy. In each case nothing was changed.
    """
    found = _format_of(storage)
    if found > wanted:
        raise NewerFormat(
            f"The store has format {found}; this nkv knows formats up to {wanted}. "
            "Start it with a newer nkv."
        )
    if found == wanted:
        return
    missing = [str(step) for step in range(found, wanted) if step not in steps]
    if missing:
        raise StartError(f"The store has format {found}, from which this nkv cannot upgrade.")
    if copy_to is None:
        raise StartError(f"The store has format {found}: upgrading it needs room for a copy.")
    copy = copy_to / f"store-format-{found}.copy"
    if not copy.exists():  # else an upgrade was interrupted, and the store is half changed by now
        try:
            write_copy(storage, copy)
        except OSError as error:
            raise StartError(f"The store cannot be copied before its upgrade: {error}.") from error
    for step in range(found, wanted):
        steps[step](storage)
        batch = Batch()
        batch.put("meta", META_FORMAT, str(step + 1).encode())
        storage.apply(batch)


def _format_of(storage: Storage) -> int:
    packed = storage.get("meta", META_FORMAT)
    if packed is None or not packed.isdigit():
        raise DataDamaged("The store does not say of which format it is.")
    return int(packed)


def write_copy(storage: Storage, path: Path) -> None:
    """Write all rows of the store into one file, which is there complete or not at all."""
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("wb") as file:
        file.write(_MAGIC)
        for table in TABLES:
            for pairs in chunks(storage, table, b"", None):
                _write_piece(file, (table, pairs))
        _write_piece(file, ("end", []))
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_copy(path: Path, storage: Storage) -> None:
    """Put the rows of a copy into an empty store. Raises `DataDamaged`: then it is not complete."""
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise DataDamaged(f"{path} is no copy of a store.")
        for table, pairs in _pieces(file, path):
            batch = Batch()
            for key, value in pairs:
                batch.put(table, key, value)
            storage.apply(batch)


def _write_piece(file: BinaryIO, piece: Any) -> None:
    packed = msgspec.msgpack.encode(piece)
    file.write(len(packed).to_bytes(_LENGTH_BYTES, "big"))
    file.write(packed)


def _pieces(file: BinaryIO, path: Path) -> Iterator[tuple[Table, list[tuple[bytes, bytes]]]]:
    while True:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "big")
        packed = file.read(length)
        if len(packed) != length or not packed:
            raise DataDamaged(f"{path} ends too early.")
        try:
            table, pairs = msgspec.msgpack.decode(
                packed, type=tuple[str, list[tuple[bytes, bytes]]]
            )
        except msgspec.MsgspecError as error:
            raise DataDamaged(f"{path} is damaged: {error}.") from None
        if table == "end":
            return
        if table not in TABLES:
            raise DataDamaged(f"{path} has a table {table!r}, which is none of a store's.")
        yield table, pairs
