"""Transport: the protocol of Redis, on the node's sockets."""

from collections.abc import Callable
from typing import Any, Final

from anyio import Event

from nkv_core.contracts.context import Context, TcpAddress

from .commands import register
from .server import Shared, serve
from .settings import RespSettings


class RespTransport:
    """RESP2 and RESP3. It runs on asyncio, whose protocols it is built of."""

    backends: Final = frozenset(("asyncio",))
    features: Final[frozenset[str]] = frozenset()
    scheme: Final = "redis"

    def __init__(self, settings: RespSettings) -> None:
        self._settings = settings

    async def serve(
        self, ctx: Context, *, started: Callable[[], None], stop: Event, deadline: float
    ) -> None:
        """Serve, as `contracts.transport.Transport` has it. Raises `AddressInUse`, `StartError`."""
        shared = Shared(ctx, self._settings)
        register(ctx.handlers, shared.table)
        ctx.handlers.add(
            "/v1/status/resp", lambda _: _figures(shared), command="status", timeout=None
        )
        listener = await ctx.listen(TcpAddress(self._settings.host, self._settings.port))
        await serve(shared, listener.sockets(), started=started, stop=stop, deadline=deadline)


def _figures(shared: Shared) -> dict[str, Any]:
    figures = shared.figures
    return {
        "clients": len(shared.sessions),
        "connections": figures.connections,
        "refused": figures.refused,
        "cut_for_output": figures.cut_for_output,
        "channels": len(shared.channels.channels()),
        "patterns": shared.channels.patterns,
        "tracking_clients": shared.tracker.clients,
        "tracked_keys": shared.tracker.keys,
    }
