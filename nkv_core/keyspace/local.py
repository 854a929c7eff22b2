"""The local keyspace: the records of one node, over a storage that the node owns."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Final, TypeVar

import anyio
from anyio.abc import TaskStatus
from anyio.lowlevel import checkpoint

from nkv_core.contracts.context import Measurement, State
from nkv_core.contracts.keyspace import (
    DEFAULT_OPTIONS,
    Capabilities,
    ChangePage,
    Check,
    Clear,
    Delete,
    EntryPage,
    Expect,
    Foreign,
    Merge,
    Operation,
    Options,
    Page,
    Put,
    Tail,
    Touch,
    Transaction,
    Written,
)
from nkv_core.contracts.settings import KeyspaceSettings
from nkv_core.contracts.storage import Storage
from nkv_core.errors import BadRequest, DeadlineExceeded, Stopping
from nkv_core.keys import EVERYTHING, Pattern
from nkv_core.keyspace.checking import WRITE_BYTES, Checker, size_of
from nkv_core.keyspace.draft import Draft
from nkv_core.keyspace.entries import read_entries
from nkv_core.keyspace.figures import measurements_of, status_of
from nkv_core.keyspace.opening import open_book
from nkv_core.keyspace.parts import Parts
from nkv_core.keyspace.plans import apply_foreign, carry_out, carry_out_all
from nkv_core.keyspace.reading import Steps
from nkv_core.keyspace.state import PluginState
from nkv_core.keyspace.upkeep import Upkeep
from nkv_core.keyspace.view import DraftView
from nkv_core.loop import Pending, Worker
from nkv_core.records import RangeTombstone, Record, Token, wall_clock

log = logging.getLogger("nkv.keyspace")

T = TypeVar("T")

_FOREIGN_BYTES: Final = 4 * 1024 * 1024  # of records of other nodes that are taken at once
_FOREIGN_COUNT: Final = 1000


class LocalKeyspace:
    """Implements `contracts.keyspace.Keyspace`. Open it, run it, close it.

    Where the storage reads inline, `get` neither waits nor lets others have a turn; where it also
    writes inline, the same holds for every write. A writer runs on only when every tail has been
    called with its change, and `token` is past it by then.

    A record is read as soon as the storage has it, which may be a moment before its change is told:
    a page of `scan` may hold revisions later than `token`.
    """

    def __init__(
        self,
        storage: Storage,
        settings: KeyspaceSettings,
        *,
        node_id: int,
        wall: Callable[[], int] = wall_clock,
        copy_to: Path | None = None,
    ) -> None:
        """`wall` gives milliseconds since 1970; `copy_to` is a folder for a copy of the store
        should it have to be upgraded.
        """
        self._storage: Final = storage
        #: Its limits, and how long it remembers what.
        self.settings: Final = settings
        self._node_id: Final = node_id
        self._wall: Final = wall
        self._copy_to: Final = copy_to
        self._checker: Final = Checker(settings)
        self._check_key: Final = self._checker.key
        self._open: Parts | None = None
        self._get: Callable[[str, bytes], Record | None] | None = None  # only where it reads inline

    # --- its life -----------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the storage and take up what is in it.

        Raises `DataDamaged`, `NewerFormat`, `StartError`, `StorageFull`, or `DataDirError` where
        the store belongs to another node.
        """
        if self._open is not None:
            raise RuntimeError("The keyspace is open already.")
        opening = partial(
            open_book,
            self._storage,
            node_id=self._node_id,
            wall=self._wall,
            copy_to=self._copy_to,
        )
        reading = Worker("nkv-reader") if self._storage.reads == "thread" else None
        # Planning a write reads, so one that has to read in a thread is made in a thread.
        threaded = reading is not None or self._storage.writes == "thread"
        writing = Worker("nkv-writer") if threaded else None
        try:
            book = opening() if writing is None else await writing.run(opening)
        except BaseException:
            if writing is not None:
                # Where the waiting was cut short, the thread may yet open it: this comes behind.
                writing.submit(self._storage.close, _ignore)
                writing.close()
            if reading is not None:
                reading.close()
            raise
        self._open = Parts(book, self.settings, writing, reading)
        self._get = None if reading is not None else self._open.reader.get

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Expire records, reclaim room, bound the log, and fail overdue writes, until cancelled."""
        parts = self._parts()
        async with anyio.create_task_group() as tasks:
            if parts.writing is not None:
                tasks.start_soon(parts.committer.watch_deadlines)
            tasks.start_soon(parts.upkeep.run)
            task_status.started()

    async def aclose(self) -> None:
        """Finish the writes under way, refuse new ones, and close the storage. Closing twice does
        nothing. A storage that does not come back is left behind after `keyspace.write_deadline`.
        """
        parts, self._get = self._open, None
        if parts is None or parts.committer.closing:
            return
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(self.settings.write_deadline) as scope:
                await parts.committer.close()
                if parts.writing is None:
                    self._storage.close()
                else:
                    await parts.writing.run(self._storage.close)
            if scope.cancelled_caught:
                log.error("The storage has not come back in time; it was left as it is.")
        self._open = None
        for worker in (parts.reading, parts.writing):
            if worker is not None:
                worker.close()

    def _parts(self) -> Parts:
        if self._open is None:
            raise Stopping("The keyspace is not open.")
        return self._open

    # --- what it is ---------------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        """What it can do: everything."""
        return Capabilities(
            batch="any",
            compare_and_set="linearizable",
            history=True,
            expiry=True,
            durable=self._storage.durable,
        )

    @property
    def storage(self) -> Storage:
        """Where it keeps everything. Others may only read it, and through `read`."""
        return self._storage

    @property
    def history(self) -> str:
        """The id of the history that its revisions belong to."""
        return self._parts().book.history

    @property
    def token(self) -> Token:
        """The place behind the last committed change that was told."""
        parts = self._parts()
        return Token(parts.book.history, parts.committer.published)

    @property
    def upkeep(self) -> Upkeep:
        """Does at once what `run` does in the background."""
        return self._parts().upkeep

    def status(self) -> dict[str, Any]:
        """What `/v1/status` shows of it."""
        parts = self._parts()
        return status_of(self._storage, parts.book, parts.committer, parts.upkeep)

    def measurements(self) -> list[Measurement]:
        """What `/metrics` shows of it."""
        parts = self._parts()
        return measurements_of(parts.book, parts.committer, parts.upkeep)

    def state(self, plugin: str) -> State:
        """The durable state of a plugin."""
        return PluginState(plugin, self, self._storage, self.settings.state_bytes)

    # --- reading ------------------------------------------------------------------------------

    async def get(self, key: str, options: Options = DEFAULT_OPTIONS) -> Record | None:
        """The record of a key, or None."""
        if self._get is not None:
            return self._get(key, self._check_key(key))
        parts, encoded = self._parts(), self._check_key(key)
        if parts.reading is None:
            raise Stopping("The keyspace is closed.")
        seconds = self._seconds(options)
        with anyio.move_on_after(seconds):
            return await parts.reading.run(partial(parts.reader.get, key, encoded))
        raise DeadlineExceeded(f"Reading took longer than {seconds} seconds.")

    async def scan(
        self,
        pattern: Pattern = EVERYTHING,
        *,
        after: str | None = None,
        limit: int = 1000,
        options: Options = DEFAULT_OPTIONS,
    ) -> Page:
        """Records that match, in key order, beginning behind the key `after`.

        A page ends early where its records are large. Each part of it is of one moment, the whole
        is not.
        """
        _check_limit(limit)
        behind = None if after is None else self._checker.prefix(after)
        return await self.read(self._parts().reader.scan(pattern, behind, limit), options)

    async def count(self) -> int:
        """How many records there are."""
        parts = self._parts()
        with anyio.move_on_after(self.settings.write_deadline):
            async with parts.upkeep.reclaiming:
                return await self.read(parts.reader.count())
        raise DeadlineExceeded("Counting took too long.")

    async def changes(
        self, since: Token, pattern: Pattern = EVERYTHING, *, limit: int = 1000
    ) -> ChangePage:
        """Changes behind `since`, read from the log, up to `token`."""
        _check_limit(limit)
        parts = self._parts()
        return await self.read(
            parts.reader.changes(since, parts.committer.published, pattern, limit)
        )

    async def entries(self, after: str | None = None, *, limit: int = 1000) -> EntryPage:
        """What is known of each key, deletions too, beginning behind the key `after`."""
        _check_limit(limit)
        if after is not None:
            self._check_key(after)
        return await self.read(read_entries(self._parts().book, after, limit))

    def clears(self) -> list[RangeTombstone]:
        """The clears that are remembered."""
        return list(self._parts().book.kept)

    def tail(self, listener: Tail) -> Callable[[], None]:
        """Have `listener` called with every commit from now on; returns what ends that."""
        return self._parts().committer.tail(listener)

    async def read(self, steps: Steps[T], options: Options = DEFAULT_OPTIONS) -> T:
        """Drive a read to its end, where the storage wants it. Raises `DeadlineExceeded`."""
        worker, seconds = self._parts().reading, self._seconds(options)
        end = monotonic() + seconds
        with anyio.move_on_after(seconds if worker is not None else None):
            while monotonic() < end:
                done, result = (
                    _advance(steps)
                    if worker is None
                    else await worker.run(partial(_advance, steps))
                )
                if done:
                    return result  # type: ignore[return-value]
                await checkpoint()
        raise DeadlineExceeded(f"Reading took longer than {seconds} seconds.")

    async def examine(self, read: Callable[[Storage], T]) -> T:
        """What a function gives that only reads the storage, called where reading belongs."""

        def steps() -> Steps[T]:
            yield
            return read(self._storage)

        return await self.read(steps())

    def _seconds(self, options: Options) -> float:
        return self.settings.write_deadline if options.deadline is None else options.deadline

    # --- writing ------------------------------------------------------------------------------

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
        """Set a value. Raises `ConditionFailed` or `OtherHistory` where `expect` does not hold."""
        return await self._one(Put(key, value, expires, expect, cause), options)

    async def delete(
        self,
        key: str,
        *,
        expect: Expect = None,
        cause: str = "delete",
        options: Options = DEFAULT_OPTIONS,
    ) -> Written:
        """Delete a record; `previous` is None where there was none. Raises as `put`."""
        return await self._one(Delete(key, expect, cause), options)

    async def touch(
        self,
        key: str,
        expires: int | None,
        *,
        expect: Expect = None,
        cause: str = "touch",
        options: Options = DEFAULT_OPTIONS,
    ) -> Written:
        """Change a record's expiry; `previous` is None where there was none. Raises as `put`."""
        return await self._one(Touch(key, expires, expect, cause), options)

    async def clear(
        self, prefix: str = "", *, cause: str = "clear", options: Options = DEFAULT_OPTIONS
    ) -> Written:
        """Delete every record whose key begins with `prefix`, as one change."""
        return await self._one(Clear(prefix, cause), options)

    async def batch(
        self,
        operations: Sequence[Operation],
        checks: Sequence[Check] = (),
        options: Options = DEFAULT_OPTIONS,
    ) -> list[Written]:
        """Carry out all operations, in order, if every condition holds; otherwise none."""
        checked, conditions = self._checker.batch(operations, checks)
        size = sum(size_of(*one) for one in checked) + sum(size_of(*one) for one in conditions)
        return await self.write(partial(carry_out_all, checked, conditions), size, options.deadline)

    async def apply_foreign(self, records: Sequence[Foreign], merge: Merge | None = None) -> int:
        """Take records and tombstones of other nodes as they are, each only where it is newer than
        what is here; returns how many were. Nothing is taken where one of them is not valid.

        Many are taken in parts, each of which is atomic. Of none, it waits until all that was
        committed before is told.
        """
        checked = [(self._checker.foreign(one), one) for one in records]
        taken = 0
        part: list[tuple[bytes, Foreign]] = []
        size = 0
        for encoded, one in checked:
            part.append((encoded, one))
            size += size_of(encoded, one)
            if len(part) >= _FOREIGN_COUNT or size >= _FOREIGN_BYTES:
                taken += await self.write(partial(apply_foreign, part, merge), size)
                part, size = [], 0
        if part or not checked:
            taken += await self.write(partial(apply_foreign, part, merge), size)
        return taken

    # --- without waiting: `contracts.keyspace.Prompt` --------------------------------------------

    def get_now(self, key: str) -> Record | Awaitable[Record | None] | None:
        """The record of a key, or None; to be awaited where the storage reads in a thread."""
        if self._get is not None:
            return self._get(key, self._check_key(key))
        return self.get(key)

    def write_now(self, operation: Operation) -> Written | Pending[Written]:
        """Carry out one operation; to be awaited where the storage writes in a thread."""
        encoded = self._checker.operation(operation)
        return self._parts().committer.begin(
            partial(carry_out, encoded, operation),
            size_of(encoded, operation),
            None,
            None if isinstance(operation, Clear) else encoded,
        )

    def transact_now(
        self, transaction: Transaction[T], keys: Sequence[str], size: int = 0
    ) -> T | Pending[T]:
        """Carry out a transaction, in its place among all writes: it never has to be repeated."""
        checker = self._checker
        return self._parts().committer.begin(
            lambda draft: transaction(DraftView(draft, checker)),
            size + WRITE_BYTES * max(len(keys), 1),
            None,
            checker.key(keys[0]) if len(keys) == 1 else None,
        )

    async def _one(self, operation: Operation, options: Options) -> Written:
        encoded = self._checker.operation(operation)
        return await self._parts().committer.write(
            partial(carry_out, encoded, operation),
            size_of(encoded, operation),
            options.deadline,
            None if isinstance(operation, Clear) else encoded,
        )

    async def write(
        self, plan: Callable[[Draft], T], size: int, deadline: float | None = None
    ) -> T:
        """Have a write planned and committed."""
        return await self._parts().committer.write(plan, size, deadline)


def _advance(steps: Steps[T]) -> tuple[bool, T | None]:
    try:
        next(steps)
    except StopIteration as end:
        return True, end.value
    return False, None


def _check_limit(limit: int) -> None:
    if limit < 1:
        raise BadRequest(f"The limit is {limit}; it must be at least 1.")


def _ignore(*_: object) -> None:
    """Whether a storage that nobody uses closes well is not worth more than its own log."""
