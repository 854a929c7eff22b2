"""Storage: an ordered map of bytes with atomic batches, owned by one node.

A storage is dumb on purpose. Records, revisions, conditions, expiry and the change log are the
keyspace's, which is written once. `nkv_core.testing.StorageContract` is the suite that an
implementation passes.
"""

from collections.abc import Sequence
from typing import Any, Final, Literal, Protocol, get_args

import msgspec

from nkv_core.contracts.markers import hookspec

Table = Literal["records", "tombstones", "expiry", "changes", "state", "meta"]
TABLES: Final[tuple[Table, ...]] = get_args(Table)

#: Where a storage's methods are to be called: on the event loop, or in a worker thread. A hop to a
#: thread costs about 50 microseconds, so what takes a few belongs inline.
Where = Literal["inline", "thread"]


class Batch(msgspec.Struct):
    """Writes that are made together or not at all. A value of None deletes the key."""

    writes: dict[Table, dict[bytes, bytes | None]] = msgspec.field(default_factory=dict)

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        """Set a key; a later call for the same key wins."""
        self.writes.setdefault(table, {})[key] = value

    def delete(self, table: Table, key: bytes) -> None:
        """Delete a key, whether it exists or not; a later call for the same key wins."""
        self.writes.setdefault(table, {})[key] = None


class Storage(Protocol):
    """Six tables of byte keys to byte values, each ordered by key.

    Methods are plain, not async. `apply` and `delete_range` are called by one thread at a time;
    `get`, `get_many`, `scan` and `count` may be called from another thread meanwhile and see a
    batch whole or not at all. Every method but `open` raises `StorageFailed` where it cannot do its
    work, and then has changed nothing: `StorageFull` where room is what lacks, and `DataDamaged`
    where what it reads is not what was written.
    """

    @property
    def reads(self) -> Where:
        """Where `get`, `get_many`, `scan` and `count` are to be called."""

    @property
    def writes(self) -> Where:
        """Where `apply` and `delete_range` are to be called."""

    @property
    def durable(self) -> bool:
        """Whether what was applied survives the death of the process and of the machine."""

    def open(self) -> None:
        """Make ready. Raises `DataDamaged`, `StorageFull` or `DataDirError`: nothing is changed."""

    def close(self) -> None:
        """Release everything. Closing twice does nothing."""

    def get(self, table: Table, key: bytes) -> bytes | None:
        """The value of a key, or None."""

    def get_many(self, table: Table, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The values of those of the keys that exist. A group of writes looks all of its keys up
        at once: where one `get` costs more than its lookup, this is where to save it.
        """

    def apply(self, batch: Batch) -> None:
        """Make all writes of the batch, over all tables, or none. Durable when it returns."""

    def scan(
        self,
        table: Table,
        start: bytes = b"",
        stop: bytes | None = None,
        *,
        limit: int,
        reverse: bool = False,
    ) -> list[tuple[bytes, bytes]]:
        """At most `limit` pairs with `start <= key < stop`, in key order or the reverse of it."""

    def count(self, table: Table) -> int:
        """How many keys the table has. It does not read them all."""

    def delete_range(self, table: Table, start: bytes, stop: bytes | None) -> int:
        """Delete all keys with `start <= key < stop`, all or none; returns how many there were."""


class StorageHooks:
    """The hook that offers a storage."""

    @hookspec
    def nkv_storage(self, name: str, settings: Any) -> Storage | None:
        """Return the storage called `name`, not yet open, or None where that is another's name.

        :param name: what follows `--storage`.
        :param settings: the section `storage.NAME`, as the type that `nkv_settings` gives.
        """
