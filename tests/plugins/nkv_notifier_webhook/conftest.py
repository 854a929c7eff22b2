"""A receiver on a real port that answers as it is told, and nodes that send to it."""

import json
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.abc import SocketAttribute

from nkv_core.config import load_settings
from nkv_core.node import Node

DEADLINE = 30
WEBHOOK = "nkv_notifier_webhook"


class Got:
    """One POST."""

    def __init__(self, path, headers, body):
        self.path, self.headers, self.body = path, headers, body
        self.json = json.loads(body)
        self.id = headers["idempotency-key"]

    @property
    def value(self):
        return self.json["data"].get("value")


class FakeReceiver:
    """Answers 200, or what `answers` has next: a status, `hang`, `close`, or (status, headers)."""

    def __init__(self):
        self.got, self.taken = [], []
        self.answers = []
        self.always = 200
        self.port = 0
        self._arrived = anyio.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/hook"

    async def serve(self, *, task_status):
        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
            self.port = listener.extra(SocketAttribute.local_port)
            task_status.started()
            await listener.serve(self._connection)

    async def _connection(self, stream):
        async with stream:
            try:
                seen = b""
                while True:
                    seen = await self._exchange(stream, seen)
            except (anyio.EndOfStream, anyio.BrokenResourceError, ConnectionError):
                return

    async def _exchange(self, stream, seen):
        while b"\r\n\r\n" not in seen:
            seen += await stream.receive()
        head, _, body = seen.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        length = int(headers["content-length"])
        while len(body) < length:
            body += await stream.receive()
        got = Got(first.split(" ")[1], headers, body[:length])
        self.got.append(got)
        answer = self.answers.pop(0) if self.answers else self.always
        if answer == 200:
            self.taken.append(got)
        self._arrived.set()
        self._arrived = anyio.Event()
        if answer == "hang":
            await anyio.sleep_forever()
        if answer == "close":
            raise anyio.EndOfStream
        status, more = answer if isinstance(answer, tuple) else (answer, "")
        await stream.send(f"HTTP/1.1 {status} X\r\n{more}content-length: 2\r\n\r\nok".encode())
        return body[length:]

    async def until(self, condition):
        """Wait until `condition()` holds; it is looked at behind each POST."""
        with anyio.fail_after(DEADLINE):
            while not condition():
                await self._arrived.wait()

    async def until_taken(self, count):
        await self.until(lambda: len(self.taken) >= count)


@pytest.fixture
async def receiver(anyio_backend):
    receiver = FakeReceiver()
    async with anyio.create_task_group() as tasks:
        await tasks.start(receiver.serve)
        yield receiver
        tasks.cancel_scope.cancel()


@pytest.fixture
def flags(tmp_path, receiver):
    """Settings of a node that sends to the receiver, with short waits."""
    section = {
        "url": receiver.url,
        "allow_private": True,
        "backoff": 0.01,
        "max_backoff": 0.05,
    }
    return {
        "node.data_dir": str(tmp_path / "data"),
        "transport.http.port": 0,
        "storage.name": "memory",
        "plugins.load": [WEBHOOK],
        **{f"notifier.webhook.{name}": value for name, value in section.items()},
    }


@pytest.fixture
def serving(flags):
    """A node with these settings, and others on top."""

    @asynccontextmanager
    async def serving(**more):
        changed = {f"notifier.webhook.{name}": value for name, value in more.items()}
        with anyio.fail_after(DEADLINE):
            async with Node(load_settings(flags={**flags, **changed})) as node:
                yield node

    return serving
