"""Tasks: what runs for one connection, each request in a task of its own.

On asyncio a task of a task group costs five times what a plain one does, for each request, so there
they are kept by hand.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, Self

import anyio
from anyio import CancelScope

from .wire import on_asyncio


class Tasks(Protocol):
    """Tasks that all end before the block is left; if one fails, the others are cancelled."""

    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *error: Any) -> bool | None: ...

    def start_soon(
        self, function: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any
    ) -> None:
        """Start a task."""

    def cancel(self) -> None:
        """Cancel those that run. Whoever is in the block is to leave it now."""


class AnyTasks:
    """On any backend: a task group."""

    def __init__(self) -> None:
        self._group = anyio.create_task_group()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> bool | None:
        return await self._group.__aexit__(*error)

    def start_soon(
        self, function: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any
    ) -> None:
        """Start a task."""
        self._group.start_soon(function, *arguments)

    def cancel(self) -> None:
        """Cancel those that run."""
        self._group.cancel_scope.cancel()


class AsyncioTasks:
    """On asyncio."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()
        self._failure: BaseException | None = None
        self._ended: anyio.Event | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: Any) -> bool | None:
        if error[0] is not None:
            self.cancel()
        try:
            await self._end()
        except BaseException:
            self.cancel()
            with CancelScope(shield=True):
                await self._end()
            raise
        if self._failure is not None and error[0] is None:
            raise self._failure
        return None

    async def _end(self) -> None:
        while self._running:
            self._ended = anyio.Event()
            await self._ended.wait()

    def start_soon(
        self, function: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any
    ) -> None:
        """Start a task."""
        loop = asyncio.get_running_loop()
        task = loop.create_task(function(*arguments))  # nkv: allow unowned_task
        self._running.add(task)
        task.add_done_callback(self._left)

    def cancel(self) -> None:
        """Cancel those that run."""
        for task in self._running:
            task.cancel()

    def _left(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._failure = self._failure or failure
            self.cancel()
        if not self._running and self._ended is not None:
            self._ended.set()


def tasks() -> Tasks:
    """Those for the backend that we run on."""
    return AsyncioTasks() if on_asyncio() else AnyTasks()
