"""Puts made without a draft: nobody can tell them from those that are made with one."""

from unittest import mock

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nkv_core.contracts.keyspace import Clear, Delete, Presence, Put, Touch
from nkv_core.contracts.storage import TABLES
from nkv_core.errors import NkvError, OutcomeUnknown, StorageFailed
from nkv_core.keyspace.committer import Committer

pytestmark = pytest.mark.anyio

KEYS = st.sampled_from(["a", "a.ü"])
VALUES = st.binary(max_size=3)
EXPIRIES = st.none() | st.integers(1, 3).map(lambda n: 1_800_000_000_000 + n)
EXPECTS = st.sampled_from([None, None, None, Presence.ABSENT, Presence.PRESENT])
OPERATIONS = st.one_of(
    st.builds(Put, KEYS, VALUES, st.just(None), st.just(None), st.sampled_from(["put", "set"])),
    st.builds(Put, KEYS, VALUES, EXPIRIES, EXPECTS),
    st.builds(Delete, KEYS, EXPECTS),
    st.builds(Touch, KEYS, EXPIRIES),
    st.builds(Clear, st.sampled_from(["", "a", "b"])),
    st.integers(0, 2),  # milliseconds that go by
)


async def lived(storage, open_keyspace, wall, operations):
    """All that can be seen of a keyspace that was asked to do this."""
    begun, outcomes, told = wall.now, [], []
    async with open_keyspace(storage) as keyspace:
        keyspace.tail(told.append)
        for operation in operations:
            if isinstance(operation, int):
                wall.now += operation
                continue
            try:
                outcomes.append(keyspace.write_now(operation))
            except NkvError as error:
                outcomes.append(error.code)
        counted = {each.name: each.samples for each in keyspace.measurements()}
        counted["commits"] = keyspace.engine.book.commits
        rows = {table: storage.scan(table, limit=1000) for table in TABLES if table != "meta"}
    wall.now = begun
    return outcomes, [list(each) for each in told], counted, rows


@settings(
    max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # they make new ones
@given(st.lists(OPERATIONS, min_size=4, max_size=12))
def test_whatever_came_before_the_rows_and_what_is_told_are_the_same(
    kept_storage, open_keyspace, wall, operations
):
    async def both():
        alone = await lived(kept_storage(), open_keyspace, wall, operations)
        with mock.patch.object(Committer, "put_now", return_value=None):
            drafted = await lived(kept_storage(), open_keyspace, wall, operations)
        assert alone == drafted

    anyio.run(both)


async def test_a_plain_put_needs_no_draft(kept_storage, open_keyspace):
    async with open_keyspace(kept_storage()) as keyspace:
        with mock.patch("nkv_core.keyspace.committer.Draft", side_effect=AssertionError):
            assert (await keyspace.put("a", b"1")).revision == 1
            assert keyspace.write_now(Put("a", b"2")).previous.value == b"1"


async def test_one_that_fails_is_counted_told_to_nobody_and_leaves_nothing(
    kept_storage, open_keyspace
):
    storage, told = kept_storage(), []
    async with open_keyspace(storage) as keyspace:
        keyspace.tail(told.extend)
        await keyspace.put("a", b"1")
        storage.fail_next()
        with pytest.raises(StorageFailed):
            await keyspace.put("a", b"2")
        assert keyspace.engine.committer.counts.failed == keyspace.engine.committer.failing == 1
        assert (await keyspace.get("a")).value == b"1"
        assert [change.value for change in told] == [b"1"]
        # The revision that was given to it is not given again.
        assert (await keyspace.put("a", b"3")).revision == 3
        assert keyspace.engine.committer.failing == 0


async def test_one_that_fails_as_no_storage_may_leaves_its_outcome_open(
    kept_storage, open_keyspace
):
    storage = kept_storage()
    async with open_keyspace(storage) as keyspace:
        with (
            mock.patch.object(storage, "apply", side_effect=ValueError("broken")),
            pytest.raises(OutcomeUnknown, match="broken"),
        ):
            await keyspace.put("a", b"1")
