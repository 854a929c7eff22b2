"""What diskcache may write and read: bytes in the row itself. No pickles, no files beside it."""

from typing import NoReturn

import diskcache
from diskcache.core import MODE_RAW

from nkv_core.errors import DataDamaged


class BytesDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache has no types
    """A `Disk` for bytes alone.

    The one that comes with diskcache unpickles what it finds in the file, which is running it, and
    opens whatever file a row names. This one replaces every method that could.
    """

    def hash(self, key: bytes) -> NoReturn:
        """Refuse: only sharded caches hash, and this is none."""
        raise TypeError("Keys are not hashed here.")

    def put(self, key: bytes) -> tuple[bytes, bool]:
        """The columns `key` and `raw` of a key."""
        if type(key) is not bytes:
            raise TypeError(f"A key is bytes, not {type(key).__name__}.")
        return key, True

    def get(self, key: object, raw: object) -> bytes:
        """The key of a row. Raises `DataDamaged`."""
        if type(key) is not bytes or raw != 1:
            raise foreign_row(key)
        return key

    def store(self, value: bytes, read: bool, key: object = None) -> tuple[int, int, None, bytes]:
        """The columns `size`, `mode`, `filename` and `value` of a value."""
        if type(value) is not bytes or read:
            raise TypeError("A value is bytes.")
        return 0, MODE_RAW, None, value

    def fetch(self, mode: object, filename: object, value: object, read: bool) -> bytes:
        """The value of a row. Raises `DataDamaged`."""
        if mode != MODE_RAW or filename is not None or type(value) is not bytes or read:
            raise foreign_row(None)
        return value

    def filename(self, key: object = None, value: object = None) -> NoReturn:
        """Refuse: there are no files beside the rows."""
        raise TypeError("Values have no files of their own here.")

    def remove(self, file_path: object) -> None:
        """Remove nothing: a file that a row names was not written here."""


def foreign_row(key: object) -> DataDamaged:
    """The error for a row that this storage cannot have written."""
    which = f" for the key {key[1:]!r}" if isinstance(key, bytes) else ""
    return DataDamaged(
        f"The data file has a row{which} that nkv did not write: it was not read. "
        "Restore the file from a backup."
    )
