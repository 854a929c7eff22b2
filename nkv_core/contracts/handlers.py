"""Handlers: what plugins answer requests with, in whatever protocol these arrive.

A handler is a function of a `Request`, plain or async. It returns something that JSON can hold, a
`Reply` with status and headers of its own, or a `Stream`; what it raises of nkv's errors is the
answer.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import msgspec

from nkv_core.contracts.identity import Identity
from nkv_core.contracts.keyspace import Keyspace
from nkv_core.contracts.markers import hookspec
from nkv_core.contracts.owner import Owner
from nkv_core.errors import NkvError

if TYPE_CHECKING:
    from nkv_core.contracts.context import NodeView

DEFAULT_TIMEOUT: Final = 60.0
DEFAULT_MAX_BODY: Final = 2 * 1024 * 1024

NO_PARAMS: Final[Mapping[str, str]] = {}

#: Receives the body: at most so many bytes, else `BodyTooLarge` before they are buffered whole.
ReceiveBody = Callable[[int], Awaitable[bytes]]


class Request:
    """What a transport makes of a request. `keyspace` is what the one who asks may use."""

    __slots__ = (
        "body",
        "command",
        "credential",
        "headers",
        "id",
        "identity",
        "keyspace",
        "method",
        "node",
        "owner",
        "params",
        "path",
        "peer",
        "receive_body",
        "transport",
    )

    def __init__(
        self,
        *,
        transport: str,
        method: str,
        path: str,
        params: Mapping[str, str] = NO_PARAMS,
        headers: Mapping[str, str] = NO_PARAMS,
        body: bytes = b"",
        peer: str = "",
        credential: str | None = None,
        receive_body: ReceiveBody | None = None,
    ) -> None:
        self.transport = transport  #: also the name of the listener whose handlers serve it
        self.method = method
        self.path = path  #: decoded for `http`; what a handler is found by
        self.params = params  #: of the query, the first of each name, and of the path
        self.headers = headers  #: names in lower case
        self.body = body
        self.peer = peer
        self.credential = credential  #: the token that it came with
        self.receive_body = receive_body
        # What dispatch fills in:
        self.id: int = 0
        self.command: str = ""
        self.identity: Identity | None = None
        self.keyspace: Keyspace
        self.node: NodeView
        self.owner: Owner  #: whose handler serves it


class Reply(msgspec.Struct, frozen=True):
    """An answer with status and headers of its own. A body that is not bytes is made JSON."""

    status: int = 200
    headers: Mapping[str, str] = {}
    body: Any = b""


class Prompt(Protocol):
    """What an iterator of pieces may have besides, so that nothing has to be awaited for a piece
    that is there: with many streams, waking a task for each takes longer than all the rest.
    """

    prompt: Callable[[], None] | None
    """Set by a transport that sends without waiting. It is called while somebody waits in
    `__anext__`, in the place of waking him, once there may be a piece for `next_now`. It may be
    called on the path of a write, must not raise, and is not to call `next_now` itself.
    """

    def next_now(self) -> bytes | None:
        """The next piece, or None where there is none now; then `prompt` is called for the next.

        Called while somebody waits in `__anext__`, who is woken at the end of the stream.
        """


class Stream(msgspec.Struct, frozen=True):
    """An answer without an end of its own.

    `goodbye`, where given, makes the last piece that is sent when the node or the plugin stops. An
    iterator that is `Prompt` as well is asked without waiting, by transports that can.
    """

    iterator: AsyncIterator[bytes]
    content_type: str = "application/octet-stream"
    goodbye: Callable[[], bytes] | None = None
    headers: Mapping[str, str] = {}
    status: int = 200


class WebSocket(Protocol):
    """An accepted WebSocket, in a handler that `handlers.websocket` registered."""

    async def receive(self) -> str | bytes | None:
        """The next message; None once the other side has closed, or the node or the plugin stops.

        In the second case last messages can be sent for a second, or until the handler returns.
        """

    async def send(self, message: str | bytes) -> None:
        """Send one message. Raises `Stopping` once the connection is closed."""

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection. Closing twice does nothing."""


Handler = Callable[[Request], Any]
WebSocketHandler = Callable[[Request, WebSocket], Awaitable[None]]
#: An ASGI application, as its specification has it. In the scope it finds the `Request` besides.
AsgiApp = Callable[[Any, Any, Any], Awaitable[None]]
#: Makes the answer to an error in the form of one dialect.
ErrorForm = Callable[[Request, NkvError], Reply]

RouteKind = Literal["handler", "websocket", "mount"]
REQUEST_IN_SCOPE: Final = "nkv.request"  #: where a mounted application finds it
WEBSOCKET: Final = "WEBSOCKET"  #: stands for the method of a WebSocket route
ANY_METHOD: Final = "*"  #: stands for the method of a mounted application


class Route(msgspec.Struct, frozen=True, eq=False):
    """One registered handler. `path` may have parameters as `{name}`; a mount's is a prefix."""

    listener: str
    method: str
    path: str
    target: Any  #: a Handler, WebSocketHandler or AsgiApp, as `kind` says
    owner: Owner
    kind: RouteKind = "handler"
    command: str = ""  #: for events; the path where empty
    errors: ErrorForm | None = None  #: None is the transport's own form
    #: Seconds. None is no limit but the operation's own: until it replies, a handler without one is
    #: not ended when its plugin has to go, and costs a little less. `math.inf` is no limit at all.
    timeout: float | None = DEFAULT_TIMEOUT
    max_body: int = DEFAULT_MAX_BODY  #: bytes
    public: bool = False  #: answered without a token, where tokens are used


class Handover(msgspec.Struct, frozen=True):
    """An outcome: the transport is to give the connection to the route's WebSocket handler or
    application. `path` is what remains behind the prefix of a mount.
    """

    route: Route
    path: str


class Handlers(Protocol):
    """Where one generation of a plugin registers its handlers. All are gone when it is unloaded.

    The methods raise `RouteTaken` where another plugin has that listener, method and path, naming
    both, and `PluginInvalid` where the path is not one, or the listener's transport cannot do this.
    """

    def add(
        self,
        path: str,
        handler: Handler,
        methods: tuple[str, ...] = ("GET",),
        listener: str = "http",
        *,
        command: str = "",
        errors: ErrorForm | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        max_body: int = DEFAULT_MAX_BODY,
        public: bool = False,
    ) -> None:
        """Answer these methods on `path` with `handler`. `GET` answers `HEAD` too.

        In `path`, `{name}` stands for one level and `{name:path}`, at the end, for all that is
        left of it; neither for nothing. A `public` one needs no token, and gets a keyspace that
        refuses everything to those who come without.
        """

    def websocket(self, path: str, handler: WebSocketHandler, listener: str = "http") -> None:
        """Accept WebSockets on `path`."""

    def mount(self, prefix: str, app: AsgiApp, listener: str = "http") -> None:
        """Give all requests below `prefix` that no handler takes to an ASGI application."""

    def remove(
        self, path: str, methods: tuple[str, ...] = ("GET",), listener: str = "http"
    ) -> None:
        """Take back what this plugin added. Raises `PluginNotFound` where it did not."""


#: Sends the outcome of a request: what the handler returned, or an error.
ReplyWith = Callable[[Any, NkvError | None, Route | None], Awaitable[None]]
#: Takes a request through its life: RequestStart, handler, RequestComplete, reply, RequestEnd.
Dispatch = Callable[[Request, ReplyWith], Awaitable[None]]
#: The same for a reply that never waits.
ReplyNow = Callable[[Any, NkvError | None, Route | None], None]
#: Takes a request through its life at once, as far as nothing has to be waited for. None says that
#: `reply` was called, or is going to be once a `nkv_core.loop.Pending` is settled that the handler
#: gave; otherwise the rest of its life is to be awaited, in a task of the caller's.
DispatchNow = Callable[[Request, ReplyNow], Coroutine[Any, Any, None] | None]


class HandlerHooks:
    """The hook that registers handlers."""

    @hookspec
    def nkv_handlers(self, handlers: Handlers) -> None:
        """Register handlers. They begin to answer once the whole plugin is set up.

        :param handlers: takes what this generation registers; all is undone when it is unloaded.
        """
