"""Bus: tells listeners what happens, and sees to it that none of them can harm a request.

What pluggy found is compiled once, when a plugin comes or goes, into tuples of `Ear`s; a request
goes through the tuples that it began with. A listener that raises is logged and counted. One that
takes longer than its budget has committed an offence: an async one is cancelled, a plain one cannot
be, so the watchdog names it while it blocks. After repeated offences it is called no more.

An async listener runs in a cancel scope from its first step on. Taking that step outside of it, to
spare the scope for one that never waits, would be cheaper but wrong: a scope which the listener
opens in its first step would then lie outside of ours and be closed before it.
"""

import functools
import inspect
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any, Final

import anyio
import msgspec
from anyio import CancelScope, current_time
from anyio.abc import TaskGroup

from nkv_core.contracts.context import Measurement
from nkv_core.contracts.owner import Owner
from nkv_core.contracts.settings import BusSettings
from nkv_core.errors import PluginInvalid, Rejected
from nkv_core.events import RequestComplete, RequestEnd, RequestStart
from nkv_core.records import Change
from nkv_core.watchdog import Watch, Watchdog

log: Final = logging.getLogger(__name__)
clock: Final = time.perf_counter

#: A listener that behaves for so many seconds has its earlier offences forgiven.
FORGIVEN_AFTER: Final = 600.0
#: Of a failure that repeats, so many are logged, and from then on every thousandth.
LOGGED: Final = 10


class Listener(msgspec.Struct, frozen=True, eq=False):
    """A function that is to be called with each event of one type."""

    event: type
    call: Callable[..., Any]  #: takes the event, or nothing; plain or async
    owner: Owner
    priority: int = 0  #: smaller ones are called earlier
    order: int = 0  #: then in this order: that in which the plugins were first loaded


class Conduct(msgspec.Struct, frozen=True):
    """What the bus knows of one listener."""

    owner: Owner
    event: str  #: name of the event's type
    listener: str  #: name of the function
    calls: int
    errors: int  #: calls that raised
    overruns: int  #: calls that took longer than the budget
    dropped: int  #: events that an async listener was too slow for
    quarantined: bool


def _gone(event: object) -> None:
    """Stands in for a listener that may be called no more."""


class Ear:
    """One listener as the bus calls it, with what is known of its conduct.

    It outlives its listener: a snapshot that a long request keeps holds ears, and an ear that was
    shut holds nothing of its plugin.
    """

    __slots__ = (
        "call",
        "calls",
        "consumed",
        "dropped",
        "errors",
        "event",
        "name",
        "offended",
        "overruns",
        "owner",
        "place",
        "plain",
        "quarantined",
        "strikes",
        "waiting",
        "wake",
    )

    def __init__(self, listener: Listener) -> None:
        """Raises `PluginInvalid` where the function cannot be called with one event."""
        self.call: Callable[[Any], Any] = fitted(listener)
        self.event: Final = listener.event
        self.owner: Final = listener.owner
        self.place: Final = (listener.priority, listener.order)
        self.name: Final = _name(listener.call)
        self.plain: Final = not _is_async(listener.call)
        self.calls = self.errors = self.overruns = self.dropped = 0
        self.strikes = 0  #: offences that are not forgiven
        self.offended = 0.0  #: when the last one was
        self.quarantined = False
        self.waiting: deque[Awaitable[Any]] = deque()  #: calls to be made in the background
        self.consumed = False  #: whether a task makes them
        self.wake: anyio.Event | None = None  #: what that task waits for

    def __str__(self) -> str:
        return f"The {self.event.__name__} listener {self.name} of {self.owner.name}"

    def shut(self) -> None:
        """Call it no more, and hold nothing of it."""
        self.call = _gone
        self.drop_waiting()
        if self.wake is not None:
            self.wake.set()

    def drop_waiting(self) -> None:
        """Give up the calls that wait in the background."""
        if self.waiting:
            log.warning("%s is not told of the last events: %d.", self, len(self.waiting))
        while self.waiting:
            self.dropped += 1
            _discard(self.waiting.popleft())
        self.owner.leave(self)

    def conduct(self) -> Conduct:
        """What is known of it."""
        return Conduct(
            owner=self.owner,
            event=self.event.__name__,
            listener=self.name,
            calls=self.calls,
            errors=self.errors,
            overruns=self.overruns,
            dropped=self.dropped,
            quarantined=self.quarantined,
        )


class Ears:
    """Who is told what, in order. Never changed once made."""

    __slots__ = ("complete", "end", "listened", "others", "plain", "start")

    def __init__(self, ears: Iterable[Ear] = ()) -> None:
        by_event: dict[type, list[Ear]] = {}
        for ear in sorted(ears, key=lambda ear: ear.place):
            if not ear.quarantined:
                by_event.setdefault(ear.event, []).append(ear)
        self.start: Final = tuple(by_event.pop(RequestStart, ()))
        self.complete: Final = tuple(by_event.pop(RequestComplete, ()))
        self.end: Final = tuple(by_event.pop(RequestEnd, ()))
        #: Whether anybody listens to requests, so that their events have to be made at all.
        self.listened: Final = bool(self.start or self.complete or self.end)
        #: Whether nobody has to be waited for before the reply.
        self.plain: Final = all(ear.plain for ear in (*self.start, *self.complete))
        self.others: Final = {event: tuple(ears) for event, ears in by_event.items()}


def measure(conducts: Sequence[Conduct]) -> list[Measurement]:
    """Figures about listeners, for `/metrics`."""

    def counter(what: str, help_: str, count: Callable[[Conduct], int]) -> Measurement:
        totals: dict[tuple[str, str], int] = {}
        for each in conducts:
            key = (each.owner.name, each.event)
            totals[key] = totals.get(key, 0) + count(each)
        samples = [({"plugin": plugin, "event": event}, n) for (plugin, event), n in totals.items()]
        return Measurement(f"nkv_listener_{what}_total", "counter", help_, samples)

    return [
        counter("calls", "Calls of listeners.", lambda each: each.calls),
        counter("errors", "Calls of listeners that raised.", lambda each: each.errors),
        counter("overruns", "Calls of listeners over their budget.", lambda each: each.overruns),
        counter("dropped", "Events that a listener was too slow for.", lambda each: each.dropped),
    ]


def ears_of(listeners: Iterable[Listener]) -> list[Ear]:
    """Compile listeners. Those of `Change` are left out: the watch hub tells these.

    Raises `PluginInvalid` where one cannot be called with an event.
    """
    return [Ear(listener) for listener in listeners if listener.event is not Change]


class Bus:
    """Calls listeners. `changed` is called when one is quarantined, and must make new `Ears`."""

    def __init__(self, settings: BusSettings, changed: Callable[[], None]) -> None:
        self._budget = settings.budget
        self._quarantine_after = settings.quarantine_after
        self._most_waiting = settings.end_queue
        self._changed = changed
        self._watch = Watch()
        self._watchdog = Watchdog(self._watch, settings.budget)
        self._watched = False
        self._tasks: TaskGroup | None = None
        self._backlog: list[Ear] = []  # who has calls waiting from before `run`

    def tell(
        self, ears: tuple[Ear, ...], event: Any, veto: bool, later: bool
    ) -> Coroutine[Any, Any, None] | None:
        """Call all of these with the event; returns what remains to be awaited, or None.

        `veto`: `Rejected` is raised on, at once. `later`: async listeners run in the background.
        """
        watch, budget = self._watch, self._budget
        outer = watch.what  # a listener may itself cause an event
        remaining = iter(ears)
        try:
            for ear in remaining:
                if ear.owner.closed:
                    continue
                watch.since = began = clock()
                watch.what = ear
                ear.calls += 1
                try:
                    result = ear.call(event)
                except Exception as error:  # whatever a plugin raises stops here
                    if veto and isinstance(error, Rejected):
                        raise
                    self._failed(ear, error)
                    result = None
                took = clock() - began
                if took > budget:
                    self._overran(ear, took)
                if result is not None and hasattr(result, "__await__"):
                    if not later:
                        return self._tell_on(ear, result, remaining, event, veto)
                    self._call_later(ear, result)
        finally:
            watch.what = outer
        return None

    async def _tell_on(
        self, ear: Ear, begun: Awaitable[Any], remaining: Iterator[Ear], event: Any, veto: bool
    ) -> None:
        await self._finish(ear, begun, veto)
        rest = self.tell(tuple(remaining), event, veto, later=False)
        if rest is not None:
            await rest

    async def _finish(self, ear: Ear, begun: Awaitable[Any], veto: bool = False) -> None:
        """Await an async listener, within its budget and in the name of its owner."""
        owner, began = ear.owner, clock()
        with CancelScope(deadline=current_time() + self._budget) as scope:
            owner.enter(scope, scope.cancel)
            try:
                await begun
            except Exception as error:  # whatever a plugin raises stops here
                if veto and isinstance(error, Rejected):
                    raise
                self._failed(ear, error)
            finally:
                owner.leave(scope)
        took = clock() - began
        # A call that was cut short because its plugin leaves is no offence.
        if took > self._budget or (scope.cancelled_caught and not owner.draining):
            self._overran(ear, took)

    # --- in the background ------------------------------------------------------------------------

    async def run(self, started: Callable[[], None]) -> None:
        """Run async listeners of what nobody waits for, and the watchdog, until cancelled."""
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                backlog, self._backlog = self._backlog, []
                for ear in backlog:
                    self._consume_soon(ear)
                if self._watched:
                    self._watchdog.start()
                started()
                await anyio.sleep_forever()
        finally:
            self._tasks = None
            self._watchdog.stop()

    def watch(self, needed: bool) -> None:
        """Have the watchdog watch, if anybody is there who could block."""
        self._watched = needed
        if not needed:
            self._watchdog.stop()
        elif self._tasks is not None:
            self._watchdog.start()

    def run_later(self, rest: Coroutine[Any, Any, None]) -> None:
        """Run what remains of a request that nobody awaits. It must not raise."""
        if self._tasks is None:
            rest.close()
        else:
            self._tasks.start_soon(_awaited, rest)

    def _call_later(self, ear: Ear, begun: Awaitable[Any]) -> None:
        if len(ear.waiting) >= self._most_waiting:
            ear.dropped += 1
            _discard(begun)
            if _worth_a_line(ear.dropped):
                log.warning("%s is too slow: %d events were dropped.", ear, ear.dropped)
            return
        if not ear.waiting:
            # Its plugin is not closed before it has heard what happened until then.
            ear.owner.enter(ear, ear.drop_waiting)
        ear.waiting.append(begun)
        if ear.wake is not None:
            ear.wake.set()
        elif not ear.consumed:
            self._consume_soon(ear)

    def _consume_soon(self, ear: Ear) -> None:
        ear.consumed = True
        if self._tasks is None:
            self._backlog.append(ear)
        else:
            self._tasks.start_soon(self._consume, ear, name=f"nkv: {ear}")

    async def _consume(self, ear: Ear) -> None:
        """Make the waiting calls of one listener, one by one, until it is shut."""
        try:
            while True:
                while ear.waiting:
                    await self._finish(ear, ear.waiting.popleft())
                ear.owner.leave(ear)
                if ear.call is _gone:
                    return
                ear.wake = anyio.Event()
                await ear.wake.wait()
                ear.wake = None
        finally:
            ear.consumed = False
            ear.wake = None
            ear.drop_waiting()

    # --- conduct ----------------------------------------------------------------------------------

    def _failed(self, ear: Ear, error: Exception) -> None:
        ear.errors += 1
        if _worth_a_line(ear.errors):
            log.error("%s failed, %d times so far.", ear, ear.errors, exc_info=error)

    def _overran(self, ear: Ear, took: float) -> None:
        now = clock()
        ear.strikes = 1 if now - ear.offended > FORGIVEN_AFTER else ear.strikes + 1
        ear.offended = now
        ear.overruns += 1
        log.warning("%s took %.3f s; it may take %.3f s.", ear, took, self._budget)
        if ear.strikes >= self._quarantine_after and not ear.quarantined:
            ear.quarantined = True
            ear.shut()
            log.error("%s is called no more: it took too long %d times.", ear, ear.strikes)
            self._changed()


async def _awaited(rest: Coroutine[Any, Any, None]) -> None:
    await rest


def _worth_a_line(count: int) -> bool:
    return count <= LOGGED or count % 1000 == 0


def _discard(begun: Awaitable[Any]) -> None:
    """Give up a call that was never awaited, without the warning that this is owed otherwise."""
    close = getattr(begun, "close", None)
    if close is not None:
        close()


def fitted(listener: Listener) -> Callable[[Any], Any]:
    """The function as one of an event, which it need not take, as with pluggy's own calls."""
    call = listener.call
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        if not callable(call):
            raise PluginInvalid(f"{call!r} of {listener.owner.name} cannot be called.") from None
        return call  # something built in that does not tell
    kinds = inspect.Parameter
    places = [
        p for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    ]
    taken = bool(places) or any(p.kind is kinds.VAR_POSITIONAL for p in parameters)
    required = [p for p in places if p.default is kinds.empty]
    keywords = [p for p in parameters if p.kind is kinds.KEYWORD_ONLY and p.default is kinds.empty]
    if len(required) > 1 or keywords:
        names = ", ".join(p.name for p in (*required, *keywords))
        raise PluginInvalid(
            f"{_name(call)} of {listener.owner.name} takes {names}; a listener takes the event."
        )
    return call if taken else lambda event: call()


def _is_async(call: Callable[..., Any]) -> bool:
    while isinstance(call, functools.partial):
        call = call.func
    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(
        getattr(call, "__call__", None)  # noqa: B004  # the method of an object that can be called
    )


def _name(call: Callable[..., Any]) -> str:
    while isinstance(call, functools.partial):
        call = call.func
    return getattr(call, "__qualname__", None) or type(call).__qualname__
