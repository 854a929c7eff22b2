"""Views: how commands see the keyspace where no transaction is needed, and who made a change."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Never

from nkv_core.contracts.keyspace import Prompt, View, Written
from nkv_core.records import Record, wall_clock

if TYPE_CHECKING:
    from .session import Session


class Waits(Exception):
    """The keyspace cannot be read without waiting."""


class ReadView:
    """Committed records, for commands that only read. Raises `Waits` where that is not possible."""

    __slots__ = ("_prompt",)

    history = ""

    def __init__(self, prompt: Prompt) -> None:
        self._prompt: Final = prompt

    @property
    def now(self) -> int:
        """Milliseconds since 1970."""
        return wall_clock()

    def get(self, key: str) -> Record | None:
        """The record of a key, or None."""
        record = self._prompt.get_now(key)
        if record is None or isinstance(record, Record):
            return record
        give_up(record)
        raise Waits

    def put(
        self, key: str, value: bytes, *, expires: int | None = None, cause: str = "put"
    ) -> Never:
        """Not here."""
        raise NotImplementedError

    def delete(self, key: str, *, cause: str = "delete") -> Never:
        """Not here."""
        raise NotImplementedError

    def touch(self, key: str, expires: int | None, *, cause: str = "touch") -> Never:
        """Not here."""
        raise NotImplementedError

    def clear(self, prefix: str = "", *, cause: str = "clear") -> Never:
        """Not here."""
        raise NotImplementedError


def give_up(awaited: Awaitable[Any]) -> None:
    """Let go of something that is not going to be awaited."""
    close = getattr(awaited, "close", None)
    if close is not None:
        close()


class NotingView:
    """A view that notes the revisions of what is changed through it."""

    __slots__ = ("_revisions", "_view")

    def __init__(self, view: View, revisions: list[int]) -> None:
        self._view: Final = view
        self._revisions: Final = revisions

    @property
    def history(self) -> str:
        """The id of the history."""
        return self._view.history

    @property
    def now(self) -> int:
        """Milliseconds since 1970."""
        return self._view.now

    def get(self, key: str) -> Record | None:
        """The record of a key, or None."""
        return self._view.get(key)

    def put(
        self, key: str, value: bytes, *, expires: int | None = None, cause: str = "put"
    ) -> Written:
        """Set a value."""
        return self._note(self._view.put(key, value, expires=expires, cause=cause))

    def delete(self, key: str, *, cause: str = "delete") -> Written:
        """Delete a record."""
        return self._note(self._view.delete(key, cause=cause))

    def touch(self, key: str, expires: int | None, *, cause: str = "touch") -> Written:
        """Change a record's expiry."""
        return self._note(self._view.touch(key, expires, cause=cause))

    def clear(self, prefix: str = "", *, cause: str = "clear") -> Written:
        """Delete every record whose key begins with `prefix`."""
        return self._note(self._view.clear(prefix, cause=cause))

    def _note(self, written: Written) -> Written:
        if written.revision is not None:
            self._revisions.append(written.revision)
        return written


def noting(session: "Session", transaction: Callable[[View], Any]) -> Callable[[View], Any]:
    """The transaction, noting what it changes where its client does not want to be told of that.

    The revisions are noted when the transaction is planned, and looked at only once its changes
    are told, which comes later.
    """
    tracking = session.tracking
    if tracking is None or not tracking.no_loop:
        return transaction

    def noted(view: View) -> Any:
        revisions: list[int] = []
        result = transaction(NotingView(view, revisions))
        session.own(revisions)
        return result

    return noted
