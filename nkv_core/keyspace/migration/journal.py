"""The journal: which storage is in charge, in a file beside the data.

There is none until a migration begins. From then on it decides, at every start, and not the
settings: it is replaced in one step, on the disk, while no write is under way. Both storages of a
migration have a fence in them meanwhile, so that neither is taken for the latest without it.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from nkv_core.errors import DataDamaged, NewerFormat
from nkv_core.files import sync_folder, write_atomically

NAME: Final = "storage.json"
FORMAT: Final = 1
_MOST_BYTES: Final = 1024 * 1024

Phase = Literal["copying", "baking"]


class Place(msgspec.Struct, frozen=True, omit_defaults=True):
    """A storage and how to come to it."""

    storage: str
    plugin: str | None = None  #: SPEC of the plugin that offers it, where that is not its namesake
    settings: dict[str, Any] = {}  #: that go over those of its section


class Unfinished(msgspec.Struct, frozen=True):
    """A migration that has begun."""

    id: str
    phase: Phase
    other: Place  #: before the switch where it goes to, behind it where it came from


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the journal says."""

    format: int
    in_charge: Place
    since: str  #: for people
    migration: Unfinished | None = None


class Journal:
    """The file. Its methods block."""

    def __init__(self, folder: Path) -> None:
        self.path: Final = folder / NAME

    def read(self) -> Entry | None:
        """What it says; None where there is none. Raises `DataDamaged`, `NewerFormat`, and
        `OSError`.
        """
        try:
            with self.path.open("rb") as file:
                content = file.read(_MOST_BYTES)
        except FileNotFoundError:
            return None
        found: Any = None
        with suppress(msgspec.DecodeError):
            found = msgspec.json.decode(content)
        number = found.get("format") if isinstance(found, dict) else None
        if isinstance(number, int) and number > FORMAT:
            raise NewerFormat(f"{self.path} has format {number}; this nkv knows up to {FORMAT}.")
        try:
            return msgspec.convert(found, Entry)
        except msgspec.ValidationError:
            raise DataDamaged(
                f"{self.path} is damaged, so that nothing says which storage is in charge."
                " Restore it, or the folder, from a backup."
            ) from None

    def write(self, entry: Entry | None) -> None:
        """Have it say this, on the disk when this returns; None removes it. Raises `OSError`."""
        if entry is not None:
            write_atomically(self.path, msgspec.json.format(msgspec.json.encode(entry)) + b"\n")
            return
        self.path.unlink(missing_ok=True)
        sync_folder(self.path.parent)
