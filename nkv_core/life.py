"""Life: a request on its way through `Dispatcher.dispatch_now`, and how requests fail."""

import logging
import time
from collections.abc import Awaitable, Coroutine
from typing import Any, Final

import anyio

from nkv_core.bus import Bus, Ears
from nkv_core.contracts.handlers import ReplyNow, Request, Route
from nkv_core.errors import ClientGone, HandlerFailed, NkvError, Rejected, Stopping
from nkv_core.events import RequestComplete, RequestEnd, RequestStart
from nkv_core.loop import Pending
from nkv_core.tally import Tally

log: Final = logging.getLogger("nkv_core.dispatch")
clock: Final = time.perf_counter

#: How a transport's own calls fail where the other side is gone.
GONE: Final = (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)

#: What remains to be awaited, if anything does.
Rest = Coroutine[Any, Any, None] | None


class Life:
    """One request, with the route and the listeners that it began with."""

    __slots__ = ("_bus", "_ears", "_reply_to", "_start", "_tally", "began", "request", "route")

    def __init__(
        self,
        request: Request,
        reply: ReplyNow,
        route: Route,
        *,
        ears: Ears,
        bus: Bus,
        tally: Tally,
    ) -> None:
        self.began: Final = clock()
        self.request: Final = request
        self.route: Final = route
        self._reply_to = reply
        self._ears = ears
        self._bus = bus
        self._tally = tally
        self._start: RequestStart | None = None

    def begin(self, start: RequestStart | None, error: NkvError | None) -> Rest:
        """RequestStart, the handler, and what follows, as far as nothing has to be waited for."""
        if start is not None:
            self._start = start
            try:
                waiting = self._bus.tell(self._ears.start, start, True, False)
            except Rejected as refused:
                error = refused.with_traceback(None)
            else:
                if waiting is not None:  # it looked plain, but was not
                    return self._begin_later(waiting, error)
        outcome: Any = None
        if error is None:
            try:
                outcome = self._call()
            except Exception as raised:  # noqa: BLE001  # whatever a handler raises is answered
                error = refusal(raised, self.request)
            else:
                if type(outcome) is Pending:
                    outcome.then(self._settled)
                    return None
                if hasattr(outcome, "__await__"):
                    return self._go_on(outcome)
        return self._finish(outcome, error)

    def _call(self) -> Any:
        request, owner = self.request, self.route.owner
        if owner.closed:  # a listener that was waited for took long
            raise Stopping
        request.owner = owner
        owner.enter(request)
        return self.route.target(request)

    async def _begin_later(self, waiting: Awaitable[None], error: NkvError | None) -> None:
        outcome: Any = None
        try:
            try:
                await waiting
                if error is None:
                    outcome = self._call()
                    if hasattr(outcome, "__await__"):
                        outcome = await outcome
            except Exception as raised:  # noqa: BLE001  # whatever a handler raises is answered
                outcome, error = None, refusal(raised, self.request)
        except BaseException:
            self._end(None, cut_short(self.request))
            raise
        await self._finish_later(outcome, error)

    async def _go_on(self, awaited: Awaitable[Any]) -> None:
        """Wait for what the handler has begun."""
        outcome: Any = None
        error: NkvError | None = None
        try:
            try:
                outcome = await awaited
            except Exception as raised:  # noqa: BLE001  # whatever a handler raises is answered
                error = refusal(raised, self.request)
        except BaseException:
            self._end(None, cut_short(self.request))
            raise
        await self._finish_later(outcome, error)

    def _settled(self, outcome: Any, raised: BaseException | None) -> None:
        """What the handler had begun is there. Nobody waits for this: it must not raise."""
        error: NkvError | None = None
        if raised is not None:
            outcome = None
            error = (
                refusal(raised, self.request) if isinstance(raised, Exception) else HandlerFailed()
            )
        rest = self._finish(outcome, error)
        if rest is not None:  # a listener that looked plain has to be waited for
            self._bus.run_later(rest)

    async def _finish_later(self, outcome: Any, error: NkvError | None) -> None:
        rest = self._finish(outcome, error)
        if rest is not None:
            await rest

    def _finish(self, outcome: Any, error: NkvError | None) -> Rest:
        """RequestComplete, the reply, RequestEnd."""
        if self._start is not None and self._ears.complete:
            complete = RequestComplete(self._start, outcome, error)
            waiting = self._bus.tell(self._ears.complete, complete, False, False)
            if waiting is not None:
                return self._reply_later(complete, waiting)
            outcome, error = complete.outcome, complete.error
        self._reply(outcome, error)
        return None

    async def _reply_later(self, complete: RequestComplete, waiting: Awaitable[None]) -> None:
        try:
            await waiting
        except BaseException:
            self._end(None, cut_short(self.request))
            raise
        self._reply(complete.outcome, complete.error)

    def _reply(self, outcome: Any, error: NkvError | None) -> None:
        try:
            self._reply_to(outcome, error, self.route)
        except Exception as raised:  # noqa: BLE001  # a transport's: it ends here
            error = failure(raised, self.request)
        self._end(outcome, error)

    def _end(self, outcome: Any, error: NkvError | None) -> None:
        request = self.request
        elapsed = clock() - self.began
        request.owner.leave(request)
        self._tally.note(request.transport, request.command, outcome, error, elapsed)
        if self._start is not None and self._ears.end:
            end = RequestEnd(self._start, outcome, error, elapsed)
            self._bus.tell(self._ears.end, end, False, True)


def cut_short(request: Request) -> NkvError:
    """The error with which a request ends that was cancelled."""
    return Stopping() if request.owner.draining else ClientGone()


def refusal(raised: Exception, request: Request) -> NkvError:
    """The error that answers a request whose handler raised this."""
    if isinstance(raised, NkvError):
        # Events may be kept for a while, and the frames of a handler are not to be kept by them.
        return raised.with_traceback(None)
    log.error(
        "The handler of %s for %s failed.", request.owner.name, request.command, exc_info=raised
    )
    return HandlerFailed()


def failure(raised: Exception, request: Request) -> NkvError:
    """The error with which a request ends whose reply raised this."""
    if isinstance(raised, NkvError):
        return raised.with_traceback(None)
    if isinstance(raised, GONE):
        return ClientGone()
    log.error("The reply to request %d, %s, failed.", request.id, request.command, exc_info=raised)
    return HandlerFailed()
