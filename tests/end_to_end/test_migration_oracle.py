"""Real storages are exchanged below clients that go on, a stranger's among them."""

import os
from pathlib import Path

import anyio
import pytest

from nkv_core.config import load_settings
from nkv_core.node import Node
from nkv_core.testing import Oracle

SEEDS = range(20) if os.environ.get("NKV_SOAK") == "1" else [1]
EXAMPLE = Path(__file__).parents[2] / "docs/examples/nkv-example/src/nkv_example"

pytestmark = pytest.mark.anyio


async def step_further(oracle, steps=300):
    before = oracle.steps
    with anyio.fail_after(60):
        while oracle.steps < before + steps:
            await anyio.sleep(0.002)


@pytest.mark.parametrize("seed", SEEDS)
async def test_migration_oracle(tmp_path, seed):
    flags = {"node.data_dir": str(tmp_path / "data"), "transport.http.port": 0}
    first = {**flags, "storage.name": "memory", "plugins.load": [str(EXAMPLE)]}
    async with Node(load_settings(flags=first)) as node:
        oracle = Oracle(node.local, seed)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(oracle.run)
            await step_further(oracle)
            for name in ("diskcache", "sqlite", "diskcache"):
                with anyio.fail_after(120):
                    await node.storages.migrate(name)
                assert node.storages.status()["in_charge"] == name
                await step_further(oracle)
                await node.storages.commit()
                await step_further(oracle)
            with anyio.fail_after(120):
                await node.storages.migrate("memory", allow_volatile=True)
            await step_further(oracle)
            await node.storages.rollback()
            await step_further(oracle)
            oracle.stop()
        await oracle.check()
        assert (oracle.refused, oracle.unknown) == (0, 0)
        everything = await node.local.scan()
    async with Node(load_settings(flags=flags)) as again:
        lasting = [one for one in everything.records if one.expires is None]
        for record in lasting:
            assert await again.local.get(record.key) == record
