"""A way to drive both clients alike."""

import inspect
from functools import partial

import anyio
import pytest

from nkv_core.client import AsyncClient, Client


class Driver:
    """Calls a method of the synchronous or asynchronous client, whichever the test runs with."""

    def __init__(self, kind):
        self._kind = kind

    def __call__(self, url, method, *args, client=None, **options):
        if self._kind == "sync":
            with Client(url, **(client or {})) as made:
                result = getattr(made, method)(*args, **options)
                return list(result) if inspect.isgenerator(result) else result
        return anyio.run(
            partial(self._call, url, method, args, options, client or {}), backend=self._kind
        )

    async def _call(self, url, method, args, options, client):
        async with AsyncClient(url, **client) as made:
            result = getattr(made, method)(*args, **options)
            if inspect.isasyncgen(result):
                return [one async for one in result]
            return await result


@pytest.fixture(params=["sync", "asyncio", "trio"])
def call(request):
    return Driver(request.param)


class Watcher:
    """Watches with the synchronous or asynchronous client, whichever the test runs with."""

    def __init__(self, kind):
        self.kind = kind

    def __call__(self, url, count, pattern="*", *, client=None, act=None, **options):
        """The first items of a watch; `act` is called, in a thread, once it is connected."""
        if self.kind == "sync":
            with Client(url, **(client or {})) as made, made.watch(pattern, **options) as watch:
                if act is not None:
                    act()
                return [next(watch) for _ in range(count)]
        run = partial(self._watch, url, count, client or {}, act, pattern=pattern, **options)
        return anyio.run(run, backend=self.kind)

    async def _watch(self, url, count, client, act, **options):
        with anyio.fail_after(30):
            async with AsyncClient(url, **client) as made, made.watch(**options) as watch:
                if act is not None:
                    await anyio.to_thread.run_sync(act)
                return [await anext(watch) for _ in range(count)]


@pytest.fixture(params=["sync", "asyncio", "trio"])
def watched(request):
    return Watcher(request.param)
