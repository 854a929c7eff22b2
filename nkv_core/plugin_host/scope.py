"""Scope: what a generation of a plugin enters when it is set up, and leaves when it ends.

Two tasks live in it. One enters what the setup enters, and leaves it; the other hosts the plugin's
own tasks. They are two because a cancel scope must be left by the task that entered it, inside out,
and a plugin's setup may enter scopes of its own in any order. Both are shielded from whoever runs
them: a scope ends in good order, or at its deadline, never half-way because something else ended.
"""

import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Final

import anyio
from anyio import CancelScope, Event, current_time
from anyio.abc import TaskGroup

#: Seconds that what was told to end at once gets to unwind, before it is left to itself.
GRACE: Final = 1.0

log = logging.getLogger("nkv.plugins")

#: What a plugin may raise; its `SystemExit` must not end the node. Cancellation goes on.
ANY_ERROR: Final = (Exception, BaseExceptionGroup, SystemExit)


class Scope:
    """The scope of one generation. `failed` is told, at once, what its tasks or its setup raise."""

    def __init__(
        self, name: str, *, close_deadline: float, failed: Callable[[BaseException], None]
    ) -> None:
        self.tasks: TaskGroup
        self.stack: Final = AsyncExitStack()
        self.settled: Final = Event()  #: set up, or told to end before it was
        self.ended: Final = Event()
        self._name = name
        self._close_deadline = close_deadline
        self._failed = failed
        self._set_up = False
        self._life = CancelScope()
        self._shield = CancelScope(shield=True)
        self._hosting = Event()
        self._ending = Event()
        self._end_tasks = Event()
        self._tasks_ended = Event()

    @property
    def ending(self) -> bool:
        """Whether it has been told to end."""
        return self._ending.is_set()

    async def live(self, set_up: Callable[[], Awaitable[None]]) -> None:
        """Enter, call `set_up`, wait until `end`, and leave. Raises nothing."""
        try:
            with self._shield:
                async with anyio.create_task_group() as both:
                    both.start_soon(self._host, name=f"nkv: tasks of {self._name}")
                    await self._hosting.wait()
                    both.start_soon(self._inhabit, set_up, name=f"nkv: scope of {self._name}")
        finally:
            self.ended.set()

    def end(self) -> None:
        """Have it left: the tasks are cancelled, then what was entered is left."""
        self._ending.set()
        self.settled.set()

    async def left(self) -> bool:
        """Wait until it has ended, but no longer than it may take; whether it has."""
        with anyio.move_on_after(self._close_deadline + 2 * GRACE):
            await self.ended.wait()
        if not self.ended.is_set():
            self._shield.shield = False  # whoever runs it may cancel it, if that helps
        return self.ended.is_set()

    async def give_up(self) -> bool:
        """End it, in the middle of its setup too; whether it has ended."""
        self.end()
        self._end_tasks.set()
        with anyio.move_on_after(GRACE):
            await self._tasks_ended.wait()
        if not self._set_up:
            self._life.cancel()
        return await self.left()

    async def _host(self) -> None:
        """Host the plugin's tasks. One that raises ends the others, and the scope."""
        try:
            async with anyio.create_task_group() as self.tasks:
                self._hosting.set()
                await self._end_tasks.wait()
                self.tasks.cancel_scope.cancel()
        except ANY_ERROR as error:
            self._failed(error)
        finally:
            self._tasks_ended.set()

    async def _inhabit(self, set_up: Callable[[], Awaitable[None]]) -> None:
        with self._life:
            try:
                await set_up()
                self._set_up = True
                self.settled.set()
                await self._ending.wait()
            except ANY_ERROR as error:
                self._failed(error)
            finally:
                self._set_up = True
                self.end()
                self._life.deadline = current_time() + self._close_deadline
                await self._leave()
        if self._life.cancelled_caught:
            log.warning("%s did not close in time, and was cut short.", self._name)

    async def _leave(self) -> None:
        self._end_tasks.set()
        try:
            await self._tasks_ended.wait()
        finally:
            try:
                # Without an error of somebody else's in hand: leaving is the same whatever the
                # reason for it.
                await self.stack.aclose()
            except ANY_ERROR as error:
                self._failed(error)
