"""Dispatch: takes every request, whatever its protocol, through its life.

RequestStart, the handler, RequestComplete, the reply, RequestEnd. Routes and listeners are an
immutable snapshot that `switch` replaces in one synchronous step; a request keeps the listeners and
the route that it began with. Of the snapshot itself it keeps nothing, so that a long stream holds
no plugin but those that serve it.
"""

import logging
import math
import sys
import time
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Final, NamedTuple

import anyio
import msgspec
from anyio import CancelScope, current_time
from anyio.abc import TaskStatus

from nkv_core.auth import NOBODY, Auth, GuardedKeyspace
from nkv_core.bus import Bus, Conduct, Ear, Ears, Listener, ears_of, measure
from nkv_core.contracts.context import Measurement, NodeView
from nkv_core.contracts.handlers import (
    Handover,
    Reply,
    ReplyNow,
    ReplyWith,
    Request,
    Route,
)
from nkv_core.contracts.keyspace import Keyspace
from nkv_core.contracts.owner import CORE, Owner
from nkv_core.contracts.settings import BusSettings
from nkv_core.errors import (
    ClientGone,
    DeadlineExceeded,
    MethodNotAllowed,
    NkvError,
    NoHandler,
    PluginInvalid,
    PluginNotFound,
    Rejected,
    Stopping,
    Unauthenticated,
)
from nkv_core.events import RequestComplete, RequestEnd, RequestStart
from nkv_core.handlers import Routes, without
from nkv_core.life import GONE, Life, cut_short, failure, refusal
from nkv_core.records import Change
from nkv_core.tally import Tally

log: Final = logging.getLogger(__name__)
clock: Final = time.perf_counter

#: Embedders' listeners come after those of plugins with the same priority.
_LAST: Final = sys.maxsize
#: Outcomes whose reply takes no longer than it takes to send them. That of all others, streams and
#: connections handed over among them, may be ended by force when the plugin has to go.
_BRIEF: Final = frozenset((type(None), bytes, str, dict, list, Reply))


class Registration(msgspec.Struct, frozen=True, eq=False):
    """All that one generation of a plugin has registered."""

    owner: Owner
    routes: tuple[Route, ...] = ()
    listeners: tuple[Listener, ...] = ()


class Snapshot(NamedTuple):
    """Routes and listeners of one moment."""

    routes: Routes
    ears: Ears


class Dispatcher:
    """Serves requests by the handlers of plugins. All of it runs on the event loop."""

    #: Set by the node before the first request.
    node: NodeView
    keyspace: Keyspace

    def __init__(self, *, settings: BusSettings, auth: Auth | None = None) -> None:
        self._auth = auth
        self._bus = Bus(settings, self._listeners_changed)
        self._registrations: dict[Owner, Registration] = {CORE: Registration(CORE)}
        self._ears: dict[Owner, list[Ear]] = {CORE: []}
        self._snapshot = Snapshot(Routes(), Ears())
        self._count = 0
        self._tally = Tally()

    # --- what is registered -----------------------------------------------------------------------

    def switch(self, *, leave: Owner | None = None, enter: Registration | None = None) -> None:
        """Take out one generation and put in another, in one synchronous step.

        Raises `RouteTaken` or `PluginInvalid`, and then has changed nothing.
        """
        self.exchange(
            leave=() if leave is None else (leave,), enter=() if enter is None else (enter,)
        )

    def exchange(
        self, *, leave: Collection[Owner], enter: Collection[Registration]
    ) -> list[Registration]:
        """Take out some generations and put in others, in one synchronous step. Returns what those
        that are out had registered by then, so that they can be put in again.

        Raises `RouteTaken` or `PluginInvalid`, and then has changed nothing.
        """
        left = [self._registrations[owner] for owner in leave if owner in self._registrations]
        registrations = {o: r for o, r in self._registrations.items() if o not in leave}
        ears = {owner: of_owner for owner, of_owner in self._ears.items() if owner not in leave}
        entering = {each.owner: ears_of(each.listeners) for each in enter}
        registrations.update((each.owner, each) for each in enter)
        ears.update(entering)
        routes = Routes(r for registration in registrations.values() for r in registration.routes)
        for owner, of_owner in entering.items():
            for ear in of_owner:
                owner.when_closed(ear.shut)
        self._registrations, self._ears = registrations, ears
        self._listeners_changed(routes)
        return left

    def add_route(self, route: Route) -> None:
        """Add to what a live generation has registered. Raises `RouteTaken`, `PluginInvalid`, and
        `Stopping` where the generation is not live, or no longer.
        """
        registration = self._registrations.get(route.owner)
        if registration is None:
            raise Stopping(f"{route.owner.name} is not loaded, or is being unloaded.")
        self._set_routes(registration, (*registration.routes, route))

    def remove_route(self, listener: str, method: str, path: str, owner: Owner) -> None:
        """Take back a route of a generation. Raises `PluginNotFound` where it has none such."""
        registration = self._registrations.get(owner)
        if registration is None:
            raise PluginNotFound(f"{owner.name} is not loaded, or is being unloaded.")
        left = without(registration.routes, listener, method, path, owner)
        self._set_routes(registration, left)

    def on(
        self, event: type, listener: Callable[..., Any], priority: int = 0
    ) -> Callable[[], None]:
        """Have `listener` called with each event of this type; returns what ends that.

        Raises `PluginInvalid` where it cannot be called with one event.
        """
        if event is Change:
            raise PluginInvalid("Changes are not told by the bus: watch the keyspace.")
        (ear,) = ears_of([Listener(event, listener, CORE, priority, _LAST)])
        self._ears[CORE].append(ear)
        self._listeners_changed()

        def off() -> None:
            if ear in self._ears[CORE]:
                self._ears[CORE].remove(ear)
                ear.shut()
                self._listeners_changed()

        return off

    def routes(self, listener: str) -> list[Route]:
        """The routes of a listener, as registered now."""
        return [route for route in self._snapshot.routes.all if route.listener == listener]

    def offences(self) -> list[Conduct]:
        """What is known of the conduct of each listener."""
        return [ear.conduct() for ears in self._ears.values() for ear in ears]

    def measurements(self) -> list[Measurement]:
        """Figures about requests and listeners."""
        return [*self._tally.measurements(self._count), *measure(self.offences())]

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Run async listeners that nobody waits for, and the watchdog, until cancelled."""
        await self._bus.run(task_status.started)

    def renew(self, auth: Auth) -> None:
        """Have requests that come from now on identified by other tokens."""
        self._auth = auth

    def emit(self, event: Any) -> None:
        """Tell of an event of the node's own. Never raises; async listeners run later."""
        ears = self._snapshot.ears.others.get(type(event))
        if ears is not None:
            self._bus.tell(ears, event, False, True)

    def _set_routes(self, registration: Registration, routes: tuple[Route, ...]) -> None:
        changed = msgspec.structs.replace(registration, routes=routes)
        registrations = {**self._registrations, registration.owner: changed}
        table = Routes(r for each in registrations.values() for r in each.routes)
        self._registrations = registrations
        self._listeners_changed(table)

    def _listeners_changed(self, routes: Routes | None = None) -> None:
        ears = [ear for of_owner in self._ears.values() for ear in of_owner]
        if routes is None:
            routes = self._snapshot.routes
        self._snapshot = Snapshot(routes, Ears(ears))
        self._bus.watch(any(ear.plain and not ear.quarantined for ear in ears))

    # --- the life of a request --------------------------------------------------------------------

    # One function, and not several: each that is awaited between here and the handler would add a
    # tenth of what the whole life costs.
    async def dispatch(self, request: Request, reply: ReplyWith) -> None:  # noqa: PLR0912, PLR0915
        """Take a request through its life. Raises nothing but cancellation.

        `reply` is awaited with the outcome, the error and the route, which for an error may be that
        of another method, and then only says in what form to answer. What it raises is noted in
        RequestEnd, and logged unless the client is gone.
        """
        began = clock()
        routes, ears = self._snapshot
        self._count = request.id = self._count + 1
        request.node = self.node
        request.owner = CORE
        start: RequestStart | None = None
        outcome: Any = None
        error: NkvError | None = None
        try:
            route, rest, error = self._admit(request, routes)
            del routes
            if ears.listened:
                start = _start_of(request)
                try:
                    waiting = self._bus.tell(ears.start, start, True, False)
                    if waiting is not None:
                        await waiting
                except Rejected as refused:
                    error = refused.with_traceback(None)
            if route is not None and error is None and route.owner.draining:
                route, rest, error = self._admit_again(request, route, rest)
            if route is not None and error is None:
                request.owner = route.owner
                try:
                    if route.timeout is None and route.kind == "handler":
                        route.owner.enter(request)
                        if request.receive_body is not None:
                            await _receive(request, route)
                        outcome = route.target(request)
                        if hasattr(outcome, "__await__"):
                            outcome = await outcome
                    else:
                        outcome = await _call_within(request, route, rest)
                except Exception as raised:  # noqa: BLE001  # whatever a handler raises is answered
                    outcome, error = None, refusal(raised, request)
            if start is not None and ears.complete:
                complete = RequestComplete(start, outcome, error)
                waiting = self._bus.tell(ears.complete, complete, False, False)
                if waiting is not None:
                    await waiting
                outcome, error = complete.outcome, complete.error
            try:
                if type(outcome) in _BRIEF and (route is None or route.timeout is None):
                    await reply(outcome, error, route)
                else:
                    error = await _reply_within(request, reply, outcome, error, route)
            except Exception as raised:  # noqa: BLE001  # a stream's, or a transport's: it ends here
                error = failure(raised, request)
        except BaseException:
            error = cut_short(request)
            raise
        finally:
            elapsed = clock() - began
            request.owner.leave(request)
            self._tally.note(request.transport, request.command, outcome, error, elapsed)
            if start is not None and ears.end:
                end = RequestEnd(start, outcome, error, elapsed)
                self._bus.tell(ears.end, end, False, True)

    def dispatch_now(self, request: Request, reply: ReplyNow) -> Coroutine[Any, Any, None] | None:
        """As `dispatch`, but a plain function, which goes as far as it can without waiting.

        None says that `reply` was called, or will be as soon as the `Pending` is settled that the
        handler gave; otherwise the rest is to be awaited in a task. At once goes what a handler
        without a deadline answers, as long as no async listener has to be heard before the reply.
        `reply` must not wait, so a transport that streams has no use for this.
        """
        routes, ears = self._snapshot
        route = routes.exact.get((request.transport, request.method, request.path))
        if route is None:
            route = _found_in(routes, request)
        if (
            route is None
            or route.timeout is not None
            or route.kind != "handler"
            or request.receive_body is not None
            or route.owner.draining
            or not ears.plain
        ):
            return self.dispatch(request, _later(reply))
        life = Life(request, reply, route, ears=ears, bus=self._bus, tally=self._tally)
        self._count = request.id = self._count + 1
        request.node = self.node
        request.command = route.command or route.path
        request.owner = CORE
        error: NkvError | None = None
        if self._auth is None:
            request.identity = None
            request.keyspace = self.keyspace
        else:
            error = self._identify(self._auth, request, route)
        return life.begin(_start_of(request) if ears.listened else None, error)

    def _admit(self, request: Request, routes: Routes) -> tuple[Route | None, str, NkvError | None]:
        """Who is to answer, what is left of the path behind a mount, and why not after all."""
        error: NkvError | None = None
        rest = request.path
        route = routes.exact.get((request.transport, request.method, rest))
        if route is None:
            try:
                route, params, rest = routes.find(request.transport, request.method, rest)
                if params is not None:
                    request.params = {**request.params, **params}
            except NoHandler as refused:
                error = refused.with_traceback(None)
            except MethodNotAllowed as refused:
                error = refused.with_traceback(None)
                route = routes.sibling(request.transport, request.path)
        if route is not None:
            request.command = route.command or route.path
        if self._auth is None:
            request.identity = None
            request.keyspace = self.keyspace
        else:
            error = self._identify(self._auth, request, route) or error
        return route, rest, error

    def _identify(
        self, auth: Auth, request: Request, route: Route | None
    ) -> Unauthenticated | None:
        try:
            identity = auth.identify(request.credential)
        except Unauthenticated as refused:
            request.identity = None
            request.keyspace = GuardedKeyspace(self.keyspace, NOBODY)
            return None if route is not None and route.public else refused
        request.identity = identity
        request.keyspace = GuardedKeyspace(self.keyspace, identity)
        return None

    def _admit_again(
        self, request: Request, route: Route, rest: str
    ) -> tuple[Route | None, str, NkvError | None]:
        """As `_admit`, for a request whose plugin was told to go before the handler was called."""
        owner = route.owner
        if owner.running and not owner.closed:
            return route, rest, None  # it still serves what began with it
        # It has been drained, and may be half taken apart: whoever follows it answers.
        return self._admit(request, self._snapshot.routes)


def _found_in(routes: Routes, request: Request) -> Route | None:
    """The route of a path with parameters, which the request is given; None where there is none."""
    try:
        route, params, _ = routes.find(request.transport, request.method, request.path)
    except (NoHandler, MethodNotAllowed):
        return None
    if params is not None:
        request.params = {**request.params, **params} if request.params else params
    return route


def _later(reply: ReplyNow) -> ReplyWith:
    async def reply_with(outcome: Any, error: NkvError | None, route: Route | None) -> None:
        reply(outcome, error, route)

    return reply_with


async def _reply_within(
    request: Request,
    reply: ReplyWith,
    outcome: Any,
    error: NkvError | None,
    route: Route | None,
) -> NkvError | None:
    """Reply with what may take as long as the client likes: unloading its plugin ends it."""
    with CancelScope() as scope:
        request.owner.enter(request, scope.cancel)
        await reply(outcome, error, route)
        return error
    return Stopping()


async def _call_within(request: Request, route: Route, rest: str) -> Any:
    """Call the handler until its deadline, or until its plugin has to go.

    Raises `DeadlineExceeded` or `Stopping`.
    """
    limit = math.inf if route.timeout is None else route.timeout
    deadline = current_time() + limit
    with CancelScope(deadline=deadline) as scope:
        route.owner.enter(request, scope.cancel)
        if route.kind != "handler":
            return Handover(route, rest)
        if request.receive_body is not None:
            await _receive(request, route)
        outcome = route.target(request)
        return await outcome if hasattr(outcome, "__await__") else outcome
    if current_time() < deadline:
        raise Stopping
    raise DeadlineExceeded(f"This took more than {limit:g} s. A write under way may yet be made.")


async def _receive(request: Request, route: Route) -> None:
    if request.receive_body is not None:
        try:
            request.body = await request.receive_body(route.max_body)
        except GONE:
            raise ClientGone from None


def _start_of(request: Request) -> RequestStart:
    return RequestStart(
        request.id,
        request.command,
        request.path,
        request.params,
        request.peer,
        request.identity,
        request.transport,
    )
