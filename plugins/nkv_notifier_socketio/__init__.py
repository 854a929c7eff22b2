"""Socket.IO: the Flask dialect's `/kv` paths, and its events to every client after each put."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from nkv_core.contracts.context import Context
from nkv_core.contracts.handlers import Handlers
from nkv_core.contracts.markers import hookimpl
from nkv_core.errors import PluginInvalid
from nkv_core.loop import refuse_other_backends

try:
    import socketio  # noqa: F401  # whether it is there: the modules below import it for use
except ModuleNotFoundError as error:
    raise PluginInvalid(
        f"nkv_notifier_socketio needs {error.name}, of the package python-socketio:"
        " pip install 'nkv-core[socketio]'"
    ) from None

from . import kv
from .clients import Clients
from .mount import PREFIX, Mount
from .settings import SocketioSettings
from .status import register
from .teller import Teller


@hookimpl
def nkv_settings() -> type[msgspec.Struct]:
    """The section `notifier.socketio`."""
    return SocketioSettings


@hookimpl
def nkv_handlers(handlers: Handlers) -> None:
    """The paths of the dialect."""
    kv.register(handlers)


@hookimpl
@asynccontextmanager
async def nkv_setup(ctx: Context) -> AsyncIterator[None]:
    """Serve Socket.IO, and tell its clients of every put from now on."""
    refuse_other_backends("nkv_notifier_socketio", ("asyncio",))
    async with Clients(ctx.settings, ctx.log) as clients:
        teller = Teller(ctx, clients)
        register(ctx.handlers, clients, teller)
        ctx.handlers.mount(PREFIX, Mount(clients))
        # The first of all that is asked to end when the plugin goes: clients before their requests.
        ctx.owner.open_stream(clients, clients.goodbye)
        ctx.tasks.start_soon(teller.run, name="nkv: Socket.IO")
        yield
