"""A node with the plugin, and real subscribers."""

import json
from contextlib import asynccontextmanager

import anyio
import pytest
import zmq

from nkv_core.config import load_settings
from nkv_core.node import Node

DEADLINE = 30
ZEROMQ = "nkv_notifier_zeromq"
CONTROL = b"\x00"


class Message:
    def __init__(self, frames):
        topic, about, data = frames
        self.topic, self.about, self.data = topic, json.loads(about), json.loads(data)
        self.event, self.token = self.about["event"], self.about["token"]


class Subscriber:
    """A SUB socket, read where it is asked to be."""

    def __init__(self, context, address, topics):
        self.socket = context.socket(zmq.SUB)
        self.socket.linger = 0
        self.socket.reconnect_ivl = 10
        # The last of them says that all are heard.
        for topic in (*topics, CONTROL):
            self.socket.subscribe(topic)
        self.socket.connect(address)

    async def read(self):
        """The next message, heartbeats among them."""
        with anyio.fail_after(DEADLINE):
            while not await anyio.to_thread.run_sync(self.socket.poll, 100):
                pass
        return Message(self.socket.recv_multipart())

    async def next(self):
        """The next message that is no heartbeat."""
        while (message := await self.read()).event == "heartbeat":
            pass
        return message

    async def ready(self):
        """Wait until it is heard: a subscription takes a moment to arrive."""
        while (await self.read()).event != "heartbeat":
            pass
        self.socket.unsubscribe(CONTROL)


@pytest.fixture
def flags(tmp_path):
    return {
        "node.data_dir": str(tmp_path / "data"),
        "transport.http.port": 0,
        "storage.name": "memory",
        "plugins.load": [ZEROMQ],
        "notifier.zeromq.port": 0,
        "notifier.zeromq.heartbeat": 0.02,
    }


@pytest.fixture
def serving(flags):
    """A node with these settings, and others on top."""

    @asynccontextmanager
    async def serving(**more):
        changed = {f"notifier.zeromq.{name}": value for name, value in more.items()}
        with anyio.fail_after(2 * DEADLINE):
            async with Node(load_settings(flags={**flags, **changed})) as node:
                yield node

    return serving


def address_of(node):
    (url,) = [url for url in node.addresses if url.startswith("zmq+tcp://")]
    return url.removeprefix("zmq+")


@pytest.fixture
def subscribe():
    """Subscribe to topics at a node; with none, to all. Returns once it is heard."""
    context = zmq.Context()
    subscribers = []

    async def subscribe(node, *topics):
        address = node if isinstance(node, str) else address_of(node)
        subscriber = Subscriber(context, address, topics or (b"",))
        subscribers.append(subscriber)
        await subscriber.ready()
        return subscriber

    yield subscribe
    for subscriber in subscribers:
        subscriber.socket.close()
    context.term()
