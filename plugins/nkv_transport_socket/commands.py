"""Commands: what the verbs do. Registered as handlers of the listener `socket`."""

from typing import Final

from nkv_core.announcements import hub_of
from nkv_core.contracts.handlers import Handlers, Request
from nkv_core.contracts.keyspace import Clear, Delete, Keyspace, Operation
from nkv_core.contracts.watch import Hub
from nkv_core.errors import (
    Forbidden,
    InvalidKey,
    InvalidPattern,
    NotFound,
    Stopping,
    ValueTooLarge,
)
from nkv_core.keys import SEPARATOR, WILDCARD, Pattern, check_key
from nkv_core.operations import get
from nkv_core.records import Record

from .subscriptions import Registry

LISTENER: Final = "socket"
#: The path of each verb, which is also the command in events.
PATHS: Final = {
    "PUT": "put",
    "GET": "get",
    "DEL": "delete",
    "SUB": "subscribe",
    "UNSUB": "unsubscribe",
    "TRACE": "trace",
    "HEALTH": "health",
    "VERSION": "version",
    "AUTH": "auth",
}
#: What a record takes in an answer besides its key and value.
_OVERHEAD: Final = 16


class Commands:
    """The handlers. `request.params` has `id`, `client`, `key` and `dialect`."""

    def __init__(self, registry: Registry, version: str, max_answer: int) -> None:
        self._registry = registry
        self._version = version
        self._max_answer = max_answer

    def register(self, handlers: Handlers) -> None:
        """Register one handler for each verb."""
        answers = {
            "PUT": self.put,
            "GET": self.get,
            "DEL": self.delete,
            "SUB": self.subscribe,
            "UNSUB": self.unsubscribe,
            "TRACE": self.trace,
            "HEALTH": self.health,
            "VERSION": self.version,
            "AUTH": self.auth,
        }
        for verb, handler in answers.items():
            handlers.add(
                PATHS[verb],
                handler,
                (verb,),
                LISTENER,
                command=PATHS[verb],
                timeout=None,
                public=verb == "HEALTH",
            )

    async def put(self, request: Request) -> None:
        """Set a value."""
        key = request.params["key"]
        if WILDCARD in key:
            raise InvalidKey("A key that is written here has no wildcard.")
        await request.keyspace.put(key, request.body)

    async def get(self, request: Request) -> list[Record]:
        """The record of a key; of a pattern, that of the level before `*` and all below it."""
        root = root_of(request.params["key"])
        if root is None:
            return [await get(request.keyspace, request.params["key"])]
        records = [] if not root else await _there(request.keyspace, root)
        room = self._max_answer - _size_of(records)
        below = pattern_below(root)
        after: str | None = None
        while below is not None:
            page = await request.keyspace.scan(below, after=after)
            records += page.records
            room -= _size_of(page.records)
            if room < 0:
                raise ValueTooLarge("The values found are more than one answer can carry.")
            after = page.after
            if after is None:
                break
        if not records:
            raise NotFound
        return records

    async def delete(self, request: Request) -> None:
        """Delete one key; in the framed dialect also a level and all below it."""
        key, framed = request.params["key"], request.params["dialect"] == "framed"
        root = root_of(key)
        if root is None:
            deleted = await request.keyspace.delete(key)
            if deleted.previous is None and not framed:
                raise NotFound
        elif framed:
            await _delete_below(request.keyspace, root)
        else:
            raise InvalidKey("This dialect deletes one key at a time.")

    def subscribe(self, request: Request) -> Hub:
        """The hub to watch: the connection subscribes to it when it answers."""
        _check_single(request.params["key"])
        return hub_of(request)

    def unsubscribe(self, request: Request) -> None:
        """End a client's subscription, over whatever connection it was made."""
        key = request.params["key"]
        _must_read(request, key)
        self._registry.unsubscribe(key, request.params["client"], request.identity)

    def trace(self, request: Request) -> list[str]:
        """Who subscribes to a key, or to a level above it."""
        key = request.params["key"]
        _must_read(request, key)
        clients = self._registry.trace(key)
        if not clients:
            raise NotFound
        return clients

    def health(self, request: Request) -> None:
        """Whether every part of the node serves."""
        if not request.node.ready:
            raise Stopping("The node is starting or stopping.")

    def version(self, _: Request) -> str:
        """The version of the node."""
        return self._version

    def auth(self, _: Request) -> None:
        """Nothing: to come so far, the token was found to be good."""


def root_of(key: str) -> str | None:
    """The level before the first wildcard, empty where that is the first; None without one."""
    levels = key.split(SEPARATOR)
    if WILDCARD not in levels:
        return None
    return SEPARATOR.join(levels[: levels.index(WILDCARD)])


def pattern_below(root: str) -> Pattern | None:
    """What matches all below a level; None where no key can lie there for its length."""
    try:
        return Pattern(root + SEPARATOR + WILDCARD if root else WILDCARD)
    except InvalidPattern:
        check_key(root)
        return None


async def _there(keyspace: Keyspace, key: str) -> list[Record]:
    record = await keyspace.get(key)
    return [] if record is None else [record]


async def _delete_below(keyspace: Keyspace, root: str) -> None:
    if not root:
        await keyspace.clear()
        return
    operations: list[Operation] = [Delete(root)]
    if pattern_below(root) is not None:
        operations.append(Clear(root + SEPARATOR))
    if keyspace.capabilities.batch == "any":
        await keyspace.batch(operations)
        return
    await keyspace.delete(root)
    if len(operations) > 1:
        await keyspace.clear(root + SEPARATOR)


def _size_of(records: list[Record]) -> int:
    return sum(len(r.key.encode()) + 4 * len(r.value) // 3 + _OVERHEAD for r in records)


def _check_single(key: str) -> None:
    if WILDCARD in key:
        raise InvalidKey("A subscription takes no wildcard: it covers all below its key.")
    check_key(key)


def _must_read(request: Request, key: str) -> None:
    if request.identity is None:
        return
    if not request.identity.may_read(key):
        raise Forbidden(f"The token lacks the right to read the key {key[:200]!r}.")
