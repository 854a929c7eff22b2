"""Subscription: one watcher of a session, and how far its client has been told."""

from collections import deque
from collections.abc import Callable
from typing import Any

from nkv_core.contracts.watch import Ended, Hub, Item, Watcher
from nkv_core.keys import Pattern
from nkv_core.records import Token

from .messages import Id, event, heartbeat, prefix

#: Items taken at once, for one turn: the more, the longer the other subscriptions wait.
_TURN = 8


class Subscription:
    """What a session has of one subscription. `call` asks for a turn; at most one at a time."""

    def __init__(self, name: Id, hub: Hub, call: Callable[["Subscription"], None]) -> None:
        self.name = name
        #: Whether the client knows of it, so that it may be told something.
        self.settled = False
        self.closed = False
        #: Whether the hub has ended it, and that was told.
        self.ended = False
        #: Whether there is nothing to tell until the hub wakes it.
        self.waits = True
        self._hub = hub
        self._call = call
        self._prefix = prefix(name)
        self._items: deque[Item] = deque()
        self._watcher: Watcher
        self._place: Token | None
        self._told: Token | None

    def watch(self, pattern: Pattern, **options: Any) -> None:
        """Begin to watch; the options are those of the hub. Raises what the hub raises."""
        self._watcher = self._hub.watch(pattern, wake=self._wake, **options)
        self._place = self._told = self._watcher.token

    def settle(self) -> None:
        """Ask for the first turn."""
        self.settled = True
        self._wake()

    def _wake(self) -> None:
        if self.settled and self.waits and not self.closed:
            self.waits = False
            self._call(self)

    def take(self) -> int:
        """Take what may be told in one turn; how much that is."""
        if not self._items and not self.closed:
            self._items.extend(self._watcher.take(_TURN))
            self.waits = not self._items
        return len(self._items)

    def next(self) -> str:
        """The next event, which counts as told from now on."""
        item = self._items.popleft()
        self._place = item.token
        if item.token is not None:
            self._told = item.token
        self.ended = isinstance(item, Ended)
        return self.text_of(item)

    def text_of(self, item: Item) -> str:
        """An item as an event of this subscription."""
        return self._prefix + event(item, self._hub)

    @property
    def goodbye_place(self) -> Token | None:
        """Where to resume behind what was told."""
        # While nothing is left over, the watcher knows of changes that were no concern of ours.
        return self._place if self._items else self._watcher.token

    @property
    def place(self) -> str | None:
        """The same as text."""
        token = self.goodbye_place
        return None if token is None else str(token)

    def news_of_place(self) -> str | None:
        """A heartbeat that moves the client's place on; None where there is nothing new in it."""
        token = self.goodbye_place
        if token is None or token == self._told or not self.settled:
            return None
        self._told = token
        return self._prefix + heartbeat(str(token))

    def close(self) -> None:
        """Watch no more."""
        self.closed = True
        self._items.clear()
        self._watcher.close()
