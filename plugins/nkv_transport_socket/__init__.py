"""The socket transport of nkv: three dialects of lines, frames and JSON, over Unix and TCP."""

from typing import Any

import msgspec

from nkv_core.contracts.markers import hookimpl
from nkv_core.contracts.transport import Transport

from .settings import SocketSettings
from .transport import SocketTransport


@hookimpl
def nkv_settings() -> type[msgspec.Struct]:
    """The section `transport.socket`."""
    return SocketSettings


@hookimpl
def nkv_transport(name: str, settings: Any) -> Transport | None:
    """The transport `socket`."""
    return SocketTransport(settings) if name == "socket" else None
