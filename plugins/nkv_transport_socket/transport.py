"""Transport: the three dialects, on the node's sockets."""

import os
import stat
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from socket import socket
from typing import Any, Final

from anyio import Event

from nkv_core.contracts.context import Context, TcpAddress, UnixAddress
from nkv_core.errors import StartError

from .commands import Commands
from .connection import Shared
from .server import Server
from .settings import SocketSettings
from .subscriptions import Figures, Registry


class SocketTransport:
    """Lines, frames and JSON, over a Unix socket and over TCP."""

    backends: Final = frozenset(("asyncio", "trio"))
    features: Final[frozenset[str]] = frozenset()
    scheme: Final = "nkv"

    def __init__(self, settings: SocketSettings) -> None:
        self._settings = settings
        self._figures: Callable[[], dict[str, Any]] = dict

    def figures(self) -> dict[str, Any]:
        """What it says about itself."""
        return self._figures()

    async def serve(
        self, ctx: Context, *, started: Callable[[], None], stop: Event, deadline: float
    ) -> None:
        """Serve, as `contracts.transport.Transport` has it. Raises `AddressInUse`, `StartError`."""
        settings = self._settings
        figures = Figures()
        registry = Registry(lambda: ctx.node.hub, settings.remembered_keys)
        shared = Shared(ctx.dispatch, registry, figures, settings, ctx.log)
        server = Server(shared)
        Commands(registry, version("nkv-core"), settings.max_answer_bytes).register(ctx.handlers)

        def counted() -> dict[str, Any]:
            return {
                "connections": server.connections,
                "subscriptions": len(registry),
                "left_out_spaces": figures.left_out,
                "subscriptions_cut": figures.cut,
            }

        self._figures = counted
        ctx.handlers.add("/v1/status/socket", lambda _: counted(), command="status", timeout=None)
        await server.serve(await self._listen(ctx), started=started, stop=stop, deadline=deadline)

    async def _listen(self, ctx: Context) -> list[socket]:
        settings = self._settings
        sockets: list[socket] = []
        try:
            if settings.path:
                _make_folder(settings.path)
                listener = await ctx.listen(UnixAddress(settings.path, int(settings.mode, 8)))
                sockets += listener.sockets()
            if settings.tcp is not None:
                listener = await ctx.listen(TcpAddress(*settings.tcp))
                sockets += listener.sockets()
        except BaseException:
            for each in sockets:
                each.close()
            raise
        return sockets


def _make_folder(path: str) -> None:
    """Make a socket's folder where it is missing, for this user alone.

    Raises `StartError` where it cannot be made, or where somebody else could put a socket of their
    own in the place of ours.
    """
    folder = Path(path).absolute().parent
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        about = folder.stat()
    except OSError as error:
        raise StartError(f"The folder {folder} cannot be used: {error.strerror}.") from None
    others_may_write = about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if about.st_uid not in (0, os.geteuid()) or (
        others_may_write and not about.st_mode & stat.S_ISVTX
    ):
        raise StartError(
            f"The folder {folder} belongs to another user, or others may write to it: set"
            " transport.socket.path to a place of this user's own."
        )
