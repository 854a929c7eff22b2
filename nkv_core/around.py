"""Around: a keyspace that adds nothing to the one within, for those that add something to it."""

from collections.abc import Callable, Sequence

from nkv_core.contracts.keyspace import (
    DEFAULT_OPTIONS,
    Capabilities,
    ChangePage,
    Check,
    Expect,
    Foreign,
    Operation,
    Options,
    Page,
    Replicable,
    Tail,
    Written,
)
from nkv_core.keys import EVERYTHING, Pattern
from nkv_core.records import Record, Token


class Around:
    """Implements `contracts.keyspace.Keyspace` by handing every call on.

    A mesh inherits from it and overrides what it does otherwise. `within` is set before anybody can
    ask, and stays: requests that began with a mesh end with it.
    """

    within: Replicable

    # --- what it is -------------------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        """As the keyspace within."""
        return self.within.capabilities

    @property
    def history(self) -> str:
        """The id of the history that its revisions belong to."""
        return self.within.history

    @property
    def token(self) -> Token:
        """The place behind the last committed change."""
        return self.within.token

    # --- reading ----------------------------------------------------------------------------------

    async def get(self, key: str, options: Options = DEFAULT_OPTIONS) -> Record | None:
        """The record of a key, or None."""
        return await self.within.get(key, options)

    async def scan(
        self,
        pattern: Pattern = EVERYTHING,
        *,
        after: str | None = None,
        limit: int = 1000,
        options: Options = DEFAULT_OPTIONS,
    ) -> Page:
        """Records that match, in key order, beginning behind the key `after`."""
        return await self.within.scan(pattern, after=after, limit=limit, options=options)

    async def count(self) -> int:
        """How many records there are."""
        return await self.within.count()

    async def changes(
        self, since: Token, pattern: Pattern = EVERYTHING, *, limit: int = 1000
    ) -> ChangePage:
        """Changes behind `since`, read from the log."""
        return await self.within.changes(since, pattern, limit=limit)

    def tail(self, listener: Tail) -> Callable[[], None]:
        """Have `listener` called with every commit from now on; returns what ends that."""
        return self.within.tail(listener)

    # --- writing ----------------------------------------------------------------------------------

    async def put(
        self,
        key: str,
        value: bytes,
        *,
        expires: int | None = None,
        expect: Expect = None,
        cause: str = "put",
        options: Options = DEFAULT_OPTIONS,
    ) -> Written:
        """Set a value."""
        return await self.within.put(
            key, value, expires=expires, expect=expect, cause=cause, options=options
        )

    async def delete(
        self,
        key: str,
        *,
        expect: Expect = None,
        cause: str = "delete",
        options: Options = DEFAULT_OPTIONS,
    ) -> Written:
        """Delete a record."""
        return await self.within.delete(key, expect=expect, cause=cause, options=options)

    async def touch(
        self,
        key: str,
        expires: int | None,
        *,
        expect: Expect = None,
        cause: str = "touch",
        options: Options = DEFAULT_OPTIONS,
    ) -> Written:
        """Change a record's expiry."""
        return await self.within.touch(key, expires, expect=expect, cause=cause, options=options)

    async def clear(
        self, prefix: str = "", *, cause: str = "clear", options: Options = DEFAULT_OPTIONS
    ) -> Written:
        """Delete every record whose key begins with `prefix`, as one change."""
        return await self.within.clear(prefix, cause=cause, options=options)

    async def batch(
        self,
        operations: Sequence[Operation],
        checks: Sequence[Check] = (),
        options: Options = DEFAULT_OPTIONS,
    ) -> list[Written]:
        """Carry out all operations if every condition holds; otherwise none."""
        return await self.within.batch(operations, checks, options)

    async def apply_foreign(self, records: Sequence[Foreign]) -> int:
        """Take records of other nodes, each only where it is newer than what is here."""
        return await self.within.apply_foreign(records)
