"""View: a draft as a transaction sees it."""

from typing import Final

from nkv_core.contracts.keyspace import Clear, Delete, Operation, Put, Touch, Written
from nkv_core.keyspace.checking import Checker
from nkv_core.keyspace.draft import Draft
from nkv_core.keyspace.plans import carry_out
from nkv_core.records import Record


class DraftView:
    """Implements `contracts.keyspace.View`. It is used while its write is planned, not later."""

    __slots__ = ("_checker", "_draft")

    def __init__(self, draft: Draft, checker: Checker) -> None:
        self._draft: Final = draft
        self._checker: Final = checker

    @property
    def history(self) -> str:
        """The id of the history."""
        return self._draft.book.history

    @property
    def now(self) -> int:
        """Milliseconds since 1970, the same for the whole group of writes."""
        return self._draft.now

    def get(self, key: str) -> Record | None:
        """The record of a key, or None."""
        record = self._draft.find(self._checker.key(key), key)
        return None if record is None or record.expired(self._draft.now) else record

    def put(
        self, key: str, value: bytes, *, expires: int | None = None, cause: str = "put"
    ) -> Written:
        """Set a value."""
        return self._do(Put(key, value, expires, None, cause))

    def delete(self, key: str, *, cause: str = "delete") -> Written:
        """Delete a record."""
        return self._do(Delete(key, None, cause))

    def touch(self, key: str, expires: int | None, *, cause: str = "touch") -> Written:
        """Change a record's expiry."""
        return self._do(Touch(key, expires, None, cause))

    def clear(self, prefix: str = "", *, cause: str = "clear") -> Written:
        """Delete every record whose key begins with `prefix`."""
        return self._do(Clear(prefix, cause))

    def _do(self, operation: Operation) -> Written:
        return carry_out(self._checker.operation(operation), operation, self._draft)
