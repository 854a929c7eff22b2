"""The local keyspace: the records of one node, over a storage that the node owns."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
from anyio.abc import TaskStatus

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
from nkv_core.keyspace.engine import Engine, open_engine
from nkv_core.keyspace.entries import read_entries
from nkv_core.keyspace.figures import measurements_of, status_of
from nkv_core.keyspace.opening import open_book, open_target
from nkv_core.keyspace.plans import apply_foreign, carry_out, carry_out_all
from nkv_core.keyspace.reading import Steps
from nkv_core.keyspace.state import PluginState
from nkv_core.keyspace.upkeep import Upkeep
from nkv_core.keyspace.view import DraftView
from nkv_core.keyspace.writes import Tails
from nkv_core.loop import Pending
from nkv_core.records import RangeTombstone, Record, Token, wall_clock

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

    The storage may be exchanged for another one (`take_over`) between two operations. Only while
    that is being made ready may a write wait where it otherwise does not.
    """

    def __init__(
        self,
        storage: Storage,
        settings: KeyspaceSettings,
        *,
        node_id: int,
        wall: Callable[[], int] = wall_clock,
        copy_to: Path | None = None,
        in_charge: bool = False,
    ) -> None:
        """`wall` gives milliseconds since 1970; `copy_to` is a folder for a copy of the store
        should it have to be upgraded; `in_charge` says that a journal names the storage.
        """
        self._storage = storage
        #: Its limits, and how long it remembers what.
        self.settings: Final = settings
        self._node_id: Final = node_id
        self._wall: Final = wall
        self._copy_to: Final = copy_to
        self._in_charge: Final = in_charge
        self._checker: Final = Checker(settings)
        self._check_key: Final = self._checker.key
        self._open: Engine | None = None
        self._get: Callable[[str, bytes], Record | None] | None = None  # only where it reads inline
        self._tails: Final = Tails()
        self._taken_over: anyio.Event | None = None  # while it runs

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
            in_charge=self._in_charge,
        )
        self._use(await open_engine(self._storage, self.settings, opening, self._tails))

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Expire records, reclaim room, bound the log, and fail overdue writes, until cancelled."""
        self._parts()
        task_status.started()
        while True:
            self._taken_over = anyio.Event()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._parts().run)
                await self._taken_over.wait()
                tasks.cancel_scope.cancel()

    async def aclose(self) -> None:
        """Finish the writes under way, refuse new ones, and close the storage. Closing twice does
        nothing. A storage that does not come back is left behind after `keyspace.write_deadline`.
        """
        parts, self._get = self._open, None
        if parts is not None:
            await parts.close(self.settings.write_deadline)
            self._open = None

    # --- changing the storage -----------------------------------------------------------------

    @property
    def engine(self) -> Engine:
        """What is in charge. Raises `Stopping` where the keyspace is not open."""
        return self._parts()

    async def open_beside(self, storage: Storage, fence: bytes) -> Engine:
        """Open a storage that is to follow the one in charge: see `opening.open_target`."""
        opening = partial(
            open_target,
            storage,
            node_id=self._node_id,
            history=self.history,
            wall=self._wall,
            fence=fence,
        )
        return await open_engine(storage, self.settings, opening, aside=True)

    def take_over(self, engine: Engine) -> None:
        """Put another engine in charge, which has followed the present one up to here, in one step
        that gives way to no other task. The present one is paused, and follows from now on.
        """
        before = self._parts()
        engine.book.clock.observe(before.book.clock.last)
        engine.book.revision = max(engine.book.revision, before.book.revision)
        engine.book.state_sizes.clear()
        engine.upkeep.expired = before.upkeep.expired
        self._use(engine)
        before.committer.hand_over(engine.committer)
        if self._taken_over is not None:
            self._taken_over.set()

    def _use(self, engine: Engine) -> None:
        self._open, self._storage = engine, engine.storage
        self._get = None if engine.reading is not None else engine.reader.get

    def _parts(self) -> Engine:
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
        return PluginState(plugin, self, self.settings.state_bytes)

    # --- reading ------------------------------------------------------------------------------

    async def get(self, key: str, options: Options = DEFAULT_OPTIONS) -> Record | None:
        """The record of a key, or None."""
        if self._get is not None:
            return self._get(key, self._check_key(key))
        parts, encoded = self._parts(), self._check_key(key)
        if parts.reading is None:
            raise Stopping("The keyspace is closed.")
        return await parts.read(
            _one_step(partial(parts.reader.get, key, encoded)), self._seconds(options)
        )

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
                return await parts.read(parts.reader.count(), self.settings.write_deadline)
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
        self._parts()
        return self._tails.add(listener)

    async def read(self, steps: Steps[T], options: Options = DEFAULT_OPTIONS) -> T:
        """Drive a read to its end, where the storage wants it. Raises `DeadlineExceeded`."""
        return await self._parts().read(steps, self._seconds(options))

    async def examine(self, read: Callable[[Storage], T]) -> T:
        """What a function gives that only reads the storage, called where reading belongs."""
        return await self.read(_one_step(lambda: read(self._storage)))

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
        committer = self._parts().committer
        if (written := committer.put_now(encoded, operation)) is not None:
            return written
        return committer.begin(
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
        committer = self._parts().committer
        if (written := committer.put_now(encoded, operation)) is not None:
            return written
        return await committer.write(
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


def _one_step(read: Callable[[], T]) -> Steps[T]:
    yield from ()
    return read()


def _check_limit(limit: int) -> None:
    if limit < 1:
        raise BadRequest(f"The limit is {limit}; it must be at least 1.")
