"""Context: all that a plugin may take from the node, so that leaving its scope undoes all of it."""

import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack
from socket import socket
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec
from anyio.abc import TaskGroup

from nkv_core.contracts.handlers import Dispatch, DispatchNow, Handlers
from nkv_core.contracts.keyspace import Keyspace
from nkv_core.contracts.markers import hookspec
from nkv_core.contracts.owner import Owner
from nkv_core.contracts.watch import Hub
from nkv_core.events import PeerDown, PeerUp

if TYPE_CHECKING:
    from nkv_core.contracts.mesh import Discovery, Merger


class TcpAddress(msgspec.Struct, frozen=True):
    """Where to listen. Port 0 takes a free one, and keeps it over replacements."""

    host: str
    port: int


class UnixAddress(msgspec.Struct, frozen=True):
    """A Unix socket to listen on, with the mode of its file."""

    path: str
    mode: int = 0o600


Address = TcpAddress | UnixAddress

#: Who keeps strangers from a listener: `tokens`, dispatch, which each request there goes through;
#: `own`, the listener, which has everybody prove who they are; `nobody`.
Guard = Literal["tokens", "own", "nobody"]


class Listener(Protocol):
    """Listening sockets that the node's broker holds. They outlive the plugin that uses them if a
    next generation asks for the same address.
    """

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where it listens indeed, one for each socket."""

    def sockets(self) -> list[socket]:
        """Duplicates of the listening sockets, non-blocking, the caller's to close."""


class State(Protocol):
    """A durable, bounded map private to the plugin's name, which its next generation inherits."""

    async def get(self, key: str) -> bytes | None:
        """The value of a key, or None."""

    async def put(self, key: str, value: bytes) -> None:
        """Set a value. Raises `ValueTooLarge` where the map would grow past its bound."""

    async def delete(self, key: str) -> None:
        """Delete a key, whether it exists or not."""

    async def items(self) -> list[tuple[str, bytes]]:
        """All keys and values, in key order."""


class Measurement(msgspec.Struct, frozen=True):
    """One figure that the node keeps about itself, with its labelled samples."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    samples: Sequence[tuple[Mapping[str, str], float]]


class NodeView(Protocol):
    """What a handler sees of the node."""

    @property
    def name(self) -> str:
        """The node's name, for people."""

    @property
    def node_id(self) -> int:
        """The node's identity: 64 random bits, kept in the data directory."""

    @property
    def keyspace(self) -> Keyspace:
        """The keyspace, without regard to who asks: `request.keyspace` has that."""

    @property
    def hub(self) -> Hub:
        """The watch hub, without regard to who asks: `announcements.hub_of` has that."""

    @property
    def ready(self) -> bool:
        """Whether every part serves and none is being stopped."""

    async def status(self) -> dict[str, Any]:
        """What `/v1/status` shows."""

    def measurements(self) -> list[Measurement]:
        """What `/metrics` shows."""

    def routes(self, listener: str) -> list[Any]:
        """The routes of a listener, as registered now: `contracts.handlers.Route`."""

    def on(self, event: type, listener: Callable[[Any], Any]) -> Callable[[], None]:
        """Have `listener` called with each event of this type; returns what ends that."""


class Context(Protocol):
    """What one generation of a plugin works with. Its scope ends with the generation."""

    @property
    def name(self) -> str:
        """The plugin's name."""

    @property
    def owner(self) -> Owner:
        """This generation."""

    @property
    def settings(self) -> Any:
        """The plugin's section, as the type that its `nkv_settings` gives."""

    @property
    def log(self) -> logging.Logger:
        """A logger of the plugin's own."""

    @property
    def tasks(self) -> TaskGroup:
        """Tasks started here end with the scope; one that raises fails the plugin."""

    @property
    def stack(self) -> AsyncExitStack:
        """What is entered here is left when the scope ends, after the tasks."""

    @property
    def handlers(self) -> Handlers:
        """Registers handlers of this generation, from now on and at once."""

    @property
    def keyspace(self) -> Keyspace:
        """The node's keyspace."""

    @property
    def state(self) -> State:
        """The plugin's durable state."""

    @property
    def node(self) -> NodeView:
        """The node."""

    @property
    def dispatch(self) -> Dispatch:
        """Takes a request of this plugin's transport through its life."""

    @property
    def dispatch_now(self) -> DispatchNow:
        """The same as a plain function, for a transport that is to be fast."""

    async def listen(
        self, address: Address, *, guard: Guard = "tokens", scheme: str = ""
    ) -> Listener:
        """Listen at an address, told as `SCHEME://...` where it is not a transport's own.

        Raises `AddressInUse`, and `StartError` where strangers would come. That is: beyond
        loopback, unless there are tokens or the listener guards itself; and where `nobody` guards
        it also on loopback, as soon as tokens are used. `--insecure` allows all.
        """

    def reach(self, host: str, port: int) -> AbstractContextManager[None]:
        """Note that requests come in over a connection to this place, while the block lasts.

        For a transport that connects instead of listening: `Connect` is emitted as for a listener,
        and `Disconnect`, with what ended the block, once no generation of the plugin has the place.
        """

    async def predecessor_ended(self) -> bool:
        """Wait until the generation that this one replaces has ended; whether there was one.

        Until then both run. Who goes on where the other stopped waits for this first.
        """

    def merger(self, name: str) -> "Merger":
        """The merger that this or another plugin offers. Raises `PluginNotFound`, and
        `PluginInvalid` where several others do. Ask anew for each use: its plugin may go.
        """

    def discovery(self, name: str) -> "Discovery":
        """The discovery that this or another plugin offers. Raises as `merger`."""

    def emit(self, event: PeerUp | PeerDown) -> None:
        """Tell listeners of another node of this plugin's mesh. Never raises."""


class LifecycleHooks:
    """The hooks of a plugin's own life."""

    @hookspec
    def nkv_settings(self) -> type[msgspec.Struct]:  # type: ignore[empty-body]
        """Return the type of the plugin's settings. Unknown ones are then refused by name.

        A field `directory` left None is set to a folder of the plugin's own in the data directory.
        """

    @hookspec
    def nkv_setup(self, ctx: Context) -> AsyncIterator[None]:  # type: ignore[empty-body]
        """Set up what no other hook offers: an asynchronous context manager over the plugin's life.

        :param ctx: the scope of this generation of the plugin.
        """
