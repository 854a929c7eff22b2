"""A whole node with the notifier, and clients that read its streams."""

import json
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlencode

import anyio
import h11
import httpx2
import pytest

from nkv_core.config import load_settings
from nkv_core.node import Node

ROOT = Path(__file__).parents[3]
PLUGIN = str(ROOT / "plugins" / "nkv_notifier_sse")
DEADLINE = 20


class Event:
    """One event, or what only sets the id or the time to retry (then it has no name)."""

    def __init__(self, block, last_id):
        self.name = self.retry = self.data = None
        self.id = last_id
        for line in block.decode().split("\n"):
            field, _, value = line.partition(": ")
            if field == "data":
                self.data = json.loads(value)
            elif field == "event":
                self.name = value
            elif field == "retry":
                self.retry = int(value)
            elif field == "id":
                self.id = value
            else:
                assert line == ":", block

    def __repr__(self):
        return f"<{self.name} {self.id} {self.data}>"


class Reader:
    """Reads one stream. `id` is what an EventSource would send as Last-Event-ID."""

    def __init__(self, stream):
        self.stream = stream
        self._http = h11.Connection(h11.CLIENT)
        self._text = b""
        self.id = None
        self.opening = None

    async def begin(self, target, headers):
        fields = [("Host", "localhost"), *headers.items()]
        await self.stream.send(
            self._http.send(h11.Request(method="GET", target=target, headers=fields))
            + self._http.send(h11.EndOfMessage())
        )
        response = await self._part()
        assert response.status_code == 200
        self.opening = await self.any()

    async def _part(self):
        while (part := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self.stream.receive())
        return part

    async def any(self):
        """The next event, or block without one; None at the end."""
        while b"\n\n" not in self._text:
            part = await self._part()
            if isinstance(part, h11.EndOfMessage):
                assert self._text == b"", "an event was cut in two"
                return None
            self._text += bytes(part.data)
        block, _, self._text = self._text.partition(b"\n\n")
        event = Event(block, self.id)
        self.id = event.id
        return event

    async def next(self):
        """The next event; None at the end."""
        while (event := await self.any()) is not None:
            if event.name is not None:
                return event
        return None

    async def take(self, count):
        return [await self.next() for _ in range(count)]

    async def until(self, name):
        events = []
        while not events or events[-1].name != name:
            event = await self.next()
            assert event is not None, events
            events.append(event)
        return events

    async def rest(self):
        events = []
        while (event := await self.next()) is not None:
            events.append(event)
        return events


class Served:
    """A node that serves, and a client of it."""

    def __init__(self, node, client):
        self.node, self.client = node, client
        self.keyspace, self.hub, self.plugins = node.keyspace, node.hub, node.plugins

    @asynccontextmanager
    async def watch(self, *, last_event_id=None, headers=None, **params):
        """Read the stream once it has begun."""
        headers = dict(headers or {})
        if last_event_id is not None:
            headers["Last-Event-ID"] = str(last_event_id)
        target = f"/v1/watch?{urlencode(params)}"
        async with await self.connect() as stream:
            reader = Reader(stream)
            await reader.begin(target, headers)
            yield reader

    async def connect(self):
        port = int(self.node.addresses[0].rpartition(":")[2])
        return await anyio.connect_tcp("127.0.0.1", port)

    async def put(self, key, value="v", **options):
        await self.keyspace.put(key, value.encode(), **options)

    async def watchers_gone(self):
        """Wait until nobody watches by SSE any more."""
        while any(each.label.startswith("sse") for each in self.hub.watchers()):
            await anyio.sleep(0.001)


@pytest.fixture
def serving(tmp_path):
    """Serve while the block runs; the arguments are settings, `__` for a dot."""

    @asynccontextmanager
    async def serving(**settings):
        flags = {
            "node.data_dir": str(tmp_path / "data"),
            "transport.http.port": 0,
            "storage.name": "memory",
            "plugins.load": [PLUGIN],
            **{name.replace("__", "."): value for name, value in settings.items()},
        }
        with anyio.fail_after(DEADLINE):
            async with Node(load_settings(flags=flags)) as node:
                (url,) = node.addresses
                async with httpx2.AsyncClient(
                    base_url=url, timeout=DEADLINE, trust_env=False
                ) as client:
                    yield Served(node, client)

    return serving
