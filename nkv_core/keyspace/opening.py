"""Opening a store: what is in it, whose it is, and what must be known of it before it is used."""

import struct
from collections.abc import Callable
from pathlib import Path

from nkv_core.contracts.storage import TABLES, Batch, Storage
from nkv_core.errors import DataDamaged, DataDirError, StorageFailed, StorageFull
from nkv_core.keys import prefix_range
from nkv_core.keyspace.book import Book
from nkv_core.keyspace.clears import ClearSet
from nkv_core.keyspace.layout import (
    FORMAT,
    META_FORMAT,
    META_HISTORY,
    META_NODE,
    META_RECLAIM,
    chunks,
    pack_number,
    unpack_number,
)
from nkv_core.keyspace.log import ChangeLog
from nkv_core.keyspace.upgrade import bring_up_to_date
from nkv_core.records import new_history, unpack_range_tombstone


def open_book(
    storage: Storage, *, node_id: int, wall: Callable[[], int], copy_to: Path | None = None
) -> Book:
    """Open the storage and take up what is committed. A new store begins a history of its own.

    However large the store is, only a few rows are read. Raises `DataDamaged`, `NewerFormat`,
    `DataDirError` where the store is another node's, and what `Storage.open` does. Where it raises,
    the storage is closed again.
    """
    storage.open()
    try:
        return _open(storage, node_id, wall, copy_to)
    except BaseException as error:
        storage.close()
        if isinstance(error, StorageFull):
            raise
        if isinstance(error, StorageFailed):
            raise DataDamaged(error.detail) from error
        if isinstance(error, (ValueError, struct.error)):
            raise DataDamaged(f"The store is damaged: {error}.") from error
        raise


def _open(storage: Storage, node_id: int, wall: Callable[[], int], copy_to: Path | None) -> Book:
    if storage.get("meta", META_FORMAT) is None:
        _begin(storage, node_id)
    else:
        bring_up_to_date(storage, copy_to)
    owner, history = storage.get("meta", META_NODE), storage.get("meta", META_HISTORY)
    if owner is None or len(owner) != 8 or history is None:
        raise DataDamaged("The store does not say whose it is.")
    if unpack_number(owner) != node_id:
        raise DataDirError(
            f"The store belongs to node {unpack_number(owner):016x}, and this is node "
            f"{node_id:016x}: was it copied? Move records with `nkv export` and `nkv import`."
        )
    log = ChangeLog(storage)
    revision, timestamp = log.load()
    kept = _range_tombstones(storage)
    active = _unreclaimed(storage, kept)
    first = storage.scan("expiry", limit=1)
    return Book(
        storage,
        node_id=node_id,
        history=history.decode(),
        wall=wall,
        revision=revision,
        timestamp=timestamp,
        log=log,
        active=active,
        kept=kept,
        next_expiry=unpack_number(first[0][0]) if first else None,
    )


def _begin(storage: Storage, node_id: int) -> None:
    """Make an empty store one of this node's."""
    used = [table for table in TABLES if storage.count(table)]
    if used:
        raise DataDamaged(f"The store has {', '.join(used)} but does not say of which format.")
    batch = Batch()
    batch.put("meta", META_FORMAT, str(FORMAT).encode())
    batch.put("meta", META_NODE, pack_number(node_id))
    batch.put("meta", META_HISTORY, new_history().encode())
    storage.apply(batch)


def _range_tombstones(storage: Storage) -> ClearSet:
    """All clears whose tombstones are kept."""
    return ClearSet(
        {
            key[1:].decode(): unpack_range_tombstone(key[1:].decode(), packed)
            for pairs in chunks(storage, "tombstones", *prefix_range(b"r"))
            for key, packed in pairs
        }
    )


def _unreclaimed(storage: Storage, kept: ClearSet) -> ClearSet:
    """Those of them whose records still take up room: reclaiming goes on where the node ended."""
    prefixes = {
        key.removeprefix(META_RECLAIM).decode()
        for pairs in chunks(storage, "meta", *prefix_range(META_RECLAIM))
        for key, _ in pairs
    }
    return ClearSet({clear.prefix: clear for clear in kept if clear.prefix in prefixes})
