"""Guarded view: what a transaction sees and does, for one who may not do everything."""

from typing import Protocol

from nkv_core.contracts.keyspace import View, Written
from nkv_core.records import Record


class Guard(Protocol):
    """What one may: the keyspace that is guarded."""

    def must_read(self, prefix: str) -> None:
        """Raise `Forbidden` without the right to read every key that begins with `prefix`."""

    def must_write(self, prefix: str) -> None:
        """Raise `Forbidden` without the right to write every key that begins with `prefix`."""

    def told(self, written: Written) -> Written:
        """What this one may know of what a write did."""


class GuardedView:
    """Implements `contracts.keyspace.View`. Raises `Forbidden` for what they may not."""

    __slots__ = ("_guard", "_view")

    def __init__(self, view: View, guard: Guard) -> None:
        self._view = view
        self._guard = guard

    @property
    def history(self) -> str:
        """The id of the history."""
        return self._view.history

    @property
    def now(self) -> int:
        """Milliseconds since 1970."""
        return self._view.now

    def get(self, key: str) -> Record | None:
        """Needs the right to read the key."""
        self._guard.must_read(key)
        return self._view.get(key)

    def put(
        self, key: str, value: bytes, *, expires: int | None = None, cause: str = "put"
    ) -> Written:
        """Needs the right to write the key."""
        self._guard.must_write(key)
        return self._guard.told(self._view.put(key, value, expires=expires, cause=cause))

    def delete(self, key: str, *, cause: str = "delete") -> Written:
        """Needs the right to write the key."""
        self._guard.must_write(key)
        return self._guard.told(self._view.delete(key, cause=cause))

    def touch(self, key: str, expires: int | None, *, cause: str = "touch") -> Written:
        """Needs the right to write the key."""
        self._guard.must_write(key)
        return self._guard.told(self._view.touch(key, expires, cause=cause))

    def clear(self, prefix: str = "", *, cause: str = "clear") -> Written:
        """Needs the right to write every key that begins with the prefix."""
        self._guard.must_write(prefix)
        return self._view.clear(prefix, cause=cause)
