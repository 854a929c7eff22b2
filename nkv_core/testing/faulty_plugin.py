"""A plugin that offers the storage `faulty`: one in memory, in a `FaultyStorage`.

A test and the node's plugin host each have modules of their own. They meet in
`nkv_core.testing.faults`, where the storage is kept by the name that the settings give it.
"""

from typing import Any

import msgspec

from nkv_core.contracts.markers import hookimpl
from nkv_core.contracts.storage import Storage, Where
from nkv_core.testing.faults import FaultyStorage, remember
from nkv_core.testing.storage_crash import make_storage


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Section `plugin.faulty_plugin`."""

    known_as: str  #: by which the test finds the storage
    where: Where = "thread"  #: of reads and writes


@hookimpl
def nkv_settings() -> type[msgspec.Struct]:
    """The type of the settings."""
    return Settings


@hookimpl
def nkv_storage(name: str, settings: Any) -> Storage | None:
    """The storage `faulty`."""
    if name != "faulty":
        return None
    inside = make_storage("nkv_storage_memory", "memory", {})
    storage = FaultyStorage(inside, reads="inline", writes=settings.where)
    remember(settings.known_as, storage)
    return storage
