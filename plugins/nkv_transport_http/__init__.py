"""The HTTP transport of nkv, and the handlers that it brings: the nkvd paths and those of `/v1`."""

from typing import Any

import msgspec

from nkv_core.contracts.handlers import Handlers
from nkv_core.contracts.markers import hookimpl
from nkv_core.contracts.transport import Transport

from . import health, metrics, openapi, v1
from .settings import HttpSettings
from .transport import HttpTransport


@hookimpl
def nkv_settings() -> type[msgspec.Struct]:
    """The section `transport.http`."""
    return HttpSettings


@hookimpl
def nkv_transport(name: str, settings: Any) -> Transport | None:
    """The transport `http`."""
    return HttpTransport(settings) if name == "http" else None


@hookimpl
def nkv_handlers(handlers: Handlers) -> None:
    """Paths that need to know nothing of the settings; the transport registers the others."""
    v1.register(handlers)
    openapi.register(handlers)
    metrics.register(handlers)
    health.register(handlers)
