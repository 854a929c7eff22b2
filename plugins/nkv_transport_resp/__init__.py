"""The RESP transport of nkv: the protocol of Redis, for Redis' clients."""

from typing import Any

import msgspec

from nkv_core.contracts.markers import hookimpl
from nkv_core.contracts.transport import Transport
from nkv_core.errors import StartError

from .settings import RespSettings


@hookimpl
def nkv_settings() -> type[msgspec.Struct]:
    """The section `transport.resp`."""
    return RespSettings


@hookimpl
def nkv_transport(name: str, settings: Any) -> Transport | None:
    """The transport `resp`. Raises `StartError` where hiredis is missing."""
    if name != "resp":
        return None
    try:
        from .transport import RespTransport  # noqa: PLC0415  # what it needs may be missing
    except ModuleNotFoundError as error:
        if error.name != "hiredis":
            raise
        raise StartError("The RESP transport needs hiredis: pip install 'nkv-core[resp]'") from None
    return RespTransport(settings)
