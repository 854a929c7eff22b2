"""The storage `memory`: fast, ordered, and gone with the process."""

from typing import Any

import msgspec

from nkv_core.contracts.markers import hookimpl
from nkv_core.contracts.storage import Storage

from .storage import MemorySettings, MemoryStorage


@hookimpl
def nkv_settings() -> type[msgspec.Struct]:
    """The section `storage.memory`."""
    return MemorySettings


@hookimpl
def nkv_storage(name: str, settings: Any) -> Storage | None:
    """Offer the storage called `memory`."""
    return MemoryStorage(settings) if name == "memory" else None
