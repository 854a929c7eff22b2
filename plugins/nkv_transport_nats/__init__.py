"""The NATS transport of nkv: the dialect of requests and replies over a NATS server."""

from typing import Any

import msgspec

from nkv_core.contracts.markers import hookimpl
from nkv_core.contracts.transport import Transport
from nkv_core.errors import PluginInvalid

try:
    import nats  # noqa: F401  # whether it is there: the modules below import it for use
except ModuleNotFoundError:
    raise PluginInvalid("nkv_transport_nats needs nats-py: pip install 'nkv-core[nats]'") from None

from .settings import NatsSettings
from .transport import NatsTransport


@hookimpl
def nkv_settings() -> type[msgspec.Struct]:
    """The section `transport.nats`."""
    return NatsSettings


@hookimpl
def nkv_transport(name: str, settings: Any) -> Transport | None:
    """The transport `nats`."""
    return NatsTransport(settings) if name == "nats" else None
