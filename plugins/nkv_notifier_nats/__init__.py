"""NATS: publishes every change to a subject of a NATS server, from a place that is kept durably."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from nkv_core.contracts.context import Context
from nkv_core.contracts.handlers import Request
from nkv_core.contracts.markers import hookimpl
from nkv_core.errors import PluginInvalid
from nkv_core.loop import refuse_other_backends
from nkv_core.outward import Follower

try:
    import nats  # noqa: F401  # whether it is there: the modules below import it for use
except ModuleNotFoundError:
    raise PluginInvalid("nkv_notifier_nats needs nats-py: pip install 'nkv-core[nats]'") from None

from .sender import Sender
from .settings import NatsSettings

PATH = "/v1/notifiers/nats"
#: Seconds between two times that the place is kept. What is sent again after a crash has the same
#: token, and the same id for streams.
_KEEP_EVERY = 1.0
_AT_ONCE = 256


@hookimpl
def nkv_settings() -> type[msgspec.Struct]:
    """The section `notifier.nats`."""
    return NatsSettings


@hookimpl
@asynccontextmanager
async def nkv_setup(ctx: Context) -> AsyncIterator[None]:
    """Publish from where the last generation, or the last run, came to."""
    refuse_other_backends("nkv_notifier_nats", ("asyncio",))
    settings: NatsSettings = ctx.settings
    follower = Follower(
        ctx,
        "nats",
        pattern=settings.pattern,
        label="nats",
        most=1 if settings.acknowledge == "stream" else _AT_ONCE,
        keep_every=_KEEP_EVERY,
    )
    async with follower:
        sender = Sender(ctx, follower)

        async def status(_: Request) -> dict[str, Any]:
            return sender.status()

        ctx.handlers.add(PATH, status, command="nats status")
        ctx.tasks.start_soon(sender.stay_connected, name="nkv: NATS connection")
        ctx.tasks.start_soon(follower.run, sender.deliver, name="nkv: NATS")
        yield
