"""The storage `diskcache`: durable, in one SQLite file that diskcache lays out. The default."""

from typing import Any

import msgspec

from nkv_core.contracts.markers import hookimpl
from nkv_core.contracts.storage import Storage

from .settings import DiskcacheSettings
from .storage import DiskcacheStorage


@hookimpl
def nkv_settings() -> type[msgspec.Struct]:
    """The section `storage.diskcache`."""
    return DiskcacheSettings


@hookimpl
def nkv_storage(name: str, settings: Any) -> Storage | None:
    """Offer the storage called `diskcache`."""
    return DiskcacheStorage(settings) if name == "diskcache" else None
