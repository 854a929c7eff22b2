"""A node with the plugin, and real clients of the protocol."""

import asyncio
from contextlib import asynccontextmanager

import aiohttp
import anyio
import httpx2
import pytest
import socketio

from nkv_core.config import load_settings
from nkv_core.node import Node

DEADLINE = 30
SOCKETIO = "nkv_notifier_socketio"


@pytest.fixture
def anyio_backend():
    """The only one that the library runs on."""
    return "asyncio"


class Client:
    """A client that notes what it is told."""

    def __init__(self, url, transports, headers):
        self.url, self.transports, self.headers = url, transports, headers
        # One of ours: the library leaves one behind at each reconnection, and sends the headers of
        # `connect` with the first of its polls only.
        self.http = aiohttp.ClientSession(headers=headers)
        self.sio = socketio.AsyncClient(
            http_session=self.http, reconnection_delay=0.05, reconnection_delay_max=0.1
        )
        self.connected, self.updates = [], []
        self._told = asyncio.Event()
        self.sio.on("connected", self._connected)
        self.sio.on("key_update", self._update)

    async def connect(self):
        await self.sio.connect(self.url, transports=self.transports, headers=self.headers)
        await self.until(lambda: self.connected)

    async def _connected(self, data):
        self.connected.append(data)
        self._tell()

    async def _update(self, data):
        self.updates.append(data)
        self._tell()

    def _tell(self):
        self._told.set()
        self._told = asyncio.Event()

    async def until(self, condition):
        with anyio.fail_after(DEADLINE):
            while not condition():
                await self._told.wait()

    async def until_told(self, count):
        await self.until(lambda: len(self.updates) >= count)

    async def close(self):
        """Part without a word: over polling, parting in good order takes as long as a ping."""
        self.sio.reconnection = False
        if (reconnecting := self.sio._reconnect_task) is not None:
            reconnecting.cancel()
        engine = self.sio.eio
        tasks = [task for task in (engine.read_loop_task, engine.write_loop_task) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.http.close()


@pytest.fixture
def connecting():
    """A client that is connected while the block runs."""

    @asynccontextmanager
    async def connecting(node, *transports, headers=None):
        client = Client(node.addresses[0], list(transports) or None, headers or {})
        try:
            with anyio.fail_after(DEADLINE):
                await client.connect()
            yield client
        finally:
            with anyio.CancelScope(shield=True):
                await client.close()

    return connecting


@pytest.fixture
def flags(tmp_path):
    return {
        "node.data_dir": str(tmp_path / "data"),
        "transport.http.port": 0,
        "storage.name": "memory",
        "plugins.load": [SOCKETIO],
    }


@pytest.fixture
def serving(flags):
    """A node with these settings, and others on top."""

    @asynccontextmanager
    async def serving(**more):
        changed = {f"notifier.socketio.{name}": value for name, value in more.items()}
        with anyio.fail_after(2 * DEADLINE):
            async with Node(load_settings(flags={**flags, **changed})) as node:
                yield node

    return serving


@pytest.fixture
def web():
    """A plain HTTP client of a node."""

    @asynccontextmanager
    async def web(node):
        url = node.addresses[0]
        async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=DEADLINE) as client:
            yield client

    return web


@pytest.fixture
def shown(web):
    """What the plugin shows, once it fulfils a condition."""

    async def shown(node, condition=lambda _: True):
        async with web(node) as client:
            while True:
                status = (await client.get("/v1/notifiers/socketio")).json()
                if condition(status):
                    return status
                await anyio.sleep(0.01)

    return shown
