"""A put by itself: what `plans` and a draft make of it in general, made in one go.

Most writes to a storage that writes inline are single puts without a condition, and a draft, which
is there for groups of writes that see each other and can be undone, costs more than all else that
is done for one. The rows are the same; a test holds the two against each other.
"""

from nkv_core.contracts.keyspace import Put, Written
from nkv_core.contracts.storage import Batch
from nkv_core.errors import NkvError, OutcomeUnknown
from nkv_core.keyspace.book import Book
from nkv_core.records import Change, Record, pack_record, unpack_record


def is_plain(put: Put, book: Book) -> bool:
    """Whether there is nothing about a put but its value, and nothing hides what was there."""
    return put.expect is None and put.expires is None and not book.clears.active


def put_alone(encoded: bytes, put: Put, book: Book) -> tuple[Written, Change] | None:
    """Make a plain put; None where what is there before has an expiry, and nothing was done.

    Raises `StorageFailed` where nothing was done, and `OutcomeUnknown` as `Book.commit`.
    """
    key, value, storage, log = put.key, put.value, book.storage, book.log
    before: Record | None = None
    previous: int | None = None
    packed = storage.get("records", encoded)
    if packed is not None:
        before = unpack_record(key, packed)
        if before.expires is not None:
            return None
        previous = before.revision
    now, modified, origin = book.wall(), book.clock.now(), book.node_id
    book.revision = revision = book.revision + 1  # not given again, whatever becomes of it
    record = Record(key, value, revision, modified, origin)
    change = Change("put", put.cause, key, revision, modified, origin, value, previous)
    row = log.row(change, now, modified)
    batch = Batch({"records": {encoded: pack_record(record)}, "changes": {row.key: row.value}})
    try:
        storage.apply(batch)
    except NkvError:
        raise
    except BaseException as error:
        raise OutcomeUnknown(f"The storage failed unexpectedly: {error!r}.") from error
    book.commits += 1
    log.grown(row.total, now)
    return Written(revision, record, before), change
