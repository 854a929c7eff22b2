"""Subscriptions: what a client is told of a key and all below it, and who subscribes to what."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import msgspec

from nkv_core.contracts.identity import Identity
from nkv_core.contracts.watch import (
    Changed,
    Ended,
    Gap,
    Hub,
    Item,
    SnapshotEnd,
    SnapshotRecord,
    Watcher,
)
from nkv_core.errors import NotFound
from nkv_core.records import Change, Record

from .ancestors import Age, Ancestors, levels_above
from .dialects import DIALECTS
from .messages import Call

#: Taken from a watcher at once: values may be large, and all of them are held until they are sent.
_AT_ONCE: Final = 4


class Known(msgspec.Struct, frozen=True, gc=False):
    """What the client was told of a record that is there."""

    revision: int
    modified: int
    origin: int

    @property
    def age(self) -> Age:
        """What a clear is compared with."""
        return self.modified, self.origin


class Figures:
    """What is counted for people."""

    def __init__(self) -> None:
        self.left_out = 0  #: records and changes with keys that the dialect cannot carry
        self.cut = 0  #: subscriptions ended because they covered too many keys


class Subscription:
    """Makes a watcher's items into the messages of a dialect.

    It keeps the keys that its client knows of: a clear is one change without keys, and is told as
    one `CLOSE` for each of them, as is what a snapshot behind a gap lacks.
    """

    __slots__ = (
        "_dialect",
        "_figures",
        "_form",
        "_fresh",
        "_known",
        "_max_known",
        "_notices",
        "_watcher",
        "client",
        "ended",
        "key",
        "owner",
        "sink",
    )

    def __init__(
        self,
        call: Call,
        identity: Identity | None,
        sink: "Sink",
        figures: Figures,
        max_known: int,
    ) -> None:
        self.key: Final = call.key
        self.client: Final = call.client
        self.owner: Final = None if identity is None else identity.name  #: whose token it has
        self.sink: Final = sink
        self.ended = False  #: whether the hub has ended it, or it covers too much
        self._dialect: Final = DIALECTS[call.dialect]
        self._form: Final = f"nkv-socket-{call.dialect}-1"
        self._figures = figures
        self._max_known = max_known
        self._known: dict[str, Known] = {}
        self._fresh: set[str] | None = None  # of a snapshot behind a gap
        self._notices: dict[str, int] = {}  # keys above that were deleted, with the revision
        self._watcher: Watcher | None = None

    def open(self, hub: Hub) -> bytes:
        """Begin; returns what to send first. Raises what the hub raises."""
        self._watcher = hub.watch(
            self.key,
            subtree=True,
            mode="latest",
            snapshot=True,
            wake=lambda: self.sink.due(self),
            label=f"socket: {self.client}",
        )
        return self._dialect.hello

    def close(self) -> bytes:
        """End; returns what to tell the client."""
        if self._watcher is not None:
            self._watcher.close()
        self._known.clear()
        self._notices.clear()
        return self._dialect.close(self.key)

    def notice(self, key: str, revision: int) -> None:
        """Take note that a level above was deleted."""
        self._notices[key] = revision
        self.sink.due(self)

    def take(self, out: bytearray) -> bool:
        """Write what is ready next; returns whether there may be more."""
        items = [] if self._watcher is None else self._watcher.take(_AT_ONCE)
        for item in items:
            if self._notices and isinstance(item, Changed):
                self._tell_notices(out, item.change.revision)
            self._tell(out, item)
        if not items:
            self._tell_notices(out, None)
        return bool(items) and not self.ended

    # --- items ------------------------------------------------------------------------------------

    def _tell(self, out: bytearray, item: Item) -> None:
        match item:
            case Changed(change=change):
                self._changed(out, item, change)
            case SnapshotRecord(record):
                if self._knows(out, record):
                    out += self._dialect.update(record.key, record.value)
            case SnapshotEnd():
                self._compare(out)
            case Gap(resync=resync):
                self._fresh = set() if resync else None
            case Ended():
                self.ended = True

    def _changed(self, out: bytearray, item: Changed, change: Change) -> None:
        if change.kind == "clear":
            self._cleared(out, change)
            return
        if not self._dialect.carries(change.key):
            self._figures.left_out += 1
            return
        if change.kind == "delete":
            self._known.pop(change.key, None)
            out += item.form(self._form, self._closed)
            return
        before = self._known.get(change.key)
        only_touched = (
            change.kind == "touch" and before is not None and before.revision == change.previous
        )
        if self._knows(out, change) and not only_touched:
            out += item.form(self._form, self._updated)

    def _knows(self, out: bytearray, write: Record | Change) -> bool:
        """Keep that the client knows this record; whether it is to be told of it."""
        if self.ended:
            return False
        key = write.key
        if not self._dialect.carries(key):
            self._figures.left_out += 1
            return False
        if key not in self._known and len(self._known) >= self._max_known:
            self._figures.cut += 1
            self.ended = True
            out += self._dialect.close(self.key)
            return False
        self._known[key] = Known(write.revision, write.modified, write.origin)
        if self._fresh is not None:
            self._fresh.add(key)
        return True

    def _cleared(self, out: bytearray, change: Change) -> None:
        age = (change.modified, change.origin)
        gone = [
            key
            for key, known in self._known.items()
            if key.startswith(change.key) and known.age <= age
        ]
        self._close_all(out, gone)

    def _compare(self, out: bytearray) -> None:
        """Tell of what was there before a gap and is not in the snapshot behind it."""
        fresh, self._fresh = self._fresh, None
        if fresh is not None:
            self._close_all(out, [key for key in self._known if key not in fresh])

    def _close_all(self, out: bytearray, keys: list[str]) -> None:
        for key in keys:
            del self._known[key]
            out += self._dialect.close(key)

    def _tell_notices(self, out: bytearray, before: int | None) -> None:
        told = [k for k, revision in self._notices.items() if before is None or revision < before]
        for key in told:
            del self._notices[key]
            if self._dialect.carries(key):
                out += self._dialect.close(key)

    def _updated(self, item: Changed) -> bytes:
        return self._dialect.update(item.change.key, item.change.value or b"")

    def _closed(self, item: Changed) -> bytes:
        return self._dialect.close(item.change.key)


class Sink:
    """What a subscription writes to: its connection, as far as it needs to know it."""

    def due(self, subscription: Subscription) -> None:
        """Take note that there is something to take. It must return at once."""
        raise NotImplementedError

    def unsubscribed(self, subscription: Subscription, farewell: bytes) -> None:
        """Take note that the subscription was ended, and send this."""
        raise NotImplementedError


class Registry:
    """All subscriptions of a transport, by key."""

    def __init__(self, hub: Callable[[], Hub], remembered: int) -> None:
        """`remembered`: keys to keep that nobody subscribes to any more, but somebody did."""
        self._ancestors = Ancestors(hub)
        self._by_key: dict[str, dict[Subscription, None]] = {}
        self._once: OrderedDict[str, None] = OrderedDict()
        self._remembered = remembered
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, subscription: Subscription, hub: Hub, identity: Identity | None) -> bytes:
        """Begin a subscription; returns what to send first. Raises what the hub raises."""
        hello = subscription.open(hub)
        try:
            self._ancestors.follow(
                subscription.key,
                subscription,
                lambda key: identity is None or identity.may_read(key),
            )
        except BaseException:
            self._ancestors.leave(subscription.key, subscription)
            subscription.close()
            raise
        self._by_key.setdefault(subscription.key, {})[subscription] = None
        self._once.pop(subscription.key, None)
        self._count += 1
        return hello

    def remove(self, subscription: Subscription) -> bytes:
        """End a subscription; returns what to tell the client. Doing so twice does nothing."""
        key = subscription.key
        at_key = self._by_key.get(key, {})
        if subscription in at_key:
            del at_key[subscription]
            self._count -= 1
            self._ancestors.leave(key, subscription)
            if not at_key:
                del self._by_key[key]
                self._once[key] = None
                if len(self._once) > self._remembered:
                    self._once.popitem(last=False)
        return subscription.close()

    def unsubscribe(self, key: str, client: str, identity: Identity | None) -> None:
        """End the subscriptions of a client to a key, of the same token where there are tokens.

        Raises `NotFound` where nobody ever subscribed to that key.
        """
        if key not in self._by_key and key not in self._once:
            raise NotFound("Nobody has subscribed to this key.")
        owner = None if identity is None else identity.name
        for subscription in list(self._by_key.get(key, ())):
            if subscription.client == client and subscription.owner == owner:
                subscription.sink.unsubscribed(subscription, self.remove(subscription))

    def trace(self, key: str) -> list[str]:
        """The clients that subscribe to a key or a level above it, each once."""
        found = [
            subscription.client
            for level in (*levels_above(key), key)
            for subscription in self._by_key.get(level, ())
        ]
        return list(dict.fromkeys(found))
