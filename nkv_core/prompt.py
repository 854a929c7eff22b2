"""Prompt: any keyspace as plain functions, which give a result at once where it is there at once.

A keyspace that has such functions of its own (`contracts.keyspace.Prompt`) is used as it is. For
all others a transaction is carried out by compare-and-set: run on what was read, made as one batch
under the condition that nothing of it has changed, and run again where it has.
"""

from collections.abc import Awaitable, Sequence
from typing import Any, Final, TypeVar, cast

import msgspec

from nkv_core.contracts.keyspace import (
    Check,
    Clear,
    Delete,
    Keyspace,
    Operation,
    Presence,
    Prompt,
    Put,
    Touch,
    Transaction,
    Written,
)
from nkv_core.errors import ConditionFailed, Overloaded
from nkv_core.keys import check_key
from nkv_core.records import Record, Version, wall_clock

T = TypeVar("T")

#: How often a transaction is run before it is given up: others were faster every time.
TRIES: Final = 64
#: How many times one run may meet a key that was not read yet.
_READS: Final = 10_000


def prompt_of(keyspace: Keyspace) -> Prompt:
    """The keyspace itself where it has the functions of `Prompt`, else one made of it."""
    if hasattr(keyspace, "transact_now"):
        return cast("Prompt", keyspace)
    return Optimistic(keyspace)


class Optimistic:
    """Implements `contracts.keyspace.Prompt` by what every keyspace has."""

    __slots__ = ("_keyspace",)

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace: Final = keyspace

    def get_now(self, key: str) -> Awaitable[Record | None]:
        """The record of a key, or None."""
        return self._keyspace.get(key)

    def write_now(self, operation: Operation) -> Awaitable[Written]:
        """Carry out one operation."""
        return self._write(operation)

    def transact_now(
        self, transaction: Transaction[T], keys: Sequence[str], size: int = 0
    ) -> Awaitable[T]:
        """Carry out a transaction, again where others were faster. Raises `Overloaded` where they
        always were.
        """
        return self._transact(transaction, keys)

    async def _write(self, operation: Operation) -> Written:
        if isinstance(operation, Clear):  # which many can do that have no batches
            return await self._keyspace.clear(operation.prefix, cause=operation.cause)
        if isinstance(operation, Delete):
            return await self._keyspace.delete(
                operation.key, expect=operation.expect, cause=operation.cause
            )
        if isinstance(operation, Touch):
            return await self._keyspace.touch(
                operation.key, operation.expires, expect=operation.expect, cause=operation.cause
            )
        return await self._keyspace.put(
            operation.key,
            operation.value,
            expires=operation.expires,
            expect=operation.expect,
            cause=operation.cause,
        )

    async def _transact(self, transaction: Transaction[T], keys: Sequence[str]) -> T:
        wanted = list(dict.fromkeys(keys))
        for _ in range(TRIES):
            read = {key: await self._keyspace.get(key) for key in wanted}
            overlay, result = await self._run(transaction, read)
            wanted = list(read)
            try:
                await self._commit(overlay, read)
            except ConditionFailed:
                continue
            return result
        raise Overloaded("Others have changed the same keys every time: try again shortly.")

    async def _run(
        self, transaction: Transaction[T], read: dict[str, Record | None]
    ) -> "tuple[_Overlay, T]":
        for _ in range(_READS):
            overlay = _Overlay(self._keyspace.history, read)
            try:
                return overlay, transaction(overlay)
            except _Unread as unread:
                key = unread.key
            read[key] = await self._keyspace.get(key)
        raise Overloaded(f"The transaction looks at more than {_READS} keys.")

    async def _commit(self, overlay: "_Overlay", read: dict[str, Record | None]) -> None:
        operations = overlay.operations
        checks = [
            Check(key, Presence.ABSENT if at is None else Version(overlay.history, at.revision))
            for key, at in read.items()
        ]
        if not operations:
            return
        if len(operations) == 1 and len(checks) <= 1 and not isinstance(operations[0], Clear):
            # What needs no batch works where there are none.
            only = operations[0]
            expect = checks[0].expect if checks and checks[0].key == only.key else None
            if expect is not None or not checks:
                await self._write(msgspec.structs.replace(only, expect=expect))
                return
        await self._keyspace.batch(operations, checks)


class _Unread(BaseException):  # no error, and not for the transaction to catch
    """A transaction has come to a key that was not read yet."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key: Final = key


class _Overlay:
    """Implements `contracts.keyspace.View` over what was read."""

    def __init__(self, history: str, read: dict[str, Record | None]) -> None:
        self.history: Final = history
        self.now: Final = wall_clock()
        self.operations: Final[list[Operation]] = []
        self._read = read
        self._changed: dict[str, Record | None] = {}
        self._cleared: list[str] = []

    def get(self, key: str) -> Record | None:
        check_key(key)
        if key in self._changed:
            return self._changed[key]
        if any(key.startswith(prefix) for prefix in self._cleared):
            return None
        try:
            record = self._read[key]
        except KeyError:
            raise _Unread(key) from None
        return None if record is None or record.expired(self.now) else record

    def put(
        self, key: str, value: bytes, *, expires: int | None = None, cause: str = "put"
    ) -> Written:
        before = self.get(key)
        return self._change(Put(key, value, expires, None, cause), before, value, expires)

    def delete(self, key: str, *, cause: str = "delete") -> Written:
        before = self.get(key)
        if before is not None:
            self.operations.append(Delete(key, None, cause))
            self._changed[key] = None
        return Written(None, None, before)

    def touch(self, key: str, expires: int | None, *, cause: str = "touch") -> Written:
        before = self.get(key)
        if before is None:
            return Written(None, None, None)
        return self._change(Touch(key, expires, None, cause), before, before.value, expires)

    def clear(self, prefix: str = "", *, cause: str = "clear") -> Written:
        self.operations.append(Clear(prefix, cause))
        self._cleared.append(prefix)
        for key in [key for key in self._changed if key.startswith(prefix)]:
            del self._changed[key]
        return Written(None, None, None)

    def _change(
        self, operation: Operation, before: Record | None, value: bytes, expires: int | None
    ) -> Written:
        key: Any = operation.key  # type: ignore[union-attr]  # never a clear
        after = Record(key, value, 0, 0, 0, expires)
        self.operations.append(operation)
        self._changed[key] = after
        return Written(None, after, before)
