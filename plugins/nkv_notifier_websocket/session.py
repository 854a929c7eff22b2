"""Session: one WebSocket, its requests and its subscriptions.

Two tasks serve it. One takes requests and answers them, in the order in which they come; the other
tells what the subscriptions have to tell. Neither keeps a queue: each sends one message and waits
until the connection has taken it. So a client that does not read holds cursors of the hub, a few
items of each subscription, and is not read from any more.
"""

from collections import deque
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from nkv_core.contracts.handlers import Dispatch, Request, Route, WebSocket
from nkv_core.contracts.watch import Ended, Hub
from nkv_core.errors import BadRequest, NkvError, NotFound, Overloaded, Stopping
from nkv_core.keys import Pattern
from nkv_core.records import Token

from .commands import Command
from .messages import Id, Message, Subscribe, failure, id_of, parse, result
from .settings import WebSocketSettings
from .subscription import Subscription


class Session:
    """One connection."""

    def __init__(
        self,
        request: Request,
        websocket: WebSocket,
        settings: WebSocketSettings,
        dispatch: Dispatch,
    ) -> None:
        self._request = request
        self._websocket = websocket
        self._settings = settings
        self._dispatch = dispatch
        self._subscriptions: dict[Id, Subscription] = {}
        #: Those that may have something to tell, each once, in the order of their turns.
        self._turns: deque[Subscription] = deque()
        self._called = anyio.Event()
        #: Messages go out one at a time; what is decided on under this lock is what goes out next.
        self._sending = anyio.Lock(fast_acquire=True)
        self._ending = False

    # --- requests ---------------------------------------------------------------------------------

    async def answer(self) -> None:
        """Answer requests until the connection ends; then say how far each subscription has come.

        Raises `Stopping` once nothing can be sent any more.
        """
        while (text := await self._websocket.receive()) is not None:
            try:
                message = parse(text)
                if self._request.owner.draining:
                    raise Stopping  # whoever answers in our place knows nothing of our sessions
            except NkvError as error:
                await self._send(failure(id_of(text), error))
                continue
            await self._carry_out(message)
        await self._say_goodbye()

    async def _carry_out(self, message: Message) -> None:
        async def reply(outcome: Any, error: NkvError | None, _: Route | None) -> None:
            if error is None:
                await self._send(result(message.id, outcome))
            else:
                await self._send(failure(message.id, error))
            if isinstance(message, Subscribe):
                self._settle(message.subscription, began=error is None)

        await self._dispatch(Command(self._request, message, self), reply)

    def subscribe(self, wish: Subscribe, hub: Hub) -> dict[str, Any]:
        """Begin a subscription, which tells nothing before `_settle`.

        Raises `BadRequest` where there is one of this name, `Overloaded` where there are too many,
        and what the hub raises.
        """
        if wish.subscription in self._subscriptions:
            raise BadRequest(f"There is a subscription {wish.subscription!r} already.")
        if len(self._subscriptions) >= self._settings.max_subscriptions:
            raise Overloaded(f"There are {len(self._subscriptions)} subscriptions already.")
        subscription = Subscription(wish.subscription, hub, self._call)
        subscription.watch(
            Pattern(wish.pattern),
            mode=wish.mode,
            since=None if wish.since is None else Token.parse(wish.since),
            snapshot=wish.snapshot,
            label=f"websocket {self._request.peer}",
        )
        self._subscriptions[wish.subscription] = subscription
        return {"token": subscription.place}

    def _settle(self, name: Id, *, began: bool) -> None:
        """Let a subscription speak, now that its client knows of it; or forget it."""
        subscription = self._subscriptions.get(name)
        if subscription is not None and not subscription.settled:
            if began:
                subscription.settle()
            else:
                self._end(subscription)

    def unsubscribe(self, name: Id) -> dict[str, Any]:
        """End a subscription; says where one could go on. Raises `NotFound`."""
        subscription = self._subscriptions.get(name)
        if subscription is None:
            raise NotFound(f"There is no subscription {name!r}.")
        place = subscription.place
        self._end(subscription)
        return {"token": place}

    def _end(self, subscription: Subscription) -> None:
        subscription.close()
        del self._subscriptions[subscription.name]

    # --- events -----------------------------------------------------------------------------------

    def _call(self, subscription: Subscription) -> None:
        """Give a subscription a turn, as it has something to tell. Called within a commit."""
        self._turns.append(subscription)
        self._called.set()

    async def tell(self) -> None:
        """Tell what subscriptions have to tell, in turns, until cancelled.

        Raises `Stopping` once nothing can be sent any more.
        """
        while True:
            while self._turns:
                subscription = self._turns.popleft()
                if await self._tell_some(subscription):
                    self._turns.append(subscription)
                await checkpoint()  # who reads as fast as others write must not keep them from it
            self._called = anyio.Event()
            with anyio.move_on_after(self._settings.heartbeat):
                await self._called.wait()
                continue
            await self._tell_places()

    async def _tell_some(self, subscription: Subscription) -> bool:
        """One turn of a subscription; whether it wants another one."""
        for _ in range(subscription.take()):
            async with self._sending:
                if self._ending or subscription.closed:
                    return False
                text = subscription.next()
                if subscription.ended:
                    self._end(subscription)
                await self._websocket.send(text)
        return not (subscription.waits or subscription.closed)

    async def _tell_places(self) -> None:
        """Tell of each subscription how far it has come, where that is news."""
        for subscription in list(self._subscriptions.values()):
            async with self._sending:
                news = None if self._ending else subscription.news_of_place()
                if news is not None:
                    await self._websocket.send(news)

    # --- the end ----------------------------------------------------------------------------------

    async def _say_goodbye(self) -> None:
        """Tell of each subscription where to resume it elsewhere."""
        self._ending = True
        stopping = Stopping()
        async with self._sending:
            for subscription in self._subscriptions.values():
                place = subscription.goodbye_place
                item = Ended(place, stopping.code, stopping.detail)
                await self._websocket.send(subscription.text_of(item))

    def close(self) -> None:
        """End all subscriptions."""
        for subscription in list(self._subscriptions.values()):
            self._end(subscription)

    async def _send(self, text: str) -> None:
        async with self._sending:
            await self._websocket.send(text)
