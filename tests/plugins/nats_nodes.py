"""What the tests of plugins that speak to a NATS server share: nodes with such a plugin."""

from contextlib import asynccontextmanager

import anyio

from nkv_core.config import load_settings, section_of
from nkv_core.node import Node

DEADLINE = 60


def flags_with(plugin, tmp_path):
    """The settings of a node with this plugin, which comes back to its server without delay."""
    section = section_of(plugin)
    return {
        "node.data_dir": str(tmp_path / "data"),
        "transport.http.port": 0,
        "storage.name": "memory",
        "plugins.load": [plugin],
        f"{section}.backoff": 0.01,
        f"{section}.max_backoff": 0.05,
    }


def serving_with(plugin, flags):
    """What serves nodes with these settings, over a server, and others of the plugin on top."""
    section = section_of(plugin)

    @asynccontextmanager
    async def serving(server, **more):
        changed = {f"{section}.{name}": value for name, value in more.items()}
        changed[f"{section}.servers"] = [server.url]
        with anyio.fail_after(DEADLINE):
            async with Node(load_settings(flags={**flags, **changed})) as node:
                yield node

    return serving
