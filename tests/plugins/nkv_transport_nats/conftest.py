"""Nodes that speak the dialect over a real NATS server, and clients as they were."""

import json
from contextlib import asynccontextmanager

import anyio
import httpx2
import nats
import pytest

from ..nats_nodes import DEADLINE, flags_with, serving_with

NATS = "nkv_transport_nats"


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


class Client:
    """A client of the dialect."""

    def __init__(self, client):
        self.nats = client
        self.told = {}
        self._more = anyio.Event()
        self._number = 0

    async def raw(self, verb, body, headers=None):
        answer = await self.nats.request(f"pubsub.{verb}", body, timeout=30, headers=headers)
        return json.loads(answer.data)

    async def ask(self, kind, key, value=None, headers=None):
        number = self._number = self._number + 1
        request = {"type": kind, "id": number, "key": key}
        if value is not None:
            request["value"] = list(value)
        (answer,) = (await self.raw(kind.lower(), json.dumps(request).encode(), headers)).items()
        form, fields = answer
        assert fields.pop("id") == number
        return form, fields

    async def hear(self, key):
        """Listen to the subject of a key."""
        told = self.told[key] = []

        async def note(message):
            told.append(json.loads(message.data)["msg_type"])
            self._more.set()
            self._more = anyio.Event()

        await self.nats.subscribe(f"pub-{key}", cb=note)
        await self.nats.flush()
        return told

    async def until(self, condition):
        with anyio.fail_after(DEADLINE):
            while not condition():
                await self._more.wait()

    async def there_again(self):
        with anyio.fail_after(DEADLINE):
            while True:
                try:
                    await self.nats.flush(1)
                    return
                except nats.errors.Error:
                    await anyio.sleep(0.01)


@pytest.fixture
def shown():
    """What the transport shows, once it fulfils a condition."""

    async def shown(node, condition=lambda _: True):
        (url,) = [url for url in node.addresses if url.startswith("http:")]
        async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=DEADLINE) as client:
            while True:
                status = (await client.get("/v1/status/nats")).json()
                if condition(status):
                    return status
                await anyio.sleep(0.01)

    return shown


async def _nothing(*_):
    pass


@pytest.fixture
def connecting():
    """A client while the block runs."""

    @asynccontextmanager
    async def connecting(server):
        client = await nats.connect(
            server.url, error_cb=_nothing, reconnect_time_wait=0.01, max_reconnect_attempts=-1
        )
        try:
            yield Client(client)
        finally:
            await client.close()

    return connecting
