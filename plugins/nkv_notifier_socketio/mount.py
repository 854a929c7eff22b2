"""Mount: the ASGI application at `/socket.io/`, around that of the protocol library.

It keeps connections to those who opened them, refuses what would lead around the browsers' rules,
and lets polls end when the node stops.
"""

from typing import Any, Final
from urllib.parse import parse_qsl

import anyio
from anyio import CancelScope

from nkv_core.contracts.handlers import REQUEST_IN_SCOPE
from nkv_core.contracts.identity import Identity

from .clients import Clients, opening

PREFIX: Final = "/socket.io/"
_PATHS: Final = (PREFIX, PREFIX.rstrip("/"))
_TEXT: Final = (b"content-type", b"text/plain; charset=UTF-8")


class Mount:
    """The application."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request, or serve one WebSocket."""
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        connection = query.get("sid")
        request = scope.get(REQUEST_IN_SCOPE)
        identity: Identity | None = None if request is None else request.identity
        refusal = self._refusal(scope, query, connection, identity)
        if refusal is not None:
            await _refuse(scope, send, *refusal)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send, connection, identity)
        elif scope["method"] == "GET" and connection and self._clients.polls(connection):
            await self._poll(scope, receive, send, connection)
        else:
            opening.set((identity, None))
            await self._clients.serve(scope, receive, send)

    def _refusal(
        self,
        scope: Any,
        query: dict[str, str],
        connection: str | None,
        identity: Identity | None,
    ) -> tuple[int, str] | None:
        """Status and text that the request is to be refused with, if it is."""
        if scope["path"] not in _PATHS:
            return 404, "There is nothing here."
        if "j" in query:
            # A script of any page could read such an answer: Origin is no defence.
            return 400, "JSONP is not served: poll by XHR, or use WebSocket."
        if connection is None:
            return (503, "There are too many clients.") if self._clients.full else None
        outbox = self._clients.outbox(connection)
        if outbox is not None and outbox.identity != identity:
            return 403, "This connection was opened with another token."
        return None

    async def _websocket(
        self,
        scope: Any,
        receive: Any,
        send: Any,
        connection: str | None,
        identity: Identity | None,
    ) -> None:
        """Serve a WebSocket, until either side or the bounds of its outbox end it."""
        with CancelScope() as call:

            async def send_while_wanted(message: Any) -> None:
                if call.cancel_called:
                    raise OSError("The client was dropped.")
                await send(message)

            outbox = None if connection is None else self._clients.outbox(connection)
            if outbox is not None:
                outbox.call = call
            opening.set((identity, call))
            await self._clients.serve(scope, receive, send_while_wanted)

    async def _poll(self, scope: Any, receive: Any, send: Any, connection: str) -> None:
        """Answer a poll: the head at once, so that a node that stops can have it end, the body when
        there is something to tell.
        """
        first = await receive()

        async def receive_first() -> Any:
            return first

        async def send_body(message: Any) -> None:
            if message["type"] == "http.response.body":
                await send(message)

        async def until_gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self._clients.end_poll(connection)

        await send({"type": "http.response.start", "status": 200, "headers": [_TEXT]})
        # Without this the head would wait for the body in some servers.
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(until_gone)
            await self._clients.serve(scope, receive_first, send_body)
            tasks.cancel_scope.cancel()


async def _refuse(scope: Any, send: Any, status: int, text: str) -> None:
    kind = "http" if scope["type"] == "http" else "websocket.http"
    body = text.encode() + b"\n"
    length = (b"content-length", b"%d" % len(body))
    await send({"type": f"{kind}.response.start", "status": status, "headers": [_TEXT, length]})
    await send({"type": f"{kind}.response.body", "body": body})
