"""Watching: how long it takes from a write until somebody who watches is told of it."""

import asyncio
from time import perf_counter

from nkv_core.bench.speakers import PATIENCE, Speaker, Target
from nkv_core.bench.workload import Times
from nkv_core.errors import Unreachable


async def measure(target: Target, count: int, key: str = "bench.watched") -> Times:
    """From sending a write to being told of it, so many times, one after the other.

    Raises `BadRequest` for protocols over which it is not measured, `Refused`, and `Unreachable`.
    """
    times = Times()
    try:
        await target.prepare()
        listener, heard, hearing = await target.connect()
        try:
            speaker, asked, asking = await target.connect()
            try:
                hearing.write(listener.watch(key))
                async with asyncio.timeout(PATIENCE):
                    await heard.read(65536)  # that it was heard
                for number in range(count):
                    async with asyncio.timeout(PATIENCE):
                        sent = perf_counter()
                        asking.write(speaker.set(key, b"%d" % number))
                        told = asyncio.ensure_future(_told(listener, heard))
                        await speaker.answer(asked)
                        await told
                        times.note(perf_counter() - sent)
            finally:
                asking.close()
        finally:
            hearing.close()
    except (OSError, EOFError, TimeoutError) as error:
        raise Unreachable(f"{target.url} does not tell of changes: {error!r}.") from None
    return times


async def _told(listener: Speaker, heard: asyncio.StreamReader) -> None:
    data = b""
    while not listener.tells(data):
        more = await heard.read(65536)
        if not more:
            raise EOFError
        data += more
