"""The verbs of the admin socket that exchange the storage."""

from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from nkv_core.admin.changes import Changes
from nkv_core.admin.plugins import params_of
from nkv_core.admin.server import Call, Verb

if TYPE_CHECKING:
    from nkv_core.storages import Storages


class _Migrate(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(min_length=1)]
    settings: dict[str, Any] | None = None
    allow_volatile: bool = False
    bake: Annotated[float, msgspec.Meta(ge=0)] | None = None


def storage_verbs(storages: "Storages", changes: Changes) -> dict[str, Verb]:
    """`storage.migrate`, which only begins it, `.status`, `.rollback` and `.commit`."""

    async def migrate(call: Call) -> Any:
        params = params_of(call, _Migrate)
        with changes.attempt(call, spec=params.name):
            await storages.begin(
                params.name,
                params.settings,
                allow_volatile=params.allow_volatile,
                bake=params.bake,
            )
        return storages.status()

    async def status(_: Call) -> Any:
        return storages.status()

    async def rollback(call: Call) -> Any:
        with changes.attempt(call):
            await storages.rollback()
        return storages.status()

    async def commit(call: Call) -> Any:
        with changes.attempt(call):
            await storages.commit()
        return storages.status()

    return {
        "storage.migrate": migrate,
        "storage.status": status,
        "storage.rollback": rollback,
        "storage.commit": commit,
    }
