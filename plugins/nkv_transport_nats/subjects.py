"""Subjects: the keys that were subscribed to, and what is told of them.

A client here has no connection to the node: it does not notice that the node restarts, or that the
plugin is replaced. So the keys are kept durably, and told of again by whoever comes next.
"""

import hashlib
from typing import Final

import anyio

from nkv_core.contracts.context import Context
from nkv_core.contracts.watch import (
    Changed,
    Item,
    SnapshotEnd,
    SnapshotRecord,
    Watcher,
)
from nkv_core.errors import NkvError, Overloaded, ValueTooLarge
from nkv_core.nats_link import NatsSession, TooLarge

from .messages import CLOSE, HELLO, subject_of, update

_PREFIX: Final = "key."
#: Bytes that are sent before the server has to confirm that it has read them.
_WINDOW: Final = 1024 * 1024


class Told:
    """One key, and what its subscribers know of it."""

    __slots__ = ("greet", "known", "seen", "watcher")

    def __init__(self) -> None:
        self.watcher: Watcher | None = None
        self.greet = False  #: whether a `Hello` is due
        self.known: int | None = None  #: hash of the value that they know
        self.seen = False  #: within a snapshot: whether the key is in it


class Subjects:
    """The keys of one generation of the transport."""

    def __init__(self, ctx: Context, most: int) -> None:
        self._ctx = ctx
        self._most = most
        self._keys: dict[str, Told] = {}
        self._due: dict[str, None] = {}
        self._ready = anyio.Event()
        self._open = False  #: whether what is due is being told
        self.left_out = 0  #: values that the server does not take

    def __len__(self) -> int:
        return len(self._keys)

    async def load(self) -> None:
        """Take over the keys that were subscribed to before."""
        for name, stored in await self._ctx.state.items():
            if name.startswith(_PREFIX):
                try:
                    self._keys.setdefault(stored.decode(), Told())
                except UnicodeDecodeError:
                    await self._ctx.state.delete(name)

    async def add(self, key: str, value: bytes) -> None:
        """Have a key told of from now on, that has this value. Raises `Overloaded` where there are
        too many.
        """
        if key not in self._keys:
            if len(self._keys) >= self._most:
                raise Overloaded(f"{self._most} keys are subscribed to already.")
            told = self._keys[key] = Told()
            told.known = hash(value)
            if self._open:
                self._watch(key, snapshot=False)
            try:
                await self._ctx.state.put(_name(key), key.encode())
            except ValueTooLarge:
                self._drop(key)
                raise Overloaded("There is no room to remember more subscriptions.") from None
            except BaseException:
                self._drop(key)
                raise

    def greet(self, key: str) -> None:
        """Say `Hello` to those who have subscribed to a key."""
        told = self._keys.get(key)
        if told is not None:
            told.greet = True
            self._note(key)

    async def tell(self, session: NatsSession) -> None:
        """Tell what is due over one connection, until cancelled. Raises `LinkLost`.

        It begins with the present value of each key: what came through before is not known.
        """
        try:
            self._open = True
            for key, told in list(self._keys.items()):
                told.known = None
                self._watch(key, snapshot=True)
            sent = 0
            while True:
                if sent and (sent >= _WINDOW or not self._due):
                    await session.flush()
                    sent = 0
                while not self._due:
                    self._ready = anyio.Event()
                    await self._ready.wait()
                key = next(iter(self._due))
                del self._due[key]
                sent += await self._tell_of(session, key)
        finally:
            self._open = False
            self._due.clear()
            for told in self._keys.values():
                if told.watcher is not None:
                    told.watcher.close()
                    told.watcher = None

    def _watch(self, key: str, *, snapshot: bool) -> None:
        try:
            self._keys[key].watcher = self._ctx.node.hub.watch(
                key,
                mode="latest",
                snapshot=snapshot,
                wake=lambda: self._note(key),
                label=f"nats: {key}",
            )
        except NkvError as error:  # too many watchers, or the node stops
            self._ctx.log.warning("%r is not told of: %s", key, error)
            return
        self._note(key)

    def _note(self, key: str) -> None:
        self._due[key] = None
        self._ready.set()

    def _drop(self, key: str) -> None:
        told = self._keys.pop(key, None)
        self._due.pop(key, None)
        if told is not None and told.watcher is not None:
            told.watcher.close()

    async def _tell_of(self, session: NatsSession, key: str) -> int:
        """Tell what is due of one key; returns the bytes sent."""
        told = self._keys.get(key)
        if told is None:
            return 0
        messages: list[bytes] = []
        if told.greet:
            told.greet = False
            messages.append(HELLO)
        items = [] if told.watcher is None else told.watcher.take(4)
        for item in items:
            message = await self._message_of(told, key, item)
            if message is not None:
                messages.append(message)
        if items:
            self._note(key)  # there may be more
        sent = 0
        for message in messages:
            try:
                await session.publish(subject_of(key), message)
                sent += len(message)
            except TooLarge as error:
                self.left_out += 1
                self._ctx.log.warning("a value of %r is left out: %s", key, error)
        if CLOSE in messages:
            # It ends the subscription: the key is not told of again before somebody asks.
            self._drop(key)
            await self._ctx.state.delete(_name(key))
        return sent

    async def _message_of(self, told: Told, key: str, item: Item) -> bytes | None:
        match item:
            case Changed(change=change):
                if change.value is not None:
                    return _update(told, change.value, always=change.kind == "put")
                # A clear that came from elsewhere may leave a newer record.
                if change.kind == "clear" and await self._ctx.keyspace.get(key) is not None:
                    return None
                return CLOSE
            case SnapshotRecord(record):
                told.seen = True
                return _update(told, record.value, always=True)
            case SnapshotEnd():
                seen, told.seen = told.seen, False
                return None if seen else CLOSE
        return None


def _update(told: Told, value: bytes, *, always: bool) -> bytes | None:
    """A new value; None where the subscribers know it, because only its expiry has changed."""
    known, told.known = told.known, hash(value)
    return update(value) if always or known != told.known else None


def _name(key: str) -> str:
    """What a key is kept under: a name of the plugin's state is no longer than a key may be."""
    return _PREFIX + hashlib.sha256(key.encode()).hexdigest()
