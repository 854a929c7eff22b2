"""A whole node with the notifier, and clients that speak with it."""

import json
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx2
import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    CloseConnection,
    Message,
    Ping,
    Request,
    TextMessage,
)

from nkv_core.config import load_settings
from nkv_core.node import Node

ROOT = Path(__file__).parents[3]
PLUGIN = str(ROOT / "plugins" / "nkv_notifier_websocket")
DEADLINE = 20


class Peer:
    """A client of one WebSocket. Replies and events are kept apart."""

    def __init__(self, stream):
        self.stream = stream
        self.closed = None
        self.places = {}  #: where each subscription would resume
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._replies, self._events = {}, []
        self._text = ""
        self._ids = 0

    async def open(self, headers=()):
        await self._say(Request(host="localhost", target="/v1/ws", extra_headers=list(headers)))
        event = None
        while event is None:
            event = next(self._protocol.events(), None)
            if event is None:
                self._protocol.receive_data(await self.stream.receive())
        return event

    async def _say(self, event):
        await self.stream.send(self._protocol.send(event))

    async def send(self, message):
        await self._say(message if isinstance(message, Message) else TextMessage(message))

    async def close(self):
        await self._say(CloseConnection(1000))
        while self.closed is None:
            await self._hear()

    async def _hear(self):
        """Take in what comes. Once the other side has closed there is nothing more."""
        assert self.closed is None, f"closed with {self.closed}"
        self._protocol.receive_data(await self.stream.receive())
        for event in self._protocol.events():
            if isinstance(event, Ping):
                await self._say(event.response())
            elif isinstance(event, CloseConnection):
                self.closed = event.code
            else:
                self._text += event.data
                if event.message_finished:
                    self._take_in(json.loads(self._text))
                    self._text = ""

    def _take_in(self, message):
        if "subscription" in message:
            assert set(message) == {"subscription", "event", "token", "data"}
            if message["token"] is not None:
                self.places[message["subscription"]] = message["token"]
            self._events.append(message)
        else:
            self._replies[message["id"]] = message

    async def reply(self, number):
        while number not in self._replies:
            await self._hear()
        return self._replies.pop(number)

    async def ask(self, op, **fields):
        """Send a request, and wait for its reply."""
        self._ids += 1
        await self.send(json.dumps({"op": op, "id": self._ids, **fields}))
        return await self.reply(self._ids)

    async def subscribe(self, subscription, **fields):
        reply = await self.ask("subscribe", subscription=subscription, **fields)
        self.places[subscription] = reply["result"]["token"]
        return reply["result"]

    async def event(self):
        """The next event."""
        while not self._events:
            await self._hear()
        return self._events.pop(0)

    async def take(self, count):
        return [await self.event() for _ in range(count)]

    async def rest(self):
        """All events until the other side closes."""
        while self.closed is None:
            await self._hear()
        events, self._events = self._events, []
        return events


class Served:
    """A node that serves, and what a test asks of it."""

    def __init__(self, node):
        self.node, self.keyspace, self.hub, self.plugins = (
            node,
            node.keyspace,
            node.hub,
            node.plugins,
        )

    @asynccontextmanager
    async def peer(self, headers=()):
        port = int(self.node.addresses[0].rpartition(":")[2])
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            peer = Peer(stream)
            assert isinstance(await peer.open(headers), AcceptConnection)
            yield peer

    def http(self):
        return httpx2.AsyncClient(
            base_url=self.node.addresses[0], timeout=DEADLINE, trust_env=False
        )

    async def put(self, key, value="v", **options):
        await self.keyspace.put(key, value.encode(), **options)

    async def watchers_gone(self):
        """Wait until nobody watches by WebSocket any more."""
        while any(each.label.startswith("websocket") for each in self.hub.watchers()):
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
                yield Served(node)

    return serving
