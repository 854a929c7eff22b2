"""The event loop seen from below: being called from a thread, waiting for one thing, a thread.

What anyio offers for these does more than is needed here, and costs accordingly on the path of
every write. All of it works on asyncio and on trio.
"""

import asyncio
import sys
import threading
from collections.abc import Callable, Collection, Generator
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Final, Generic, Protocol, TypeVar, cast

from nkv_core.errors import PluginSetupFailed, Stopping

T = TypeVar("T")
U = TypeVar("U")

Callback = Callable[[], object]
#: Schedules a plain callback on an event loop.
Caller = Callable[[Callback], None]
#: Is told a result, or the exception in its place.
Done = Callable[[Any, BaseException | None], object]


def _trio() -> Any:
    """The trio module where the caller runs on trio, else None. Nothing is imported for it."""
    trio = sys.modules.get("trio")
    return trio if trio is not None and trio.lowlevel.in_trio_task() else None


def refuse_other_backends(what: str, backends: Collection[str]) -> None:
    """Raise `PluginSetupFailed` where `what` does not run on the event loop that we run on.

    `backends`: those that it runs on, of `asyncio` and `trio`.
    """
    backend = "trio" if _trio() else "asyncio"
    if backend not in backends:
        raise PluginSetupFailed(
            f"{what} does not run on {backend}, only on"
            f" {', '.join(sorted(backends)) or 'nothing'}: set node.backend."
        )


def threadsafe_caller() -> Caller:
    """Return what schedules a plain callback on the running event loop, from any thread.

    The callback must not raise. The caller raises `RuntimeError` once the loop has ended.
    """
    if trio := _trio():
        return cast("Caller", trio.lowlevel.current_trio_token().run_sync_soon)
    return cast("Caller", asyncio.get_running_loop().call_soon_threadsafe)


def soon_caller() -> Caller:
    """Return what schedules a plain callback on the running event loop, from that loop's thread.

    Tasks that were woken before it was scheduled get their turn before the callback.
    """
    if _trio():
        soon = threadsafe_caller()
        # Trio shuffles what is ready: only the turn after next is behind all that is ready now.
        return lambda callback: soon(lambda: soon(callback))
    return cast("Caller", asyncio.get_running_loop().call_soon)


class Together:
    """Has plain callbacks called together, in the next turns of the event loop, some in each.

    For what is sent to many. Waking a client that sleeps takes longer, on many machines, than all
    that was done to answer it; where the answers of a turn leave one behind the other, those behind
    the first find a client that is awake. Used on the event loop only.
    """

    #: Callbacks in a turn: about a millisecond of them, if each sends something.
    AT_ONCE: Final = 64

    __slots__ = ("_due", "_soon")

    def __init__(self) -> None:
        self._due: list[Callback] = []
        self._soon: Caller | None = None  # of the event loop of the first call

    def call(self, callback: Callback) -> None:
        """Have it called. It must not raise."""
        if not self._due:
            if self._soon is None:
                self._soon = soon_caller()
            self._soon(self._run)
        self._due.append(callback)

    def _run(self) -> None:
        due, self._due = self._due[: self.AT_ONCE], self._due[self.AT_ONCE :]
        if self._due and self._soon is not None:
            self._soon(self._run)
        for callback in due:
            callback()


class Waiter(Protocol):
    """Lets one task wait, once. Used on the event loop only."""

    def wake(self) -> None:
        """End the waiting, or keep it from beginning. Waking twice does nothing."""

    async def wait(self) -> None:
        """Wait until woken. Where it is cancelled, a later `wake` does nothing."""


class _AsyncioWaiter:
    __slots__ = ("_future",)

    def __init__(self, create_future: "Callable[[], asyncio.Future[None]]") -> None:
        self._future = create_future()

    def wake(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    async def wait(self) -> None:
        await self._future


class _TrioWaiter:
    __slots__ = ("_lowlevel", "_task", "_woken")

    def __init__(self, lowlevel: Any) -> None:
        self._lowlevel = lowlevel
        self._task: Any = None
        self._woken = False

    def wake(self) -> None:
        self._woken = True
        task, self._task = self._task, None
        if task is not None:
            self._lowlevel.reschedule(task)

    async def wait(self) -> None:
        if self._woken:
            await self._lowlevel.checkpoint()
            return
        self._task = self._lowlevel.current_task()
        await self._lowlevel.wait_task_rescheduled(self._abort)

    def _abort(self, _: Any) -> Any:
        self._task = None
        return self._lowlevel.Abort.SUCCEEDED


def waiter_maker() -> Callable[[], Waiter]:
    """Return what makes a `Waiter` for the running event loop.

    A third of the cost of an event of anyio's: make one for each wait.
    """
    if trio := _trio():
        return partial(_TrioWaiter, trio.lowlevel)
    return partial(_AsyncioWaiter, asyncio.get_running_loop().create_future)


class Pending(Generic[T]):
    """A result that is not there yet: await it, or have a plain function called with it.

    For those who wait for many results at once, and would need a task for each of them otherwise.
    Used on the event loop only, and by one who waits.
    """

    __slots__ = ("_done", "_error", "_result", "_settled")

    def __init__(self) -> None:
        self._done: Done | None = None
        self._result: Any = None
        self._error: BaseException | None = None
        self._settled = False

    def settle(self, result: Any, error: BaseException | None = None) -> None:
        """Give the result, or the exception in its place. Settling twice does nothing."""
        if self._settled:
            return
        self._settled = True
        done, self._done = self._done, None
        if done is not None:
            done(result, error)
        else:
            self._result, self._error = result, error

    def then(self, done: Done) -> None:
        """Have `done(result, exception)` called, at once where it is settled. It must not raise."""
        if not self._settled:
            self._done = done
            return
        result, error = self._result, self._error
        self._result = self._error = None
        done(result, error)

    def map(self, function: Callable[[T], U]) -> "Pending[U]":
        """What `function` makes of the result; what it raises takes the place of that."""
        made: Pending[U] = Pending()

        def done(result: T, error: BaseException | None) -> None:
            value: Any = None
            if error is None:
                try:
                    value = function(result)
                except Exception as raised:  # noqa: BLE001  # goes to the one who waits
                    error = raised
            made.settle(value, error)

        self.then(done)
        return made

    def __await__(self) -> Generator[Any, Any, T]:
        waiter = waiter_maker()()
        outcome: list[tuple[Any, BaseException | None]] = []

        def done(result: Any, error: BaseException | None) -> None:
            outcome.append((result, error))
            waiter.wake()

        self.then(done)
        yield from waiter.wait().__await__()
        result, error = outcome[0]
        if error is not None:
            try:
                raise error
            finally:
                del error, outcome  # else the exception and this frame hold each other
        return result  # type: ignore[no-any-return]


class Worker:
    """One thread of its own that does what it is given, in order.

    It belongs to the event loop that it was made on, and its methods are called there. Its thread
    never keeps the process from ending.
    """

    def __init__(self, name: str) -> None:
        """Start the thread; `name` is for people who look at stacks."""
        self._jobs: Final[SimpleQueue[tuple[Callable[[], Any], Done] | None]] = SimpleQueue()
        self._on_loop: Final = threadsafe_caller()
        self._waiter: Final = waiter_maker()
        self._closed = False
        self._thread: Final = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, function: Callable[[], T], done: Done) -> None:
        """Have the thread call `function`, and then the loop `done(result, exception)`.

        `done` must not raise. Raises `Stopping` once the worker is closed.
        """
        if self._closed:
            raise Stopping("The worker thread has been closed.")
        self._jobs.put((function, done))

    async def run(self, function: Callable[[], T]) -> T:
        """Have the thread call `function`, and return or raise what that does.

        Where the caller is cancelled meanwhile, the function is still carried out and its result
        dropped. Raises `Stopping` once the worker is closed.
        """
        waiter = self._waiter()
        outcome: list[tuple[Any, BaseException | None]] = []

        def done(result: Any, error: BaseException | None) -> None:
            outcome.append((result, error))
            waiter.wake()

        self.submit(function, done)
        await waiter.wait()
        result, error = outcome[0]
        if error is not None:
            try:
                raise error
            finally:
                del error, outcome  # else the exception and this frame hold each other
        return result  # type: ignore[no-any-return]

    def close(self) -> None:
        """Take nothing new; the thread ends behind what it was given. Closing twice is fine."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)

    def join(self, timeout: float) -> bool:
        """Wait (and block) up to `timeout` seconds for the thread's end; whether it has ended."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            function, done = job
            result: Any = None
            error: BaseException | None = None
            try:
                result = function()
            except BaseException as raised:  # noqa: BLE001  # goes to the one who asked for it
                error = raised
            try:
                self._on_loop(partial(done, result, error))
            except RuntimeError:
                return  # the loop has ended, and with it everybody who could be told
            del job, function, done, result, error  # an idle thread keeps nothing alive
