"""What a keyspace says about itself: in `/v1/status` and in `/metrics`."""

from collections.abc import Mapping
from typing import Any, Literal

from nkv_core.contracts.context import Measurement
from nkv_core.contracts.storage import Storage
from nkv_core.keyspace.book import Book
from nkv_core.keyspace.committer import Committer
from nkv_core.keyspace.upkeep import Upkeep


def status_of(storage: Storage, book: Book, committer: Committer, upkeep: Upkeep) -> dict[str, Any]:
    """The part of `/v1/status` that is about the keyspace."""
    counts = committer.counts
    return {
        "history": book.history,
        "revision": committer.published,
        "durable": storage.durable,
        "log": {
            "bytes": book.log.size,
            "after_revision": book.log.forgotten,
            "since": book.log.oldest,
        },
        "writes": {
            "asked": counts.writes,
            "groups": counts.groups,
            "changes": counts.changes,
            "failed_groups": counts.failed,
            "overloaded": counts.refused,
            "overdue": counts.late,
            "waiting_bytes": committer.waiting,
        },
        "expired": upkeep.expired,
        "clears": {"hidden": len(book.clears.active), "kept": len(book.kept)},
    }


def measurements_of(book: Book, committer: Committer, upkeep: Upkeep) -> list[Measurement]:
    """The figures of a keyspace."""
    counts = committer.counts
    return [
        _one("nkv_keyspace_revision", "gauge", "Revision of the last change", committer.published),
        _one("nkv_keyspace_writes", "counter", "Writes asked for", counts.writes),
        _one("nkv_keyspace_groups", "counter", "Groups of writes committed", counts.groups),
        _one("nkv_keyspace_changes", "counter", "Changes committed", counts.changes),
        _one("nkv_keyspace_failed_groups", "counter", "Groups not committed", counts.failed),
        _one("nkv_keyspace_overloaded", "counter", "Writes refused for room", counts.refused),
        _one("nkv_keyspace_overdue", "counter", "Writes past their deadline", counts.late),
        _one("nkv_keyspace_waiting_bytes", "gauge", "Bytes of waiting writes", committer.waiting),
        _one("nkv_keyspace_expired", "counter", "Records expired", upkeep.expired),
        _one("nkv_keyspace_log_bytes", "gauge", "Bytes of the change log", book.log.size),
        _one("nkv_keyspace_clears", "gauge", "Clears being reclaimed", len(book.clears.active)),
    ]


def _one(name: str, kind: Literal["counter", "gauge"], text: str, value: float) -> Measurement:
    labels: Mapping[str, str] = {}
    return Measurement(name, kind, text, [(labels, float(value))])
