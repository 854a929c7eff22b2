"""A thousand who watch over Server-Sent Events, at a node that restarts."""

import asyncio
import json
from contextlib import suppress
from random import Random

import anyio
import httpx2
import pytest

from .place import until

pytestmark = [pytest.mark.anyio, pytest.mark.one_python]

WATCHERS = 1000
WRITES = 10


class Watcher:
    """One connection after the other, each going on behind the last token."""

    def __init__(self, node, dice):
        self.node, self.dice = node, dice
        self.place = None  #: the last token
        self.values = []
        self.strange = []  #: events that are no puts
        self.opened = 0

    async def run(self):
        while True:
            with suppress(OSError):
                await self._follow()
            await anyio.sleep(self.dice.uniform(0.05, 0.5))

    async def _follow(self):
        reader, writer = await asyncio.open_connection(self.node.host, self.node.port)
        try:
            resume = f"Last-Event-ID: {self.place}\r\n" if self.place else ""
            request = f"GET /v1/watch?pattern=a.* HTTP/1.0\r\nHost: localhost\r\n{resume}\r\n"
            writer.write(request.encode())
            status = await reader.readline()
            if not status:
                return  # the node went before it answered
            assert b" 200 " in status, status
            await self._read(reader)
        finally:
            writer.close()

    async def _read(self, reader):
        event = {}
        while line := await reader.readline():
            name, _, value = line.decode().rstrip("\r\n").partition(": ")
            if name:
                event[name] = value
                continue
            self.place = event.get("id", self.place)
            if "retry" in event:
                self.opened += 1
            if event.get("event") == "put":
                self.values.append(json.loads(event["data"])["value"])
            elif event.get("event", "end") != "end":
                self.strange.append(event)
            event = {}


async def test_a_thousand_come_back_after_restarts_and_miss_nothing(serve):
    node = serve()
    dice = Random(5)
    watchers = [Watcher(node, dice) for _ in range(WATCHERS)]
    expected = []

    async def write():
        async with httpx2.AsyncClient(base_url=node.url, timeout=60, trust_env=False) as http:
            for _ in range(WRITES):
                expected.append(str(len(expected)))
                answer = await http.put(f"/v1/kv/a.{dice.randrange(5)}", content=expected[-1])
                answer.raise_for_status()

    async def all_told():
        await until(
            lambda: all(len(each.values) >= len(expected) for each in watchers),
            lambda: f"{sum(len(each.values) < len(expected) for each in watchers)} of them",
        )

    async with anyio.create_task_group() as tasks:
        for watcher in watchers:
            tasks.start_soon(watcher.run)
        await until(lambda: all(each.opened for each in watchers), "the connections")
        await write()
        await all_told()
        for end in ("kill", "stop"):
            await anyio.to_thread.run_sync(getattr(node, end))
            node = await anyio.to_thread.run_sync(lambda port=node.port: serve("--port", str(port)))
            await write()  # while they are coming back
            await all_told()
        tasks.cancel_scope.cancel()
    for watcher in watchers:
        assert watcher.values == expected
        assert watcher.strange == []
        assert watcher.opened >= 3
