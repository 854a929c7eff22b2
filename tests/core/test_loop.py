"""Threads and the event loop."""

import gc
import threading
import weakref

import anyio
import pytest

from nkv_core.errors import PluginSetupFailed, Stopping
from nkv_core.loop import (
    Pending,
    Together,
    Worker,
    refuse_other_backends,
    soon_caller,
    threadsafe_caller,
    waiter_maker,
)

pytestmark = pytest.mark.anyio


async def test_a_thread_calls_the_loop():
    waiter, called = waiter_maker()(), []
    call = threadsafe_caller()

    def on_loop():
        called.append(threading.current_thread())
        waiter.wake()

    threading.Thread(target=lambda: call(on_loop)).start()
    with anyio.fail_after(60):
        await waiter.wait()
    assert called == [threading.current_thread()]


async def test_what_is_called_soon_comes_behind_the_tasks_that_were_woken():
    make, soon = waiter_maker(), soon_caller()
    order, done = [], make()
    waiters = [make() for _ in range(20)]

    async def wait(number):
        await waiters[number].wait()
        order.append(number)

    def last():
        order.append("soon")
        done.wake()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(wait, number)
            await anyio.wait_all_tasks_blocked()
            for waiter in waiters:
                waiter.wake()
            soon(last)
            await done.wait()
    assert order[-1] == "soon"
    assert sorted(order[:-1]) == list(range(20))


async def test_what_is_called_together_comes_in_order_some_in_each_turn():
    together, called = Together(), []
    count = 3 * Together.AT_ONCE
    for number in range(count):
        together.call(lambda number=number: called.append(number))
    assert called == []
    seen = set()
    while len(called) < count:
        await anyio.lowlevel.checkpoint()
        seen.add(len(called))
    assert called == list(range(count))
    assert seen >= {Together.AT_ONCE, 2 * Together.AT_ONCE}, "others had no turn in between"


async def test_what_is_called_together_may_ask_for_more():
    together, called = Together(), []
    together.call(lambda: together.call(lambda: called.append("then")))
    while not called:
        await anyio.lowlevel.checkpoint()
    assert called == ["then"]


async def test_a_waiter_woken_before_it_waits_does_not_wait():
    waiter = waiter_maker()()
    waiter.wake()
    waiter.wake()
    with anyio.fail_after(60):
        await waiter.wait()


async def test_a_waiter_may_be_woken_after_it_was_cancelled():
    waiter = waiter_maker()()
    with anyio.move_on_after(0) as scope:
        await waiter.wait()
    assert scope.cancelled_caught
    waiter.wake()
    await anyio.lowlevel.checkpoint()


async def test_a_worker_gives_back_results_and_exceptions():
    with Worker("test") as worker, anyio.fail_after(60):
        assert await worker.run(lambda: threading.current_thread().name) == "test"
        with pytest.raises(ZeroDivisionError):
            await worker.run(lambda: 1 // 0)
        assert await worker.run(lambda: 2) == 2


async def test_a_worker_does_one_thing_after_the_other_in_one_thread():
    seen, told = [], []
    with Worker("test") as worker, anyio.fail_after(60):
        for number in range(100):
            worker.submit(
                lambda number=number: seen.append((number, threading.get_ident())),
                lambda result, error, number=number: told.append(number),
            )
        await worker.run(lambda: None)
    assert [number for number, _ in seen] == list(range(100)) == told
    assert len({ident for _, ident in seen}) == 1


async def test_a_cancelled_caller_leaves_the_work_to_be_done():
    go, done = threading.Event(), threading.Event()
    with Worker("test") as worker, anyio.fail_after(60):
        with anyio.move_on_after(0.01) as scope:
            await worker.run(lambda: (go.wait(5), done.set()))
        assert scope.cancelled_caught
        go.set()
        await worker.run(lambda: None)
        assert done.is_set()


async def test_a_closed_worker_ends_behind_its_work_and_takes_no_more():
    worker, seen = Worker("test"), []
    for number in range(10):
        worker.submit(lambda number=number: seen.append(number), lambda *_: None)
    worker.close()
    worker.close()
    with pytest.raises(Stopping):
        worker.submit(lambda: None, lambda *_: None)
    with pytest.raises(Stopping):
        await worker.run(lambda: None)
    assert worker.join(5)
    assert seen == list(range(10))


async def test_an_idle_worker_keeps_nothing_alive():
    class Thing:
        pass

    with Worker("test") as worker, anyio.fail_after(60):
        thing = await worker.run(Thing)
        await worker.run(lambda: None)
        gone = weakref.ref(thing)
        del thing
        await worker.run(lambda: None)
        gc.collect()
        assert gone() is None


def test_a_worker_survives_the_end_of_its_loop(anyio_backend):
    go, workers = threading.Event(), []

    async def leave():
        worker = Worker("test")
        worker.submit(lambda: go.wait(5), lambda *_: None)
        worker.close()
        workers.append(worker)

    anyio.run(leave, backend=anyio_backend)
    go.set()
    assert workers[0].join(5)


async def test_a_pending_result_is_awaited():
    pending = Pending()
    async with anyio.create_task_group() as tasks:

        async def settle():
            pending.settle(7)

        tasks.start_soon(settle)
        with anyio.fail_after(60):
            assert await pending == 7


async def test_a_pending_failure_is_raised():
    pending = Pending()
    pending.settle(None, Stopping("no"))
    with pytest.raises(Stopping, match="no"):
        await pending


async def test_a_function_is_told_of_a_result_once_whenever_it_comes():
    told = []
    early, late = Pending(), Pending()
    early.then(lambda *outcome: told.append(outcome))
    early.settle(1)
    early.settle(2)
    late.settle(3)
    late.then(lambda *outcome: told.append(outcome))
    assert told == [(1, None), (3, None)]


async def test_what_is_made_of_a_result_takes_its_place():
    pending = Pending()
    doubled, failed = pending.map(lambda n: n * 2), Pending()
    broken = failed.map(lambda n: n / 0)
    pending.settle(21)
    failed.settle(1)
    assert await doubled == 42
    with pytest.raises(ZeroDivisionError):
        await broken


async def test_what_does_not_run_on_this_backend_is_refused_by_name(anyio_backend):
    refuse_other_backends("it", ("asyncio", "trio"))
    other = "trio" if anyio_backend == "asyncio" else "asyncio"
    with pytest.raises(PluginSetupFailed, match=f"it does not run on {anyio_backend}, only on"):
        refuse_other_backends("it", (other,))
