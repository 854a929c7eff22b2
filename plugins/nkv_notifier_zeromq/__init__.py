"""ZeroMQ: publishes every change on a PUB socket, with its key as the topic."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from nkv_core.contracts.context import Context, TcpAddress
from nkv_core.contracts.markers import hookimpl
from nkv_core.errors import PluginInvalid

try:
    import zmq  # noqa: F401  # whether it is there: a module below imports it for use
except ModuleNotFoundError as error:
    raise PluginInvalid(
        f"nkv_notifier_zeromq needs {error.name}, of the package pyzmq:"
        " pip install 'nkv-core[zeromq]'"
    ) from None

from .publisher import Publisher, published_at
from .settings import ZeromqSettings

PATH: Final = "/v1/notifiers/zeromq"


@hookimpl
def nkv_settings() -> type[msgspec.Struct]:
    """The section `notifier.zeromq`."""
    return ZeromqSettings


@hookimpl
@asynccontextmanager
async def nkv_setup(ctx: Context) -> AsyncIterator[None]:
    """Publish what changes from now on."""
    settings: ZeromqSettings = ctx.settings
    # A subscriber of ZeroMQ cannot show a token: whoever reaches the port reads every change.
    listener = await ctx.listen(
        TcpAddress(settings.host, settings.port), guard="nobody", scheme="zmq+tcp"
    )
    async with published_at(listener, settings.pending) as sockets:
        publisher = Publisher(ctx, sockets)
        ctx.handlers.add(PATH, lambda _: publisher.status(), command="zeromq status", timeout=None)
        ctx.tasks.start_soon(publisher.run, name="nkv: ZeroMQ")
        ctx.tasks.start_soon(publisher.beat, name="nkv: ZeroMQ heartbeat")
        yield
