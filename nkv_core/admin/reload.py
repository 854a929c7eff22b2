"""The verb of the admin socket that reads the settings again."""

from collections.abc import Awaitable
from typing import Any, Protocol

import msgspec

from nkv_core.admin.changes import Changes
from nkv_core.admin.plugins import params_of
from nkv_core.admin.server import Call, Verb


class _Reload(msgspec.Struct, forbid_unknown_fields=True):
    dry_run: bool = False


class Reload(Protocol):
    """Reads the settings again."""

    def __call__(self, *, dry_run: bool) -> Awaitable[Any]:
        """Returns what was done, or would be."""


def reload_verbs(reload: Reload, changes: Changes) -> dict[str, Verb]:
    """`reload`, with the parameter `dry_run`."""

    async def reload_(call: Call) -> Any:
        if params_of(call, _Reload).dry_run:
            return await reload(dry_run=True)
        with changes.attempt(call):
            return await reload(dry_run=False)

    return {"reload": reload_}
