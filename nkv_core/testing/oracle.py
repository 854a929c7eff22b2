"""An oracle: clients that use a keyspace at random, and know what must be found in it afterwards.

Each client owns keys that nobody else writes, so that it knows at any moment what a read must give;
all together count on shared keys by compare-and-set, so that an update which is lost shows in the
sum; and the change stream is followed by token, so that what is missing, repeated or out of order
shows there. Whatever becomes of the storage below meanwhile, none of that may be noticed.
"""

import random
from collections.abc import Sequence
from typing import Any, Final

import anyio

from nkv_core.contracts.keyspace import Delete, Operation, Presence, Put, Written
from nkv_core.errors import ConditionFailed, NkvError, OutcomeUnknown
from nkv_core.keyspace import LocalKeyspace
from nkv_core.records import Change, Record, Version, wall_clock

_OWN_KEYS: Final = 12
_COUNTERS: Final = 3
_TTL_MS: Final = (1, 120)
_STEP: Final = 0.0005  # seconds between two steps of a client, at most


class Oracle:
    """Clients of one keyspace. Run it as long as it is to be used, then `check`."""

    def __init__(self, keyspace: LocalKeyspace, seed: int, clients: int = 6) -> None:
        self._keyspace: Final = keyspace
        self._seed: Final = seed
        self._clients: Final = clients
        self._since: Final = keyspace.token
        self._stopped = False
        self._followed_up = anyio.Event()
        self.changes: Final[list[Change]] = []  #: as the stream tells them, by token
        self.told: Final[list[Change]] = []  #: as a tail is told them
        self.acknowledged: Final[dict[int, Record | None]] = {}  #: by revision
        self.counted: Final[dict[str, int]] = {}  #: increments that were acknowledged
        self.unknown = 0  #: writes of which the outcome is not known
        self.refused = 0  #: writes that failed and must not be there
        self.steps = 0
        self._wrong: Final[list[str]] = []

    async def run(self) -> None:
        """Have the clients work until `stop`, and follow the stream to its end."""
        end = self._keyspace.tail(self.told.extend)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._follow)
                async with anyio.create_task_group() as clients:
                    for number in range(self._clients):
                        clients.start_soon(self._client, number)
                self._followed_up.set()
        finally:
            end()

    def stop(self) -> None:
        """Let each client end behind its step."""
        self._stopped = True

    # --- what the clients do ----------------------------------------------------------------------

    async def _client(self, number: int) -> None:
        chance = random.Random(self._seed * 1000 + number)  # noqa: S311  # to be repeatable
        expected: dict[str, Record | None] = {}
        while not self._stopped:
            key = f"own.{number}.{chance.randrange(_OWN_KEYS)}"
            try:
                await self._step(chance, key, expected)
            except ConditionFailed:
                self._wrong.append(f"{key}: a condition failed that held")
            except OutcomeUnknown:
                self.unknown += 1
                expected[key] = await self._keyspace.get(key)
            except NkvError:
                self.refused += 1
            self.steps += 1
            await self._look(key, expected)
            await anyio.sleep(chance.random() * _STEP)

    async def _step(
        self, chance: random.Random, key: str, expected: dict[str, Record | None]
    ) -> None:
        keyspace = self._keyspace
        value = b"%d" % chance.getrandbits(64) + b"x" * chance.randrange(200)
        record = expected.get(key)
        kind = chance.randrange(8)
        if kind <= 2:
            self._note(expected, key, await keyspace.put(key, value))
        elif kind == 3:
            expires = wall_clock() + chance.randint(*_TTL_MS)
            self._note(expected, key, await keyspace.put(key, value, expires=expires))
        elif kind == 4:
            self._note(expected, key, await keyspace.delete(key))
        elif kind == 5 and record is not None and record.expires is None:
            version = Version(self._since.history, record.revision)
            self._note(expected, key, await keyspace.put(key, value, expect=version))
        elif kind == 6:
            later = f"{key}.pair"
            operations: Sequence[Operation] = [Put(later, value), Delete(key)]
            written = await keyspace.batch(operations)
            for one, outcome in zip((later, key), written, strict=True):
                self._note(expected, one, outcome)
        elif kind == 7 and chance.random() < 0.1:
            prefix = f"own.{key.split('.')[1]}."
            outcome = await keyspace.clear(prefix)
            if outcome.revision is not None:
                self.acknowledged[outcome.revision] = None
            for one in expected:
                expected[one] = None
        else:
            await self._count(f"counter.{chance.randrange(_COUNTERS)}")

    async def _count(self, key: str) -> None:
        """Increase a number that all clients increase."""
        while not self._stopped:
            record = await self._keyspace.get(key)
            number = 0 if record is None else int(record.value)
            expect = (
                Presence.ABSENT if record is None else Version(self._since.history, record.revision)
            )
            try:
                written = await self._keyspace.put(key, b"%d" % (number + 1), expect=expect)
            except ConditionFailed:
                continue
            self.counted[key] = self.counted.get(key, 0) + 1
            self._acknowledge(written)
            return

    def _note(self, expected: dict[str, Record | None], key: str, written: Written) -> None:
        expected[key] = written.record
        self._acknowledge(written)

    def _acknowledge(self, written: Written) -> None:
        if written.revision is None:
            return
        if written.revision in self.acknowledged:
            self._wrong.append(f"revision {written.revision} was given twice")
        self.acknowledged[written.revision] = written.record

    async def _look(self, key: str, expected: dict[str, Record | None]) -> None:
        """A client reads what it has written."""
        wanted, found = expected.get(key), await self._keyspace.get(key)
        if found is None and wanted is not None and wanted.expired(wall_clock()):
            return
        if found != wanted:
            self._wrong.append(f"{key} was read as {found}, and had been written as {wanted}")

    async def _follow(self) -> None:
        place = self._since
        while True:
            last = self._followed_up.is_set()
            page = await self._keyspace.changes(place, limit=500)
            if page.gap:
                self._wrong.append(f"the stream had a gap behind {place}")
            self.changes.extend(page.changes)
            if last and page.token == place:
                return
            place = page.token
            await anyio.sleep(0.002)

    # --- what must be found -----------------------------------------------------------------------

    async def check(self) -> None:
        """Raise `AssertionError` for whatever was lost, stale, resurrected or repeated."""
        assert not self._wrong, self._wrong[:10]
        revisions = [change.revision for change in self.changes]
        assert revisions == sorted(set(revisions)), "the stream was repeated or out of order"
        told = [change.revision for change in self.told]  # of an expiry more, perhaps
        assert told[: len(revisions)] == revisions, "a tail was told otherwise"
        missing = set(self.acknowledged) - set(revisions)
        assert not missing, f"acknowledged, and not in the stream: {sorted(missing)[:10]}"
        by_revision = {change.revision: change for change in self.changes}
        for revision, record in self.acknowledged.items():
            change = by_revision[revision]
            assert record is None or (change.key, change.value) == (record.key, record.value)
        found = await self._all()
        if not self.unknown:
            for key, number in self.counted.items():
                assert found[key].value == b"%d" % number, f"{key} has lost an update"
        assert _lasting(found) == self._replayed(), "what is there is not what the stream says"

    async def _all(self) -> dict[str, Record]:
        found: dict[str, Record] = {}
        after: str | None = None
        while True:
            page = await self._keyspace.scan(after=after, limit=100)
            found.update((record.key, record) for record in page.records)
            if page.after is None:
                return found
            after = page.after

    def _replayed(self) -> dict[str, Any]:
        """What there must be, according to the stream."""
        state: dict[str, Record] = {}
        for change in self.changes:
            if change.kind == "clear":
                state = {k: v for k, v in state.items() if not k.startswith(change.key)}
            elif change.kind == "delete":
                state.pop(change.key, None)
            else:
                state[change.key] = Record(
                    change.key,
                    change.value or b"",
                    change.revision,
                    change.modified,
                    change.origin,
                    change.expires,
                )
        return _lasting(state)


def _lasting(records: dict[str, Record]) -> dict[str, Record]:
    """Those that cannot expire while they are looked at."""
    return {key: record for key, record in records.items() if record.expires is None}
