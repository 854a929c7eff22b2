"""What happens in a node, as values that listeners are given.

The life of a request: `RequestStart`, the handler, `RequestComplete`, the reply, `RequestEnd`. The
life of a listener socket: `Connect`, `Disconnect`. The life of a plugin: `PluginLoaded`,
`PluginUnloaded`, `PluginFailed`. Another node of a mesh: `PeerUp`, `PeerDown`. A committed mutation
is a `nkv_core.records.Change`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from nkv_core.errors import NkvError

if TYPE_CHECKING:
    from nkv_core.contracts.identity import Identity


# None of these has `gc=False`: they hold errors and outcomes, and a cycle would never be freed.
class RequestStart(msgspec.Struct, frozen=True):
    """A request has arrived; its handler has not run. A listener may raise `Rejected`."""

    id: int  #: unique in the life of this node
    #: The operation (`get`, `put`, ...), or the path of a handler of a plugin's own; empty where
    #: there is no handler.
    command: str
    path: str  #: as the client sent it
    params: Mapping[str, str]
    peer: str  #: who asks: `host:port`, or `unix:UID`
    identity: "Identity | None"  #: whose token it came with, where tokens are used
    transport: str


class RequestComplete:
    """The handler is done; the reply has not been sent. A listener may replace the outcome."""

    __slots__ = ("error", "outcome", "request")

    def __init__(self, request: RequestStart, outcome: Any, error: NkvError | None) -> None:
        self.request = request
        #: What the handler returned, or None where it raised.
        self.outcome = outcome
        #: What the handler raised, or None.
        self.error = error

    def replace(self, outcome: Any) -> None:
        """Have this sent instead; an `NkvError` is sent as an error."""
        if isinstance(outcome, NkvError):
            self.outcome, self.error = None, outcome
        else:
            self.outcome, self.error = outcome, None

    @property
    def id(self) -> int:
        """The request's id."""
        return self.request.id

    @property
    def command(self) -> str:
        """The request's command."""
        return self.request.command

    @property
    def path(self) -> str:
        """The request's path."""
        return self.request.path

    @property
    def params(self) -> Mapping[str, str]:
        """The request's parameters."""
        return self.request.params


class RequestEnd(msgspec.Struct, frozen=True):
    """The reply has been sent, or could not be. It delays nobody."""

    request: RequestStart
    outcome: Any
    error: NkvError | None
    elapsed: float  #: seconds since the request arrived

    @property
    def id(self) -> int:
        """The request's id."""
        return self.request.id

    @property
    def command(self) -> str:
        """The request's command."""
        return self.request.command

    @property
    def path(self) -> str:
        """The request's path."""
        return self.request.path

    @property
    def params(self) -> Mapping[str, str]:
        """The request's parameters."""
        return self.request.params


class Connect(msgspec.Struct, frozen=True):
    """A listener is open."""

    host: str  #: an address, or the path of a Unix socket
    port: int  #: 0 for a Unix socket
    transport: str
    scheme: str = ""  #: what an address there begins with: `http`, `https`, ...

    @property
    def url(self) -> str:
        """The address as people write it."""
        if self.host.startswith("/"):
            return f"{self.scheme or self.transport}+unix://{self.host}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme or self.transport}://{host}:{self.port}"


class Disconnect(msgspec.Struct, frozen=True):
    """A listener has closed: by order, or because of `error`."""

    host: str
    port: int
    transport: str
    error: BaseException | None = None


class PluginLoaded(msgspec.Struct, frozen=True):
    """A plugin, or a new generation of one, serves."""

    name: str
    generation: int


class PluginUnloaded(msgspec.Struct, frozen=True):
    """A generation of a plugin has been closed."""

    name: str
    generation: int


class PluginFailed(msgspec.Struct, frozen=True):
    """A plugin could not be loaded, or has stopped by itself."""

    name: str
    generation: int
    error: BaseException


class PeerUp(msgspec.Struct, frozen=True):
    """Another node of the mesh is a member, or is one again."""

    address: str  #: `host:port`
    node_id: int | None  #: None where it has no such id
    name: str


class PeerDown(msgspec.Struct, frozen=True):
    """A member is given up as down, or has left."""

    address: str  #: `host:port`
    node_id: int | None  #: None where it has no such id
    name: str
    reason: str  #: for people
