"""Nodes that publish to a real NATS server, and a client that hears them."""

from contextlib import asynccontextmanager

import anyio
import httpx2
import nats
import pytest

from ..nats_nodes import DEADLINE, flags_with, serving_with

NATS = "nkv_notifier_nats"


@pytest.fixture
def anyio_backend():
    """The only one that the library runs on."""
    return "asyncio"


@pytest.fixture
def flags(tmp_path):
    return flags_with(NATS, tmp_path)


@pytest.fixture
def serving(flags):
    """A node with these settings, and others on top."""
    return serving_with(NATS, flags)


class Heard:
    """What a subscriber has heard. It comes back by itself when the server does."""

    def __init__(self):
        self.messages = []
        self._more = anyio.Event()

    async def hear(self, message):
        self.messages.append(message)
        self._more.set()
        self._more = anyio.Event()

    async def until(self, condition):
        with anyio.fail_after(DEADLINE):
            while not condition():
                await self._more.wait()

    async def until_heard(self, count):
        await self.until(lambda: len(self.messages) >= count)

    async def there_again(self):
        """Wait until the subscriber has come back to a server that was started again."""
        with anyio.fail_after(DEADLINE):
            while True:
                try:
                    await self.client.flush(1)
                    return
                except nats.errors.Error:
                    await anyio.sleep(0.01)

    @property
    def tokens(self):
        return [message.headers["Nkv-Token"] for message in self.messages]

    @property
    def subjects(self):
        return [message.subject for message in self.messages]


async def _nothing(*_):
    pass


@pytest.fixture
def hearing():
    """A subscriber while the block runs."""

    @asynccontextmanager
    async def hearing(server, subject="nkv.>", **options):
        client = await nats.connect(
            server.url,
            error_cb=_nothing,
            reconnect_time_wait=0.01,
            max_reconnect_attempts=-1,
            **options,
        )
        heard = Heard()
        heard.client = client
        try:
            await client.subscribe(subject, cb=heard.hear)
            await client.flush()
            yield heard
        finally:
            await client.close()

    return hearing


@pytest.fixture
def settled():
    """What the plugin shows, once it fulfils a condition."""

    async def settled(node, condition):
        async with httpx2.AsyncClient(base_url=node.addresses[0], trust_env=False) as client:
            while not condition(status := (await client.get("/v1/notifiers/nats")).json()):
                await anyio.sleep(0.01)
            return status

    return settled
