"""How the keyspace lays out its rows in the six tables of a storage.

| table      | key                              | value                                |
|------------|----------------------------------|--------------------------------------|
| records    | the key                          | `pack_record`                        |
| tombstones | `k` and the key                  | `pack_tombstone`                     |
| tombstones | `r` and the prefix               | `pack_tombstone` of a range          |
| expiry     | 8 bytes of milliseconds, the key | nothing                              |
| changes    | the row's first revision, 8 bytes | header and `pack_changes`: see `log` |
| state      | plugin's name, a zero byte, key  | the plugin's own                     |
| meta       | one of the names below           | see there                            |

Numbers in keys are big-endian, so that the order of bytes is the order of numbers.
"""

import struct
from collections.abc import Iterator
from typing import Final, Protocol

from nkv_core.contracts.storage import Table

#: The form of everything here. A store of a newer one is refused, one of an older is upgraded.
FORMAT: Final = 1

META_FORMAT: Final = b"format"  #: the number above, in decimal
META_NODE: Final = b"node"  #: id of the node that the store belongs to, 8 bytes
META_HISTORY: Final = b"history"  #: id of the history, text
META_LOG: Final = b"log"  #: what the change log has forgotten: see `log`
META_RECLAIM: Final = b"reclaim:"  #: and a prefix: a clear whose records still take up room

META_FENCE: Final = (
    b"fence"  #: id of a migration: the store is in charge only if the journal says so
)

_NUMBER: Final = struct.Struct(">Q")

Pairs = list[tuple[bytes, bytes]]

_FIRST_PAIRS: Final = 32
_MOST_PAIRS: Final = 1000
_CHUNK_BYTES: Final = 1024 * 1024


def pack_number(number: int) -> bytes:
    """8 bytes, big-endian."""
    return _NUMBER.pack(number)


def unpack_number(packed: bytes) -> int:
    """The number in the first 8 bytes."""
    number: int = _NUMBER.unpack_from(packed)[0]
    return number


def expiry_key(expires: int, key: bytes) -> bytes:
    """The row of a record that expires, in the order of expiry."""
    return _NUMBER.pack(expires) + key


def tombstone_key(key: bytes) -> bytes:
    """The row of a deleted key."""
    return b"k" + key


def range_tombstone_key(prefix: bytes) -> bytes:
    """The row of a cleared prefix."""
    return b"r" + prefix


def state_key(plugin: str, key: bytes = b"") -> bytes:
    """The row of a plugin's state; without a key, what all of the plugin's rows begin with."""
    return plugin.encode() + b"\0" + key


def behind(key: bytes) -> bytes:
    """The least key that is greater."""
    return key + b"\0"


class Rows(Protocol):
    """A storage, as far as its rows are read."""

    def scan(
        self, table: Table, start: bytes, stop: bytes | None, *, limit: int
    ) -> list[tuple[bytes, bytes]]:
        """As that of `contracts.storage.Storage`."""


def chunks(
    storage: Rows, table: Table, start: bytes, stop: bytes | None, *, first: int = _FIRST_PAIRS
) -> Iterator[Pairs]:
    """The pairs with `start <= key < stop`, some at a time: about a mebibyte, never none.

    How many depends on how large those before were, so that neither large values fill the memory
    nor small ones cost a call each. Each chunk is read when it is asked for.
    """
    limit = first
    while pairs := storage.scan(table, start, stop, limit=limit):
        yield pairs
        if len(pairs) < limit:
            return
        start = behind(pairs[-1][0])
        mean = sum(len(key) + len(value) for key, value in pairs) // len(pairs)
        limit = min(max(_CHUNK_BYTES // (mean + 1), 4), _MOST_PAIRS)
