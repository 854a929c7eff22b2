"""A migration, from its beginning to its end.

    opening    the other storage is opened, emptied and fenced
    copying    what is committed is carried over, and what there was before is copied
    verifying  both are compared by digest
    switching  writers wait behind a barrier; the journal names the other storage
    baking     that one is in charge; what is committed is carried back to the first
    done, or failed, or rolled_back

Until the journal names the other storage, whatever goes wrong leaves the first one in charge. From
then on the first one can come back into charge, by command or where the other one fails, as long as
the migration bakes. No write that was acknowledged is lost either way: the one in charge has it,
and at a switch the other one has it too.
"""

import logging
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from time import monotonic
from typing import Any, Final, Literal

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from nkv_core.contracts.storage import Storage
from nkv_core.errors import MigrationFailed, NkvError, NoMigration, OutcomeUnknown, StorageFailed
from nkv_core.keyspace.draft import Draft
from nkv_core.keyspace.engine import Engine
from nkv_core.keyspace.layout import META_FENCE
from nkv_core.keyspace.local import LocalKeyspace
from nkv_core.keyspace.migration.copying import READ_DEADLINE, copy_all
from nkv_core.keyspace.migration.following import Follower, persist
from nkv_core.keyspace.migration.journal import FORMAT, Entry, Journal, Place, Unfinished
from nkv_core.keyspace.migration.progress import Progress
from nkv_core.keyspace.migration.replay import put_right
from nkv_core.keyspace.migration.verifying import rows_of, verify
from nkv_core.keyspace.reading import Steps
from nkv_core.records import wall_clock
from nkv_core.times import format_time

log: Final = logging.getLogger("nkv.migration")

BARRIER: Final = 0.25  #: seconds that writers wait at most, the journal's own writing aside
_BARRIERS: Final = 20  # so often it is tried
_STUCK: Final = 10.0  # seconds: a storage that is at one write for so long is given up
_FAILING: Final = 5  # groups in a row: a storage that fails so often is given up while it bakes
_LOOK: Final = 0.1  # seconds between looks at both
_CLOSE_DEADLINE: Final = 5.0
_OPENINGS: Final = 3
_OPEN_DEADLINE: Final = 120.0  # an emptied one may have had millions of records

Decision = Literal["commit", "rollback"]


class Migration:
    """Moves a keyspace to another storage. Made by whoever owns both; `run` does all of it."""

    def __init__(
        self,
        keyspace: LocalKeyspace,
        storage: Storage,
        *,
        source: Place,
        target: Place,
        journal: Journal,
        bake: float = 60.0,
    ) -> None:
        """`storage` is not open yet. `bake` is in seconds."""
        self._keyspace: Final = keyspace
        self._storage: Final = storage
        self._journal: Final = journal
        self._before: Entry | None = None  # what the journal said
        self._noted = False  # whether it says something else by now
        self._heir: Engine | None = None
        self.source: Final = source
        self.target: Final = target
        self.in_charge = source
        self.progress: Final = Progress(secrets.token_hex(8), source.storage, target.storage, bake)
        #: Set once it bakes, or is over.
        self.switched: Final = anyio.Event()
        #: Set once it is over.
        self.over: Final = anyio.Event()
        self._follower: Follower | None = None
        self._decided: Final = anyio.Event()
        self._decision: Decision = "commit"
        self._scope: anyio.CancelScope | None = None
        self._failure: NkvError | None = None

    # --- what others ask of it --------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """How far it is, for JSON."""
        follower = self._follower
        return self.progress.shown(
            0 if follower is None or self.progress.over else follower.backlog,
            0 if follower is None else follower.failures,
        )

    async def decide(self, decision: Decision) -> None:
        """Commit it or roll it back; returns once that is done. Raises `NoMigration` where it is
        over, or not so far yet, and `MigrationFailed` where it could not be done.
        """
        phase = self.progress.phase
        if self.progress.over:
            raise NoMigration(f"The migration is over ({phase}).")
        if phase == "baking":
            self._decision = decision
            self._decided.set()
        elif decision == "commit":
            raise NoMigration(f"The migration is not so far yet: it is {phase}.")
        else:
            self._decision = decision
            self._decided.set()  # should it switch in this moment, it switches back
            self._give_up(None)
        await self.over.wait()
        if self.progress.phase != ("done" if decision == "commit" else "rolled_back"):
            raise self.progress.error or MigrationFailed(f"It ended as {self.progress.phase}.")

    async def stop(self) -> None:
        """End it because the node ends: before the switch as if it had not begun, else as done."""
        self._decided.set()
        self._give_up(None)
        await self.over.wait()

    def _give_up(self, error: NkvError | None) -> None:
        """Cancel what is being done before the switch; without an error because of a command."""
        if self._failure is None:
            self._failure = error
        if self._scope is not None:
            self._scope.cancel()

    # --- all of it --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Migrate, bake, and end. Raises nothing but cancellation: then nothing more is changed
        than the journal says, and what it does not name is closed.
        """
        try:
            await self._run()
        finally:
            self.switched.set()
            self.over.set()

    async def _run(self) -> None:
        before = self._keyspace.engine
        log.info("migrating from %s to %s", self.source.storage, self.target.storage)
        try:
            await self._make_ready(before)
            heir = self._keyspace.engine
            if heir is before:
                return
            self.progress.enter("baking")
            self.switched.set()
            log.info("%s is in charge; it is being watched", self.target.storage)
            await self._bake(leader=heir, former=before)
        finally:
            with anyio.CancelScope(shield=True):
                if not self.progress.over:  # the node ends
                    await self._end()
                for engine in (before, self._heir):
                    if engine is not None and engine is not self._keyspace.engine:
                        await engine.close(_CLOSE_DEADLINE)

    # --- before the switch ------------------------------------------------------------------------

    async def _make_ready(self, before: Engine) -> None:
        """Everything up to the switch. Where it does not come to that, all is as it was before."""
        progress = self.progress
        try:
            with anyio.CancelScope() as self._scope:
                await self._migrate(before)
        except Exception as error:  # noqa: BLE001  # whatever it is, the first one serves on
            self._give_up(_meaning(error))
        finally:
            self._scope = None
            if self._keyspace.engine is before:
                with anyio.CancelScope(shield=True):
                    await self._take_back(before)
                progress.error = self._failure
                progress.enter("failed" if self._failure is not None else "rolled_back")
                log.warning(
                    "the migration to %s ended before the switch: %s",
                    self.target.storage,
                    self._failure or "it was called off",
                )

    async def _migrate(self, before: Engine) -> None:
        try:
            self._before = await to_thread.run_sync(self._journal.read)
            self._noted = True
            await self._write_journal(self.source, "copying", self.target)
            heir = await self._opened(self.progress.id.encode())
        except NkvError as error:
            self._give_up(error)
            return
        except OSError as error:
            self._give_up(MigrationFailed(f"The journal cannot be written: {error.strerror}."))
            return
        before.upkeep.keeping = True
        follower = self._follower = Follower(before, heir)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._guarded, partial(self._watch_heir, heir))
            await self._guarded(partial(self._fill, follower, tasks))
            tasks.cancel_scope.cancel()

    async def _fill(self, follower: Follower, tasks: TaskGroup) -> None:
        before, heir, progress = follower.leader, follower.heir, self.progress
        progress.enter("copying")
        progress.total = await self._keyspace.count()
        # Nothing is carried over before this is known.
        total = await self._keyspace.examine(lambda _: before.book.log.total_at(follower.since))
        heir.book.log.begin_at(total, follower.since)
        tasks.start_soon(self._guarded, follower.run)
        await _put_fence(before, progress.id.encode())
        await copy_all(follower, progress.copy)
        progress.enter("verifying")
        different, progress.digest = await verify(follower, progress.compare)
        progress.enter("switching")
        await self._change_places(follower, different, self.target, self.source)

    async def _opened(self, fence: bytes) -> Engine:
        with anyio.move_on_after(_OPEN_DEADLINE):
            for attempt in range(_OPENINGS):
                try:
                    heir = self._heir = await self._keyspace.open_beside(self._storage, fence)
                except StorageFailed:
                    if attempt + 1 == _OPENINGS:
                        raise
                else:
                    return heir
        raise MigrationFailed(f"The other storage did not open in {_OPEN_DEADLINE:g} s.")

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception as error:  # noqa: BLE001  # of a storage of anybody's: it is named
            self._give_up(_meaning(error))

    async def _watch_heir(self, heir: Engine) -> None:
        while True:
            await anyio.sleep(_LOOK)
            if heir.committer.stuck(monotonic()) > _STUCK:
                raise MigrationFailed(f"The other storage has been at one write for {_STUCK:g} s.")

    async def _take_back(self, before: Engine) -> None:
        """Leave everything as it was before the migration began."""
        before.upkeep.keeping = False
        if self._follower is not None:
            self._follower.stop()
        if not self._noted:
            return
        try:
            await before.committer.write(_lift_fence, 0)
            await to_thread.run_sync(self._journal.write, self._before)
        except (NkvError, OSError) as error:
            # The journal goes on naming the first storage, fence or none.
            log.warning("what the migration has left could not be cleared away: %s", error)

    # --- the switch -------------------------------------------------------------------------------

    async def _change_places(
        self, follower: Follower, different: set[bytes], to: Place, from_: Place
    ) -> None:
        """Put the heir in charge, behind a barrier. Raises `MigrationFailed`: then nothing is."""
        for attempt in range(_BARRIERS):
            await follower.kept_up()
            self.progress.barriers += 1
            begun = monotonic()
            if await self._behind_barrier(follower, different, to, from_):
                self.progress.pause = monotonic() - begun
                return
            await anyio.sleep(0.05 * (attempt + 1))
        raise MigrationFailed(f"Writers could not be held up for less than {BARRIER * 1000:g} ms.")

    async def _behind_barrier(
        self, follower: Follower, different: set[bytes], to: Place, from_: Place
    ) -> bool:
        leader, heir = follower.leader, follower.heir
        switched = False
        try:
            with anyio.move_on_after(BARRIER) as scope:
                await leader.committer.pause()
                await follower.caught_up()
                await self._put_right(leader, heir, different)
            if scope.cancelled_caught:
                return False
            with anyio.CancelScope(shield=True):
                await self._name_in_journal(to, from_)
                follower.stop()
                heir.upkeep.keeping = True
                self._follower = Follower(heir, leader)  # what waits is written at once
                self._keyspace.take_over(heir)
                self.in_charge, switched = to, True
            return True
        finally:
            if not switched:
                leader.committer.resume()

    async def _put_right(self, leader: Engine, heir: Engine, different: set[bytes]) -> None:
        """The last look, while nothing moves."""
        if different:
            keys = sorted(different)
            found = await rows_of(leader, keys)
            await persist(heir, partial(put_right, keys, found))
            self.progress.repaired = len(keys)
        if leader.book.clears.active or heir.book.clears.active:
            return  # how much of what they hide is still there differs
        here, there = await _count(leader), await _count(heir)
        if here != there:
            raise MigrationFailed(f"There are {here} records here and {there} there.")

    async def _name_in_journal(self, to: Place, from_: Place) -> None:
        """From here on the journal names the heir. Raises `MigrationFailed` where it does not."""
        try:
            await self._write_journal(to, "baking", from_)
        except OSError as error:
            # It may have been written and only not made durable: what it says is what counts.
            if (entry := await to_thread.run_sync(self._journal.read)) is None or (
                entry.in_charge != to
            ):
                raise MigrationFailed(
                    f"The journal cannot be written: {error.strerror}."
                ) from error

    async def _write_journal(self, in_charge: Place, phase: Any, other: Place | None) -> None:
        migration = None if other is None else Unfinished(self.progress.id, phase, other)
        entry = Entry(FORMAT, in_charge, format_time(wall_clock()), migration)
        await to_thread.run_sync(self._journal.write, entry)

    # --- behind it --------------------------------------------------------------------------------

    async def _bake(self, leader: Engine, former: Engine) -> None:
        """Carry back what is committed, until that is no longer wanted; then end."""
        follower = self._follower
        assert follower is not None  # noqa: S101  # made at the switch
        decision: Decision = "commit"
        trouble: list[NkvError] = []
        async with anyio.create_task_group() as tasks:

            async def watched(work: Callable[[], Awaitable[None]], then: Decision) -> None:
                try:
                    await work()
                except Exception as error:  # noqa: BLE001  # likewise
                    trouble.append(_meaning(error))
                    self._decision = then
                    self._decided.set()

            # Where nothing can be carried back any more, there is nothing to go back to.
            tasks.start_soon(watched, follower.run, "commit")
            tasks.start_soon(watched, partial(self._watch_heir, former), "commit")
            tasks.start_soon(watched, partial(self._watch_leader, leader), "rollback")
            with anyio.move_on_after(self.progress.bake):
                await self._decided.wait()
                decision = self._decision
            if decision == "rollback":
                await self._roll_back(follower, trouble)
            tasks.cancel_scope.cancel()
        if self._follower is not None:
            self._follower.stop()  # of a rollback, the one that was made there
        self.progress.error = trouble[0] if trouble else None
        await self._end()

    async def _watch_leader(self, leader: Engine) -> None:
        """Raise `MigrationFailed` once the storage that has come into charge is none."""
        while True:
            await anyio.sleep(_LOOK)
            committer = leader.committer
            if committer.failing >= _FAILING:
                raise MigrationFailed(f"{self.target.storage} fails to write.")
            if committer.stuck(monotonic()) > _STUCK:
                committer.abandon()
                raise MigrationFailed(f"{self.target.storage} does not come back.")

    async def _roll_back(self, follower: Follower, trouble: list[NkvError]) -> None:
        try:
            await self._change_places(follower, set(), self.source, self.target)
        except Exception as error:
            log.exception("the migration could not be rolled back")
            trouble.append(_meaning(error))

    async def _end(self) -> None:
        """The journal names the one in charge for good, and its fence goes."""
        engine, place = self._keyspace.engine, self.in_charge
        engine.upkeep.keeping = False
        try:
            await self._write_journal(place, "baking", None)
            await engine.committer.write(_lift_fence, 0)
        except (NkvError, OSError) as error:
            log.warning("the end of the migration could not be noted: %s", error)
        self.progress.enter("done" if place is self.target else "rolled_back")
        log.info("the migration is over: %s is in charge", place.storage)


async def _put_fence(engine: Engine, fence: bytes) -> None:
    """Put a fence into the storage in charge: once another one is, it is not the latest."""
    try:
        await engine.committer.write(lambda draft: draft.set_row("meta", META_FENCE, fence), 0)
    except OutcomeUnknown:
        raise
    except NkvError as error:
        # Perhaps its disk is full, which may be why it is being left.
        log.warning("what is left cannot be marked as superseded: %s", error)


def _meaning(error: Exception) -> NkvError:
    if isinstance(error, NkvError):
        return error
    log.error("a migration failed unexpectedly", exc_info=error)
    return MigrationFailed(f"The migration failed: {error!r}.")


def _lift_fence(draft: Draft) -> None:
    draft.set_row("meta", META_FENCE, None)


async def _count(engine: Engine) -> int:
    def count() -> Steps[int]:
        yield from ()
        return engine.storage.count("records")

    return await engine.read(count(), READ_DEADLINE)
