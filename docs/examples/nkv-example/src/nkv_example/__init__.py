"""An example of a plugin for nkv: a storage, a handler and a listener."""

from pathlib import Path

import msgspec

from nkv_core import Rejected, hookimpl

from .storage import SqliteStorage


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Section `plugin.nkv_example`."""

    directory: str | None = None  #: nkv fills it in where it is left out


@hookimpl
def nkv_settings():
    return Settings


@hookimpl
def nkv_storage(name, settings):
    return SqliteStorage(Path(settings.directory)) if name == "sqlite" else None


@hookimpl
def nkv_handlers(handlers):
    handlers.add("/shout", shout)


async def shout(request):
    record = await request.keyspace.get(request.params.get("k", ""))
    return {"shout": record.value.decode().upper() if record else None}


@hookimpl
def nkv_request_start(event):
    if event.params.get("k", "").startswith("forbidden."):
        raise Rejected(403, "forbidden_key")
