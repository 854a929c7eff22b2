"""A storage that fails at random: nothing acknowledged is lost, nothing that failed is seen."""

import anyio
import pytest

from nkv_core.contracts.keyspace import Delete, Put
from nkv_core.errors import StorageFailed
from nkv_core.records import Token

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("seed", range(4))
async def test_what_was_acknowledged_is_there_and_what_failed_is_not(storage, open_keyspace, seed):
    acknowledged = {}  # key -> value, of the last write that was answered with yes
    revisions, failed, told = [], 0, []

    async def write(keyspace, name):
        nonlocal failed
        for number in range(40):
            key, value = f"{name}.{number % 5}", b"%d" % number
            try:
                if number % 7 == 3:
                    some = [Put(key, value), Put(f"{key}.twin", value), Delete(f"{name}.0")]
                    written = await keyspace.batch(some)
                    acknowledged[f"{key}.twin"] = value
                else:
                    written = [await keyspace.put(key, value)]
            except StorageFailed:
                failed += 1
                await anyio.lowlevel.checkpoint()
                continue
            acknowledged[key] = value
            if number % 7 == 3:
                acknowledged.pop(f"{name}.0", None)
            revisions.extend(one.revision for one in written if one.revision is not None)

    async def compare(keyspace):
        page = await keyspace.scan()
        assert {record.key: record.value for record in page.records} == acknowledged
        assert await keyspace.count() == len(acknowledged)
        changes = (await keyspace.changes(Token(keyspace.history, 0))).changes
        assert [change.revision for change in changes] == sorted(revisions)

    async with open_keyspace(storage) as keyspace:
        keyspace.tail(told.extend)
        storage.fail_randomly(0.25, seed)
        async with anyio.create_task_group() as tasks:
            for name in "abcdef":
                tasks.start_soon(write, keyspace, name)
        storage.heal()
        assert failed > 5
        assert len(acknowledged) > 5
        assert [change.revision for change in told] == sorted(revisions)
        await compare(keyspace)
    async with open_keyspace(storage) as keyspace:
        await compare(keyspace)
