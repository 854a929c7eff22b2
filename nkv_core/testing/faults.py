"""A storage that fails and stalls on demand, around one that works."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Lock
from typing import Any, Final
from weakref import WeakValueDictionary

from nkv_core.contracts.storage import Batch, Storage, Table, Where
from nkv_core.errors import NkvError, StorageFailed, StorageFull

_HELD_SECONDS: Final = 30.0  # a test that forgets to let go fails instead of hanging

_remembered: Final[WeakValueDictionary[str, "FaultyStorage"]] = WeakValueDictionary()


class Held:
    """A writer that is held in front of the storage."""

    def __init__(self) -> None:
        self.entered: Final = Event()  #: set once a write has arrived
        self.let_go: Final = Event()  #: set it, and the write goes on


class FaultyStorage:
    """Wraps a `Storage`; its writes (`apply` and `delete_range`) fail as they are told to.

    A write that fails has changed nothing, as the contract wants. Faults may be set from any
    thread and take effect with the next write. `reads` and `writes` replace those of the storage
    inside, so that one that works inline can be driven through a thread.
    """

    def __init__(
        self, storage: Storage, *, reads: Where | None = None, writes: Where | None = None
    ) -> None:
        self.inside: Final = storage
        self.reads: Where = reads or storage.reads
        self.writes: Where = writes or storage.writes
        self.durable: bool = storage.durable
        self.written = 0  #: writes that were made
        self.failed = 0  #: writes that were made to fail
        self.opened = False
        self.node: Any = None  #: whose storage it is, of the fixture `faulty_storage`
        self._lock: Final = Lock()
        self._planned: dict[int, NkvError] = {}  # by how many writes come before it
        self._always: NkvError | None = None
        self._fraction = 0.0
        self._random = random.Random(0)  # noqa: S311  # for tests, and to be repeatable
        self._held: Held | None = None

    # --- what is to go wrong ----------------------------------------------------------------------

    def fail_next(self, error: NkvError | None = None) -> None:
        """Have the next write fail, with `StorageFailed` unless told otherwise."""
        self.fail_nth(1, error)

    def fail_nth(self, nth: int, error: NkvError | None = None) -> None:
        """Have the `nth` write from now on fail, 1 being the next. Several may be planned."""
        with self._lock:
            self._planned[self.written + self.failed + nth - 1] = error or _failure()

    def fail_randomly(self, fraction: float, seed: int = 0) -> None:
        """Have this fraction of all writes fail, 0 for none; the same ones for the same seed."""
        with self._lock:
            self._fraction = fraction
            self._random = random.Random(seed)  # noqa: S311

    def fail_always(self, error: NkvError | None = None) -> None:
        """Have every write fail until `heal`."""
        with self._lock:
            self._always = error or _failure()

    def fill(self) -> None:
        """Have every write fail as on a full disk, until `heal`."""
        self.fail_always(StorageFull("The disk is full, for a test."))

    def heal(self) -> None:
        """Take back every fault."""
        with self._lock:
            self._planned.clear()
            self._always = None
            self._fraction = 0.0

    @contextmanager
    def hold(self) -> Iterator[Held]:
        """Hold the next write inside the block until `let_go` is set, or the block is left.

        Only for writes that run in a thread: one on the event loop would stall the test itself.
        """
        held = Held()
        with self._lock:
            self._held = held
        try:
            yield held
        finally:
            held.let_go.set()
            with self._lock:
                self._held = None

    # --- the storage ------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the storage inside."""
        self.inside.open()
        self.opened = True

    def close(self) -> None:
        """Close the storage inside."""
        self.opened = False
        self.inside.close()

    def get(self, table: Table, key: bytes) -> bytes | None:
        """As the storage inside."""
        return self.inside.get(table, key)

    def get_many(self, table: Table, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """As the storage inside."""
        return self.inside.get_many(table, keys)

    def apply(self, batch: Batch) -> None:
        """As the storage inside, where no fault is due."""
        self._meet_faults()
        self.inside.apply(batch)
        self.written += 1

    def scan(
        self,
        table: Table,
        start: bytes = b"",
        stop: bytes | None = None,
        *,
        limit: int,
        reverse: bool = False,
    ) -> list[tuple[bytes, bytes]]:
        """As the storage inside."""
        return self.inside.scan(table, start, stop, limit=limit, reverse=reverse)

    def count(self, table: Table) -> int:
        """As the storage inside."""
        return self.inside.count(table)

    def delete_range(self, table: Table, start: bytes, stop: bytes | None) -> int:
        """As the storage inside, where no fault is due."""
        self._meet_faults()
        deleted = self.inside.delete_range(table, start, stop)
        self.written += 1
        return deleted

    def _meet_faults(self) -> None:
        with self._lock:
            held, self._held = self._held, None
        if held is not None:
            held.entered.set()
            if not held.let_go.wait(_HELD_SECONDS):
                raise StorageFailed("A test held a write and never let it go.")
        with self._lock:
            error = self._always or self._planned.pop(self.written + self.failed, None)
            if error is None and self._random.random() < self._fraction:
                error = _failure()
            if error is not None:
                self.failed += 1
                raise error


def _failure() -> StorageFailed:
    return StorageFailed("The storage failed, for a test.")


def remember(known_as: str, storage: FaultyStorage) -> None:
    """Have `remembered` find a storage that a plugin has made, as long as it lives."""
    _remembered[known_as] = storage


def remembered(known_as: str) -> FaultyStorage:
    """A storage that was made in this process. Raises `KeyError`."""
    return _remembered[known_as]
