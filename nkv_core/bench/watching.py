"""Watching: how long it takes from a write until somebody who watches is told of it."""

import asyncio
from time import perf_counter
from typing import Final

from nkv_core.bench.speakers import Http, Resp, Target
from nkv_core.bench.workload import Times
from nkv_core.errors import BadRequest, Unreachable

#: Seconds that one notification may take.
_PATIENCE: Final = 30.0


async def measure(target: Target, count: int, key: str = "bench.watched") -> Times:
    """From sending a write to being told of it, so many times, one after the other.

    Over HTTP it is Server-Sent Events that tell, over Redis' protocol keyspace notifications.
    Raises `BadRequest` for other protocols, and `Unreachable`.
    """
    if isinstance(target.speaker, Http):
        subscribe = f"GET /v1/watch?pattern={key} HTTP/1.1\r\nHost: {target.host}\r\n\r\n".encode()
    elif isinstance(target.speaker, Resp):
        channel = f"__keyspace@0__:{key}".encode()
        subscribe = b"*2\r\n$9\r\nSUBSCRIBE\r\n$%d\r\n%b\r\n" % (len(channel), channel)
    else:
        raise BadRequest("Notifications are measured over http:// and redis://.")
    times = Times()
    try:
        heard, hearing = await target.connect()
        asked, asking = await target.connect()
        try:
            hearing.write(subscribe)
            async with asyncio.timeout(_PATIENCE):
                await heard.read(65536)  # that it was heard
            for number in range(count):
                async with asyncio.timeout(_PATIENCE):
                    sent = perf_counter()
                    asking.write(target.speaker.set(key, b"%d" % number))
                    told = asyncio.ensure_future(_told(heard))
                    await target.speaker.answer(asked)
                    await told
                    times.note(perf_counter() - sent)
        finally:
            hearing.close()
            asking.close()
    except (OSError, EOFError, TimeoutError) as error:
        raise Unreachable(f"{target.url} does not tell of changes: {error!r}.") from None
    return times


async def _told(heard: asyncio.StreamReader) -> None:
    # Nothing else is told of: whatever comes is the notification, or the first part of it.
    data = await heard.read(65536)
    while b"id:" not in data and b"set\r\n" not in data:
        more = await heard.read(65536)
        if not more:
            raise EOFError
        data += more
