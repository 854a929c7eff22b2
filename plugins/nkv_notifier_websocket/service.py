"""Service: serves the WebSockets on `/v1/ws`, each by a session of its own."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import anyio

from nkv_core.contracts.handlers import Dispatch, Handlers, Request, WebSocket
from nkv_core.errors import Stopping

from .session import Session
from .settings import WebSocketSettings

PATH: Final = "/v1/ws"


class Service:
    """Serves all connections of one generation of the plugin."""

    def __init__(self, settings: WebSocketSettings, dispatch: Dispatch) -> None:
        self._settings = settings
        self._dispatch = dispatch

    def register(self, handlers: Handlers) -> None:
        """Register the path."""
        handlers.websocket(PATH, self.serve)

    async def serve(self, request: Request, websocket: WebSocket) -> None:
        """Serve one connection until either side ends it."""
        session = Session(request, websocket, self._settings, self._dispatch)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_until_closed, session.tell)
                await _until_closed(session.answer)
                tasks.cancel_scope.cancel()
        finally:
            session.close()


async def _until_closed(run: Callable[[], Awaitable[None]]) -> None:
    with suppress(Stopping):  # what sending to a closed connection raises
        await run()
