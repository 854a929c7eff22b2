"""App: the ASGI application. It makes requests of what the server hears, has them dispatched, and
sends the outcomes.
"""

import logging
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, unquote_to_bytes

import anyio
from starlette.websockets import WebSocket

from nkv_core.contracts.handlers import (
    NO_PARAMS,
    WEBSOCKET,
    Dispatch,
    Handover,
    Request,
    Route,
    Stream,
)
from nkv_core.errors import (
    BadRequest,
    BodyTimeout,
    BodyTooLarge,
    ClientGone,
    HandlerFailed,
    InvalidKey,
    NkvError,
)
from nkv_core.loop import Together

from .browsers import Hosts, check_origin
from .exchange import BODY_FOLLOWS, Receive, Scope, Send
from .handover import MountedCall, ServedWebSocket
from .nkvd import CHANGING
from .replies import Answer, RawHeaders, answer, error_answer
from .settings import HttpSettings
from .streams import OpenStreams, StreamReply

TRANSPORT: Final = "http"
_CLOSE: Final = (b"connection", b"close")


class App:
    """The application of one transport."""

    def __init__(
        self, dispatch: Dispatch, settings: HttpSettings, hosts: Hosts, log: logging.Logger
    ) -> None:
        self.dispatch: Final = dispatch
        self.settings: Final = settings
        self.hosts: Final = hosts
        self.log: Final = log
        self.streams: Final = OpenStreams()
        self.together: Final = Together()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or serve one WebSocket."""
        if scope["type"] in ("http", "websocket"):
            await _Call(self, scope, receive, send).run()

    def stopping(self) -> None:
        """End all streams, and have clients of HTTP/1.1 look for another connection."""
        self.streams.end()


class _Call:
    """One request, from its scope to its response."""

    __slots__ = ("_app", "_body_left", "_receive", "_request", "_scope", "_send")

    def __init__(self, app: App, scope: Scope, receive: Receive, send: Send) -> None:
        self._app = app
        self._scope = scope
        self._receive = receive
        self._send = send
        self._body_left = False
        self._request: Request

    async def run(self) -> None:
        scope = self._scope
        client = scope["client"]
        self._request = request = Request(
            transport=TRANSPORT,
            method=WEBSOCKET if scope["type"] == "websocket" else _method(scope["method"]),
            path="/",
            peer="" if client is None else f"{client[0]}:{client[1]}",
        )
        try:
            self._read_head(request)
        except NkvError as error:
            await self._reply(None, error, None)
            return
        await self._app.dispatch(request, self._reply)

    def _read_head(self, request: Request) -> None:
        """Take over what the head of the request says. Raises what it is to be refused with."""
        scope = self._scope
        request.headers = headers = _headers(scope["headers"])
        target: bytes = scope["raw_path"]
        if target[:1] != b"/":
            target = _absolute(target, headers)
        request.path = target.decode("latin-1")  # for the answer, should the path be unreadable
        request.path = path = path_of(target)
        self._app.hosts.check(headers.get("host"), scope["server"][0])
        check_origin(request.method, path, headers, CHANGING)
        if scope["query_string"]:
            request.params = params(scope["query_string"])
        request.credential = credential(headers)
        if _has_body(scope, headers):
            self._body_left = True
            request.receive_body = self._body

    # --- the body ---------------------------------------------------------------------------------

    async def _body(self, most: int) -> bytes:
        """The body. Raises `BodyTooLarge`, `BodyTimeout`, `ClientGone`."""
        length = self._request.headers.get("content-length", "")
        if length.isdigit() and int(length) > most:
            raise BodyTooLarge(f"The body has {length} bytes; this path takes {most}.")
        seconds = self._app.settings.body_timeout
        pieces: list[bytes] = []
        left = most
        with anyio.move_on_after(seconds):
            while True:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                pieces.append(message["body"])
                left -= len(pieces[-1])
                if left < 0:
                    raise BodyTooLarge(f"The body has more than the {most} bytes that are taken.")
                if not message["more_body"]:
                    self._body_left = False
                    return b"".join(pieces)
        raise BodyTimeout(f"The body did not arrive within {seconds:g} s.")

    # --- the response -----------------------------------------------------------------------------

    async def _reply(self, outcome: Any, error: NkvError | None, route: Route | None) -> None:
        """What dispatch calls with the outcome."""
        if error is not None:
            await self._send_whole(error_answer(self._request, error, route))
        elif isinstance(outcome, Stream) and self._scope["type"] == "http":
            stream = StreamReply(outcome, self._receive, self._send, self._app.together.call)
            with self._app.streams.open(self._request, stream.goodbye):
                await stream.run(self._closing(), only_head=self._scope["method"] == "HEAD")
        elif isinstance(outcome, Handover):
            await self._hand_over(outcome)
        else:
            try:
                whole = answer(outcome)
            except Exception:
                self._app.log.exception("What answers %s cannot be sent.", self._request.command)
                whole = error_answer(self._request, HandlerFailed(), route)
            await self._send_whole(whole)

    async def _send_whole(self, whole: Answer) -> None:
        kind = "http" if self._scope["type"] == "http" else "websocket.http"
        await self._send(
            {
                "type": f"{kind}.response.start",
                "status": whole.status,
                "headers": whole.headers + self._closing(),
                BODY_FOLLOWS: True,
            }
        )
        await self._send({"type": f"{kind}.response.body", "body": whole.body})

    def _closing(self) -> RawHeaders:
        """What tells a client of HTTP/1.1 that the connection ends with this response."""
        ending = self._body_left or self._app.streams.ending
        return [_CLOSE] if ending and self._scope["http_version"] != "2" else []

    async def _hand_over(self, handover: Handover) -> None:
        streams, target = self._app.streams, handover.route.target
        if handover.route.kind == "mount":
            call = MountedCall(self._scope, self._receive, self._send)
            await call.run(target, handover.route.path, self._request, streams)
        else:
            websocket = ServedWebSocket(WebSocket(self._scope, self._receive, self._send))
            await websocket.run(target, self._request, streams, self._app.log)


def _method(method: str) -> str:
    # The name that WebSockets are registered by is no method that a client can use.
    return "websocket" if method == WEBSOCKET else method


def _headers(raw: Any) -> dict[str, str]:
    """Header fields by name, in lower case; several of a name become one, as HTTP has it."""
    headers: dict[str, str] = {}
    for name_bytes, value_bytes in raw:
        name, value = name_bytes.decode("latin-1"), value_bytes.decode("latin-1")
        if name in headers:
            value = headers[name] + ("; " if name == "cookie" else ", ") + value
        headers[name] = value
    return headers


def _absolute(target: bytes, headers: dict[str, str]) -> bytes:
    """The path of a target that names the host as well, which then counts in place of `Host`."""
    scheme, mark, rest = target.partition(b"://")
    if not mark or scheme.lower() not in (b"http", b"https"):
        return target
    authority, _, path = rest.partition(b"/")
    headers["host"] = authority.decode("latin-1")
    return b"/" + path


def path_of(target: bytes) -> str:
    """The path, decoded. Raises `InvalidKey` below `/v1/kv/` and `BadRequest` elsewhere."""
    try:
        return (unquote_to_bytes(target) if b"%" in target else target).decode()
    except UnicodeDecodeError:
        if target.startswith(b"/v1/kv/"):
            raise InvalidKey("The key is not valid UTF-8.") from None
        raise BadRequest("The path is not valid UTF-8.") from None


def params(query: bytes) -> Mapping[str, str]:
    """The parameters of a query, as HTML forms write them; of several of a name the first."""
    if b"%" not in query and b"+" not in query and query.isascii():
        parts = [part.partition("=") for part in query.decode().split("&") if part]
        return {name: value for name, _, value in reversed(parts)} if parts else NO_PARAMS
    try:
        pairs = parse_qsl(query.decode(), keep_blank_values=True, errors="strict")
    except ValueError:
        raise BadRequest("The query is not valid UTF-8.") from None
    return dict(reversed(pairs)) if pairs else NO_PARAMS


def credential(headers: Mapping[str, str]) -> str | None:
    """The token that a request came with."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    return headers.get("x-api-key")


def _has_body(scope: Scope, headers: Mapping[str, str]) -> bool:
    if scope["type"] != "http":
        return False
    if "content-length" in headers:
        return headers["content-length"] != "0"
    if scope["http_version"] == "2":
        return scope["method"] not in ("GET", "HEAD")
    return "transfer-encoding" in headers
