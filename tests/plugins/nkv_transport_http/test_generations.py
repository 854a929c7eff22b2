"""A transport is replaced, and those who never try again notice nothing."""

import math
import os

import anyio
import pytest

from nkv_core.contracts.handlers import Stream

pytestmark = pytest.mark.anyio

GET = b"GET /healthcheck HTTP/1.1\r\nHost: localhost\r\n\r\n"
REPLACEMENTS = 160 if os.environ.get("NKV_SOAK") == "1" else 5


async def test_clients_that_never_try_again_lose_no_request(serving):
    """Some keep their connection until they are told to leave it, some take a new one each time."""
    over, asked = anyio.Event(), {True: 0, False: 0}

    async def ask(node, kept):
        while not over.is_set():
            peer = await node.connect()
            async with peer.stream:
                leave = False
                while not leave and not over.is_set():
                    await peer.send(GET)
                    status, headers, _ = await peer.reply()
                    assert status == 200
                    asked[kept] += 1
                    leave = not kept or headers.get("connection") == "close"

    async with serving() as node, anyio.create_task_group() as tasks:
        for kept in (True, True, False, False):
            tasks.start_soon(ask, node, kept)
        for _ in range(REPLACEMENTS):
            before = dict(asked)
            while any(asked[kept] < before[kept] + 10 for kept in asked):
                await anyio.sleep(0.001)
            await node.replace()
        over.set()


async def test_a_stream_is_told_goodbye_by_the_generation_that_goes(serving):
    async def ticks():
        yield b"one"
        await anyio.sleep_forever()

    async with serving(deadline=math.inf) as node:
        handler = lambda _: Stream(ticks(), goodbye=lambda: b"goodbye")  # noqa: E731
        node.load(lambda handlers: handlers.add("/ticks", handler))
        peer = await node.connect()
        async with peer.stream:
            await peer.send(GET.replace(b"/healthcheck", b"/ticks"))
            await peer.until(b"one\r\n")
            await node.replace()
            assert b"goodbye" in await peer.rest()
        again = await node.connect()
        async with again.stream:
            await again.send(GET)
            assert (await again.reply())[0] == 200


async def test_connections_that_wait_to_be_accepted_go_to_who_follows(serving):
    async with serving() as node:
        await node.life.stop()
        peers = [await node.connect() for _ in range(200)]
        for peer in peers:
            await peer.send(GET)
        node.life = await node.life.follow()
        for peer in peers:
            assert (await peer.reply())[0] == 200
            await peer.stream.aclose()
