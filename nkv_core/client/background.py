"""Something that runs beside a block, and is over when the block is."""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import anyio


@asynccontextmanager
async def beside(run: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[anyio.CancelScope]:
    """Run `run` until the block is left; gives the scope by which the block can be cancelled.

    What the block raises comes out as it is, not in a group.
    """
    alone: BaseException | None = None
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            try:
                with anyio.CancelScope() as block:
                    yield block
            finally:
                tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) != 1:
            raise
        alone = group.exceptions[0]
    if alone is not None:
        raise alone
