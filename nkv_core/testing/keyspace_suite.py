"""What the suites of keyspaces share: how they are driven, and what an implementer may adapt."""

from collections.abc import Callable
from typing import ClassVar

import anyio
import pytest

from nkv_core.contracts.keyspace import Keyspace
from nkv_core.errors import NotSupportedHere
from nkv_core.keys import EVERYTHING, Pattern
from nkv_core.records import Change, Token, Version, wall_clock


class KeyspaceSuite:
    """See `KeyspaceContract`."""

    #: The greatest value that the keyspace takes, in bytes.
    max_value_bytes: ClassVar[int] = 1024 * 1024
    #: How long what must happen soon may take, in seconds.
    patience: ClassVar[float] = 5.0

    @pytest.fixture
    def keyspace(self) -> Keyspace:
        """An empty keyspace that works; closed when the test is over. To be overridden."""
        raise NotImplementedError("A suite needs the fixture `keyspace`.")

    def now(self) -> int:
        """Milliseconds since 1970, as the keyspace has it."""
        return wall_clock()

    async def pass_time(self, milliseconds: int) -> None:
        """Let time pass for the keyspace. One with a clock of its own moves that on."""
        await anyio.sleep(milliseconds / 1000)

    async def eventually(self, holds: Callable[[], bool]) -> None:
        """Wait until `holds()`: what a watcher is told may arrive after the write returns."""
        with anyio.fail_after(self.patience):
            while not holds():  # noqa: ASYNC110  # any condition, of which nobody tells
                await anyio.sleep(0.005)


def version_of(keyspace: Keyspace, revision: int | None) -> Version:
    """The version of the write with this revision, which is not None."""
    assert revision is not None  # noqa: S101
    return Version(keyspace.history, revision)


async def all_changes(
    keyspace: Keyspace, since: Token, pattern: Pattern = EVERYTHING, limit: int = 1000
) -> list[Change]:
    """Every change behind a place, page by page."""
    changes: list[Change] = []
    while True:
        page = await keyspace.changes(since, pattern, limit=limit)
        assert not page.gap  # noqa: S101
        changes += page.changes
        if not page.changes:
            return changes
        since = page.token


async def all_keys(
    keyspace: Keyspace, pattern: Pattern = EVERYTHING, limit: int = 1000
) -> list[str]:
    """The keys of all records that match, page by page."""
    keys: list[str] = []
    after: str | None = None
    while True:
        page = await keyspace.scan(pattern, after=after, limit=limit)
        assert len(page.records) <= limit  # noqa: S101
        keys += [record.key for record in page.records]
        if page.after is None:
            return keys
        after = page.after


def needs_history(keyspace: Keyspace) -> None:
    """Skip the test where the keyspace keeps no history, and says so."""
    if not keyspace.capabilities.history:
        pytest.skip("keeps no history")


def needs_expiry(keyspace: Keyspace) -> None:
    """Skip the test where records do not expire here, and the keyspace says so."""
    if not keyspace.capabilities.expiry:
        pytest.skip("has no expiry")


def needs_batch(keyspace: Keyspace) -> None:
    """Skip the test where batches over several keys are not possible, and the keyspace says so."""
    if keyspace.capabilities.batch != "any":
        pytest.skip("has no batches over any keys")


async def needs_foreign(keyspace: Keyspace) -> None:
    """Skip the test where the keyspace refuses records of other nodes."""
    try:
        await keyspace.apply_foreign(())
    except NotSupportedHere:
        pytest.skip("takes no records of other nodes")
