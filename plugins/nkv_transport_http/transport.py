"""Transport: the application on the server, on the node's sockets."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any, Final

from anyio import Event

from nkv_core.contracts.context import Context, TcpAddress

from .app import App
from .browsers import Hosts
from .health import register_status
from .nkvd import Nkvd
from .server import Server
from .settings import HttpSettings


class HttpTransport:
    """HTTP/1.1 and HTTP/2, in the clear or with TLS, and WebSockets over both."""

    backends: Final = frozenset(("asyncio", "trio"))
    features: Final = frozenset(("websocket", "mount"))

    def __init__(self, settings: HttpSettings) -> None:
        self._settings = settings
        self.scheme: Final = "http" if settings.tls_certificate is None else "https"
        self._port = settings.port

    async def serve(
        self, ctx: Context, *, started: Callable[[], None], stop: Event, deadline: float
    ) -> None:
        """Serve, as `contracts.transport.Transport` has it.

        Raises `AddressInUse`, `StartError`, and `SettingsError` where the TLS files are no use.
        """
        settings = self._settings
        listener = await ctx.listen(TcpAddress(settings.host, settings.port))
        addresses = [place for place in listener.addresses if isinstance(place, TcpAddress)]
        self._port = addresses[0].port
        hosts = Hosts((settings.host, *settings.hosts, *(place.host for place in addresses)))
        app = App(ctx.dispatch, settings, hosts, ctx.log)
        server = Server(app, settings, ctx.log, ctx.dispatch_now)
        self._register(ctx, server)
        await server.serve(
            listener.sockets(),
            started=started,
            stop=stop,
            stopping=app.stopping,
            deadline=deadline,
        )

    def _register(self, ctx: Context, server: Server) -> None:
        """Register the handlers that need to know the settings."""
        nkvd = Nkvd(self._settings, version("nkv-core"), lambda: self._port)
        nkvd.register(ctx.handlers)

        def figures() -> dict[str, Any]:
            return {
                "port": self._port,
                "connections": server.connections,
                "left_out_not_text": nkvd.left_out,
            }

        register_status(ctx.handlers, figures)
