"""The notifier `websocket`: `GET /v1/ws` tells of changes, and takes requests, in JSON."""

from collections.abc import AsyncIterator

import msgspec

from nkv_core.contracts.context import Context
from nkv_core.contracts.markers import hookimpl

from . import commands
from .service import Service
from .settings import WebSocketSettings


@hookimpl
def nkv_settings() -> type[msgspec.Struct]:
    """The section `notifier.websocket`."""
    return WebSocketSettings


@hookimpl
async def nkv_setup(ctx: Context) -> AsyncIterator[None]:
    """Answer `/v1/ws` for as long as the plugin is loaded."""
    commands.register(ctx.handlers)
    Service(ctx.settings, ctx.dispatch).register(ctx.handlers)
    yield
