"""Commands: what answers the requests of a WebSocket, each through dispatch like any other request.

So those who listen to requests see them, and rights are checked, as they are for HTTP.
"""

from typing import Any, Final, Protocol, cast

from nkv_core.announcements import hub_of
from nkv_core.contracts.handlers import Handler, Handlers, Request
from nkv_core.contracts.watch import Hub
from nkv_core.operations import delete, get, record_json, value_from, written_json

from .messages import Delete, Get, Message, Put, Subscribe, Unsubscribe

LISTENER: Final = "websocket"
#: Stands for the method: these have none.
METHOD: Final = "MESSAGE"


class Subscriptions(Protocol):
    """The subscriptions of the connection that a request came by."""

    def subscribe(self, wish: Subscribe, hub: Hub) -> dict[str, Any]:
        """Begin one, which tells nothing before the reply was sent."""

    def unsubscribe(self, name: str | int) -> dict[str, Any]:
        """End one."""


class Command(Request):
    """A request that came by a WebSocket."""

    __slots__ = ("message", "subscriptions")

    def __init__(self, of: Request, message: Message, subscriptions: Subscriptions) -> None:
        op = type(message).__name__.lower()
        about = (
            {"pattern": message.pattern}
            if isinstance(message, Subscribe)
            else {}
            if isinstance(message, Unsubscribe)
            else {"key": message.key}
            if isinstance(message, Get | Put | Delete)
            else {}
        )
        super().__init__(
            transport=LISTENER,
            method=METHOD,
            path=op,
            params=about,
            headers=of.headers,
            peer=of.peer,
            credential=of.credential,
        )
        self.message: Any = message
        self.subscriptions = subscriptions


def register(handlers: Handlers) -> None:
    """Register all commands."""
    # No time limit of dispatch's own: the keyspace has one for those that wait.
    for op, command in _COMMANDS.items():
        # What arrives for this listener are `Command`s, and nothing else.
        handler = cast("Handler", command)
        handlers.add(op, handler, (METHOD,), LISTENER, command=op, timeout=None)


def _subscribe(request: Command) -> dict[str, Any]:
    return request.subscriptions.subscribe(request.message, hub_of(request))


def _unsubscribe(request: Command) -> dict[str, Any]:
    message: Unsubscribe = request.message
    return request.subscriptions.unsubscribe(message.subscription)


async def _get(request: Command) -> dict[str, Any]:
    message: Get = request.message
    record = await get(request.keyspace, message.key)
    return record_json(record, request.keyspace.history)


async def _put(request: Command) -> dict[str, Any]:
    message: Put = request.message
    written = await request.keyspace.put(
        message.key,
        value_from(message.key, message.value, message.value_base64),
        expires=message.expiry(),
        expect=message.expect(),
    )
    return written_json(written, request.keyspace.history)


async def _delete(request: Command) -> dict[str, Any]:
    message: Delete = request.message
    await delete(request.keyspace, message.key, expect=message.expect())
    return {}


_COMMANDS: Final = {
    "subscribe": _subscribe,
    "unsubscribe": _unsubscribe,
    "get": _get,
    "put": _put,
    "delete": _delete,
}
