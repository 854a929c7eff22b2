"""Ways out by protocols of others: ZeroMQ, NATS as notifier and as dialect, and Redis' events."""

import json
from contextlib import asynccontextmanager

import anyio
import hiredis
import nats
import zmq
import zmq.asyncio

from nkv_core.nats_link import is_subject

from .dialects import DIALECTS
from .subscribers import (
    ROOT,
    Command,
    EventStream,
    Library,
    Socket,
    SocketIo,
    Subscriber,
    Told,
    Webhook,
    WebSocket,
)

REDIS_KINDS = {b"set": "put", b"del": "delete", b"expired": "expire"}


async def _nothing(*_):
    pass


@asynccontextmanager
async def nats_client(place):
    """A client of the server, which no test here kills."""
    client = await nats.connect(place.broker.url, error_cb=_nothing)
    try:
        yield client
    finally:
        with anyio.CancelScope(shield=True):
            await client.close()


def in_json(value):
    """The bytes of a value in the NATS dialect's messages, its frame aside."""
    return len(json.dumps(list(value), separators=(",", ":")))


class ZeroMq(Subscriber):
    """Loses what is published while it is not connected; that shows in the numbers."""

    name = "zeromq"
    tokens = True
    publisher = number = None

    def __init__(self, place):
        super().__init__(place)
        self.begins = []

    async def run(self):
        context = zmq.asyncio.Context()
        try:
            socket = context.socket(zmq.SUB)
            socket.reconnect_ivl = 20
            socket.rcvhwm = 0
            socket.subscribe(b"")
            socket.connect(f"tcp://127.0.0.1:{self.place.zeromq_port}")
            while True:
                self._take(*await socket.recv_multipart())
        finally:
            context.destroy(linger=0)

    def _take(self, topic, about, data):
        about = json.loads(about)
        beat = about["event"] == "heartbeat"
        if about["publisher"] != self.publisher:
            self.publisher = about["publisher"]
            self.begins.append(len(self.told))
            self.connected()
        else:
            assert about["sequence"] == self.number + (not beat), "a message was lost"
        self.number = about["sequence"]
        if not beat:
            data = json.loads(data)
            assert data.get("key", "\0").encode() == topic
            self.announced(about["event"], about["token"], data)


class NatsNotifier(Subscriber):
    """Is told at least once: what is told again is known by its number."""

    name = "nats"
    tokens = every = True

    def carries(self, key, value):
        return is_subject(key)

    def told_of(self, key, value):
        # Text is told as it is, and every control character in it as an escape.
        told = json.dumps(value.decode(errors="ignore"), ensure_ascii=False)
        return None if len(told.encode()) > self.place.broker_payload else value

    async def run(self):
        known = set()
        async with nats_client(self.place) as client:
            subscription = await client.subscribe("nkv.>", pending_msgs_limit=1_000_000)
            await client.flush()
            self.connected()
            async for message in subscription.messages:
                if message.headers["Nats-Msg-Id"] in known:
                    continue
                known.add(message.headers["Nats-Msg-Id"])
                data = json.loads(message.data)
                if "key" in data:
                    assert message.subject == f"nkv.key.{data['key']}"
                    if not data["key"].startswith(f"{ROOT}."):
                        continue
                event, token = message.headers["Nkv-Event"], message.headers["Nkv-Token"]
                self.announced(event, token, data)


class NatsDialect(Subscriber):
    """Is told of the keys that it has asked for, and that were there then."""

    name = "nats dialect"
    client = None

    def carries(self, key, value):
        return is_subject(f"pub-{key}") and in_json(value) < self.place.broker_payload

    async def run(self):
        async with nats_client(self.place) as self.client:
            subscription = await self.client.subscribe(f"pub-{ROOT}.>")
            await self.client.flush()
            self.connected()
            async for message in subscription.messages:
                self._take(message.subject.removeprefix("pub-"), json.loads(message.data))

    def _take(self, key, message):
        match message["msg_type"]:
            case "Hello":
                pass
            case "Close":
                self.told.append(Told("delete", key, None))
            case {"Update": {"value": value}}:
                self.told.append(Told("put", key, bytes(value)))

    async def ask_for(self, key):
        """Have a key told of; the status of the answer."""
        request = json.dumps({"type": "Subscribe", "id": 1, "key": key}).encode()
        answer = await self.client.request("pubsub.subscribe", request, timeout=30)
        return json.loads(answer.data)["Put"]["status"]

    def caught_up(self, store):
        return bool(self.told) and all(store[key] == value for key, value in self.store.items())


class RedisEvents(Subscriber):
    """Redis' keyspace notifications, which have no values."""

    name = "redis"

    def __init__(self, place):
        super().__init__(place)
        self.begins = []

    def told_of(self, key, value):
        return None

    async def follow(self):
        channel = f"__keyspace@0__:{ROOT}."
        async with await anyio.connect_tcp("127.0.0.1", self.place.resp_port) as stream:
            await stream.send(f"PSUBSCRIBE {channel}*\r\n".encode())
            reader = hiredis.Reader()
            while True:
                reader.feed(await stream.receive())
                while (message := reader.gets()) is not False:
                    if message[0] == b"psubscribe":
                        self.begins.append(len(self.told))
                        self.connected()
                        continue
                    key = message[2].decode().removeprefix("__keyspace@0__:")
                    self.told.append(Told(REDIS_KINDS[message[3]], key, None))


#: Those that are told of changes one by one. A further kind is one more class.
TOLD = (
    EventStream,
    WebSocket,
    SocketIo,
    Webhook,
    Library,
    Command,
    ZeroMq,
    NatsNotifier,
    RedisEvents,
)


def one_of_each(place):
    """All but the NATS dialect's, who has to ask for each key."""
    return [kind(place) for kind in TOLD] + [Socket(place, dialect) for dialect in DIALECTS]
