"""The notifier `sse`: `GET /v1/watch` tells of changes as Server-Sent Events."""

from collections.abc import AsyncIterator

import msgspec

from nkv_core.contracts.context import Context
from nkv_core.contracts.markers import hookimpl

from .settings import SseSettings
from .watch import Watch


@hookimpl
def nkv_settings() -> type[msgspec.Struct]:
    """The section `notifier.sse`."""
    return SseSettings


@hookimpl
async def nkv_setup(ctx: Context) -> AsyncIterator[None]:
    """Answer `/v1/watch` for as long as the plugin is loaded."""
    Watch(ctx.settings).register(ctx.handlers)
    yield
