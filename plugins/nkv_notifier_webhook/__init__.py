"""Webhook: POSTs every change to an address, in order, until the receiver has taken it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from nkv_core.contracts.context import Context
from nkv_core.contracts.markers import hookimpl

from .courier import Courier
from .dead_letters import DeadLetters
from .receiver import Receiver, refuse_forbidden
from .settings import WebhookSettings, read_secret
from .status import register


@hookimpl
def nkv_settings() -> type[msgspec.Struct]:
    """The section `notifier.webhook`."""
    return WebhookSettings


@hookimpl
@asynccontextmanager
async def nkv_setup(ctx: Context) -> AsyncIterator[None]:
    """Deliver from where the last generation, or the last run, came to."""
    settings: WebhookSettings = ctx.settings
    secret = await read_secret(settings.secret_file)
    if not settings.allow_private:
        await refuse_forbidden(settings.url, settings.timeout, ctx.log)
    dead = DeadLetters(ctx.state, settings.dead_letters)
    await dead.load()
    async with Receiver(settings, secret) as receiver:
        courier = Courier(ctx, receiver, dead)
        async with courier.follower:
            register(ctx.handlers, courier)
            ctx.tasks.start_soon(courier.run, name="nkv: webhook")
            yield
