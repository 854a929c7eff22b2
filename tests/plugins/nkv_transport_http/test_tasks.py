"""The tasks of a connection: all have ended when the block is left, however it is left."""

import anyio
import pytest

from nkv_transport_http.tasks import AnyTasks, AsyncioTasks, tasks

pytestmark = pytest.mark.anyio


async def test_the_kind_is_that_of_the_backend(anyio_backend_name):
    expected = AsyncioTasks if anyio_backend_name == "asyncio" else AnyTasks
    assert type(tasks()) is expected


async def test_they_are_waited_for():
    ended = []

    async def task(number):
        await anyio.sleep(0.001 * number)
        ended.append(number)

    async with tasks() as group:
        for number in (3, 1, 2):
            group.start_soon(task, number)
    assert sorted(ended) == [1, 2, 3]


async def test_nothing_is_waited_for_where_nothing_was_started():
    async with tasks():
        pass


async def test_one_that_fails_ends_the_others_and_is_told_of():
    ended = anyio.Event()

    async def waiting():
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    async def failing():
        raise ZeroDivisionError

    async def block():
        async with tasks() as group:
            group.start_soon(waiting)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(failing)
            await ended.wait()

    with pytest.raises((ZeroDivisionError, ExceptionGroup)):
        await block()
    assert ended.is_set()


async def test_an_error_in_the_block_ends_them():
    ended = anyio.Event()

    async def waiting():
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    async def block():
        async with tasks() as group:
            group.start_soon(waiting)
            await anyio.wait_all_tasks_blocked()
            raise ZeroDivisionError

    with pytest.raises((ZeroDivisionError, ExceptionGroup)):
        await block()
    assert ended.is_set()


@pytest.mark.parametrize("by_scope", [True, False])
async def test_cancelling_ends_them(by_scope):
    ended = anyio.Event()

    async def waiting():
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)
            ended.set()

    with anyio.CancelScope() as scope:
        async with tasks() as group:
            group.start_soon(waiting)
            await anyio.wait_all_tasks_blocked()
            if by_scope:
                scope.cancel()
            else:
                group.cancel()
    assert ended.is_set()
