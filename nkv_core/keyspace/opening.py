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
    META_FENCE,
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
    storage: Storage,
    *,
    node_id: int,
    wall: Callable[[], int],
    copy_to: Path | None = None,
    in_charge: bool = False,
) -> Book:
    """Open the storage and take up what is committed. A new store begins a history of its own.

    However large the store is, only a few rows are read. `in_charge` says that the node's journal
    names this storage, so that a fence in it holds nobody up. Raises `DataDamaged`, `NewerFormat`,
    `DataDirError` where the store is another node's or fenced, and what `Storage.open` does. Where
    it raises, the storage is closed again.
    """

    def take_up() -> Book:
        if storage.get("meta", META_FORMAT) is None:
            _begin(storage, node_id)
        else:
            bring_up_to_date(storage, copy_to)
        book = _book_of(storage, node_id, wall)
        _pass_fence(storage, in_charge=in_charge)
        return book

    try:
        return _opened(storage, take_up)
    except StorageFull:
        raise
    except StorageFailed as error:
        raise DataDamaged(error.detail) from error
    except (ValueError, struct.error) as error:
        raise DataDamaged(f"The store is damaged: {error}.") from error


def open_target(
    storage: Storage, *, node_id: int, history: str, wall: Callable[[], int], fence: bytes
) -> Book:
    """Open the storage that a migration is to go to, and make it an empty store of this history.

    It must be empty, or have a fence and be this node's: what another migration has left in it is
    deleted. `fence` is the id of this one. Raises `DataDirError` where it is neither, what
    `Storage.open` does, and `StorageFailed`: then it may be tried again.
    """

    def take_up() -> Book:
        _refuse_foreign(storage, node_id)
        batch = Batch()
        batch.put("meta", META_FENCE, fence)
        storage.apply(batch)  # first: should the rest be interrupted, it may be done again
        for table in TABLES:
            if table != "meta":
                storage.delete_range(table, b"", None)
        batch = Batch()
        for pairs in chunks(storage, "meta", b"", None):
            for key, _ in pairs:
                batch.delete("meta", key)
        _put_identity(batch, node_id, history)
        batch.put("meta", META_FENCE, fence)
        storage.apply(batch)
        return _book_of(storage, node_id, wall)

    return _opened(storage, take_up)


def _opened(storage: Storage, take_up: Callable[[], Book]) -> Book:
    storage.open()
    try:
        return take_up()
    except BaseException:
        storage.close()
        raise


def _book_of(storage: Storage, node_id: int, wall: Callable[[], int]) -> Book:
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
    _put_identity(batch, node_id, new_history())
    storage.apply(batch)


def _put_identity(batch: Batch, node_id: int, history: str) -> None:
    batch.put("meta", META_FORMAT, str(FORMAT).encode())
    batch.put("meta", META_NODE, pack_number(node_id))
    batch.put("meta", META_HISTORY, history.encode())


def _pass_fence(storage: Storage, *, in_charge: bool) -> None:
    if storage.get("meta", META_FENCE) is None:
        return
    if not in_charge:
        raise DataDirError(
            "The store is what a migration has left behind, or has not finished: it is not the"
            " latest. Start with the storage that was in charge, and migrate to this one."
        )
    batch = Batch()
    batch.delete("meta", META_FENCE)
    storage.apply(batch)


def _refuse_foreign(storage: Storage, node_id: int) -> None:
    """Refuse a store with anything in it that is not worthless."""
    if not any(storage.count(table) for table in TABLES):
        return
    owner = storage.get("meta", META_NODE)
    whose = "" if owner is None or unpack_number(owner) == node_id else " of another node"
    if storage.get("meta", META_FENCE) is None or whose:
        raise DataDirError(
            f"The storage to migrate to holds data{whose} already, which nothing says is"
            " superseded: move it away, or name another place with --set."
        )


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
