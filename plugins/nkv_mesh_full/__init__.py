"""The full mesh of nkv: nodes that find each other, and each hold everything."""

from typing import Any

import msgspec

from nkv_core.contracts.markers import hookimpl
from nkv_core.contracts.mesh import Discovery, Merger, Mesh

from .discovery import DnsDiscovery, MdnsDiscovery
from .mergers import MERGERS
from .mesh import FullMesh
from .settings import FullSettings


@hookimpl
def nkv_settings() -> type[msgspec.Struct]:
    """The section `mesh.full`."""
    return FullSettings


@hookimpl
def nkv_mesh(name: str, settings: Any) -> Mesh | None:
    """The mesh `full`."""
    return FullMesh(settings) if name == "full" else None


@hookimpl
def nkv_merger(name: str, settings: Any) -> Merger | None:  # they need none
    """The mergers `counter` and `set`."""
    made = MERGERS.get(name)
    return None if made is None else made()


@hookimpl
def nkv_discovery(name: str, settings: Any) -> Discovery | None:
    """The discoveries `dns` and `mdns`."""
    if name == "dns":
        return DnsDiscovery(settings.dns)
    return MdnsDiscovery() if name == "mdns" else None
