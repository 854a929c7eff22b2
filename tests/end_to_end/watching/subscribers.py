"""Every way out of the node itself: one class for each kind of subscriber.

Each watches all below `ROOT`, and comes back by itself when its connection is lost, from where it
was if its protocol has a word for that.
"""

import asyncio
import json
import sys
from base64 import b64decode
from dataclasses import dataclass

import aiohttp
import anyio
import httpx2
import socketio
from httpx2.websockets import HTTPXWSException

from nkv_core.client import AsyncClient, Changed, Gap

from .dialects import buffered, is_text

ROOT = "a"
PATTERN = f"{ROOT}.*"
END = f"{ROOT}.w.end"  #: the key of the last change, where it matters
PAUSE = 0.05
LOST = (
    OSError,
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
    anyio.EndOfStream,
    anyio.IncompleteRead,
    httpx2.TransportError,
    HTTPXWSException,
    socketio.exceptions.ConnectionError,
)


@dataclass(frozen=True)
class Told:
    """What a subscriber was told of one change."""

    kind: str
    key: str
    value: bytes | None
    token: str | None = None


class Subscriber:
    """One who watches. `told` is what it was told, in that order."""

    name: str
    tokens = False  #: whether it is told a token with each change
    every = False  #: whether it is told every change, over lost connections too
    begins = None  #: where it cannot go on: how much it had been told before each connection

    def __init__(self, place):
        self.place = place
        self.told = []
        self.gaps = []
        self.start = 0  #: of the node, at which it was connected last
        self.ready = anyio.Event()

    def carries(self, key, value):
        """Whether it can be told of this."""
        return True

    def watches(self, key):
        """Whether it wants to be told of this key."""
        return key.startswith(f"{ROOT}.")

    def told_of(self, key, value):
        """The value that it is told where that was put."""
        return value

    async def run(self):
        """Watch until cancelled."""
        while True:
            try:
                await self.follow()
            except LOST:
                pass
            except BaseExceptionGroup as group:
                if group.split(LOST)[1] is not None:
                    raise
            await anyio.sleep(PAUSE)

    async def follow(self):
        """Watch over one connection, to its end."""
        raise NotImplementedError

    def connected(self):
        self.start = self.place.starts
        self.ready.set()

    def announced(self, name, token, data):
        """What the protocols that speak JSON announce."""
        if name == "gap":
            self.gaps.append(data)
        elif name in ("put", "touch", "delete", "expire", "clear"):
            value = data.get("value")
            if value is not None:
                value = value.encode()
            elif "value_base64" in data:
                value = b64decode(data["value_base64"])
            self.told.append(Told(name, data.get("key", data.get("prefix")), value, token))

    def caught_up(self, store):
        """Whether it knows what there is now, in this store: it was told of its last change."""
        return any(each.key == END for each in self.told[-100:])

    @property
    def store(self):
        """The store, as one who was told this knows it."""
        known = {}
        for each in self.told:
            if each.kind in ("put", "touch"):
                known[each.key] = each.value
            elif each.kind == "clear":
                known = {k: v for k, v in known.items() if not k.startswith(each.key)}
            else:
                known.pop(each.key, None)
        return known


async def lines(response):
    """The lines of a stream. They end with a line feed alone: a value may hold other separators."""
    rest = ""
    async for text in response.aiter_text():
        *whole, rest = (rest + text).split("\n")
        for line in whole:
            yield line


class Resuming(Subscriber):
    """Goes on where it was, by the last token that it was told."""

    tokens = True
    place_known = None

    def __init__(self, place, mode="every"):
        super().__init__(place)
        self.mode, self.every = mode, mode == "every"


class EventStream(Resuming):
    """Server-Sent Events, read as a browser's EventSource reads them."""

    name = "sse"

    async def follow(self):
        headers = {"Last-Event-ID": self.place_known} if self.place_known else {}
        path = f"/v1/watch?pattern={PATTERN}&mode={self.mode}"
        async with (
            self.place.http() as http,
            http.stream("GET", path, headers=headers) as response,
        ):
            response.raise_for_status()
            event = {}
            async for line in lines(response):
                if line:
                    name, _, value = line.partition(":")
                    event[name] = value.removeprefix(" ")
                    continue
                self.place_known = event.get("id", self.place_known)
                if not self.ready.is_set() or "retry" in event:
                    self.connected()
                if "data" in event:
                    self.announced(event["event"], event.get("id"), json.loads(event["data"]))
                event = {}


class WebSocket(Resuming):
    name = "websocket"

    async def follow(self):
        request = {"op": "subscribe", "id": 1, "subscription": "s", "pattern": PATTERN}
        request["mode"] = self.mode
        if self.place_known:
            request["since"] = self.place_known
        url = self.place.url.replace("http", "ws") + "/v1/ws"
        async with (
            self.place.http() as http,
            http.websocket(url, max_message_size_bytes=2**24) as socket,
        ):
            await socket.send_text(json.dumps(request))
            while True:
                message = json.loads(await socket.receive_text())
                if "id" in message:
                    self.place_known = message["result"]["token"]
                    self.connected()
                    continue
                self.place_known = message["token"] or self.place_known
                self.announced(message["event"], message["token"], message["data"])


class SocketIo(Subscriber):
    """Is told of puts alone, with no word for where to go on."""

    name = "socketio"

    def __init__(self, place, transports=("websocket",)):
        super().__init__(place)
        self.transports = list(transports)
        self.begins = []

    def carries(self, key, value):
        return is_text(value)

    def connected(self):
        self.begins.append(len(self.told))
        super().connected()

    async def follow(self):
        async with aiohttp.ClientSession() as http:
            # It does not notice a node that dies within an answer: the task that reads just ends.
            client = socketio.AsyncClient(http_session=http, reconnection=False)
            client.on("connected", lambda _: self.connected())
            client.on("key_update", self._update)
            try:
                await client.connect(self.place.url, transports=self.transports)
                await asyncio.wait([client.eio.read_loop_task])
            finally:
                with anyio.CancelScope(shield=True):
                    await self._part(client)

    @staticmethod
    async def _part(client):
        """Without a word: over polling, parting in good order takes as long as a ping."""
        tasks = (client.eio.read_loop_task, client.eio.write_loop_task)
        for task in filter(None, tasks):
            task.cancel()
        await asyncio.gather(*filter(None, tasks), return_exceptions=True)
        await asyncio.sleep(0)

    def _update(self, data):
        key, _, value = data["data"].removeprefix("Key: ").partition(" set with value: ")
        if key.startswith(f"{ROOT}."):
            self.told.append(Told("put", key, value.encode()))


class Webhook(Subscriber):
    """What a receiver has taken. The node sends from its start on."""

    name = "webhook"
    tokens = every = True

    async def run(self):
        self.connected()
        await anyio.sleep_forever()

    @property
    def told(self):
        heard = Subscriber(self.place)
        for body in list(self.place.receiver.taken.values()):
            heard.announced(body["event"], body["token"], body["data"])
        self.gaps = heard.gaps
        return [each for each in heard.told if each.key.startswith(f"{ROOT}.")]

    @told.setter
    def told(self, _):
        pass

    def watches(self, key):
        return key.startswith(self.place.settings.get("notifier.webhook.pattern", "*")[:-1])

    def caught_up(self, store):
        last = next(reversed(self.place.receiver.taken.values()), None)
        return last is not None and last["data"].get("key") == END


class Socket(Subscriber):
    """A dialect of the socket. Who subscribes again is told all that is there again."""

    def __init__(self, place, dialect):
        super().__init__(place)
        self.name, self.dialect = dialect.name, dialect

    def carries(self, key, value):
        return self.dialect.carries(key)

    async def follow(self):
        async with await self.place.connect() as stream:
            await stream.send(self.dialect.request("SUB", "watcher", "watcher", ROOT))
            receiving = buffered(stream)
            assert await self.dialect.read(receiving) == self.dialect.hello
            self.told.clear()
            self.connected()
            while True:
                self.told.append(Told(*self.dialect.event(await self.dialect.read(receiving))))


class Library(Subscriber):
    """The client library's watch, which comes back by itself."""

    name = "client"
    tokens = every = True

    async def run(self):
        async with AsyncClient(self.place.url) as client, client.watch(PATTERN) as watch:
            self.connected()
            async for item in watch:
                if isinstance(item, Changed):
                    self.told.append(Told(item.kind, item.key, item.value, item.token))
                elif isinstance(item, Gap):
                    self.gaps.append(item)


class Command(Subscriber):
    """`nkv watch`, a process of its own."""

    name = "nkv watch"
    tokens = every = True

    async def run(self):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "nkv_core", "watch", PATTERN, "--snapshot"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={**self.place.env, "NKV_URL": self.place.url},
            limit=2**24,
        )
        try:
            while line := await process.stdout.readline():
                event = json.loads(line)
                if event["event"] == "snapshot-end":
                    self.connected()
                self.announced(event["event"], event["token"], event)
            raise AssertionError("nkv watch has ended")
        finally:
            if process.returncode is None:
                process.kill()
            with anyio.CancelScope(shield=True):
                await process.wait()


class Mirror(Subscriber):
    """A mapping that stays equal to the subtree."""

    name = "mirror"

    async def run(self):
        async with AsyncClient(self.place.url) as client, client.mirror(ROOT) as mirror:
            self.mirror = mirror
            await mirror.wait_synced(60)
            self.connected()
            await anyio.sleep_forever()

    def caught_up(self, store):
        return END in self.mirror

    @property
    def store(self):
        return dict(self.mirror)
