"""Restore: puts together as much of a node as it takes to make a data directory of a backup."""

from collections.abc import Iterator
from typing import Any, BinaryIO, Never, cast

import anyio

from nkv_core.config import STORAGE_PREFIX, Settings
from nkv_core.contracts.context import NodeView
from nkv_core.contracts.storage import Storage
from nkv_core.data_dir import new_data_dir
from nkv_core.dispatch import Dispatcher
from nkv_core.errors import PluginNotFound, SettingsError, StartError
from nkv_core.keyspace import LocalKeyspace
from nkv_core.keyspace.backup import Progress
from nkv_core.keyspace.restoring import Contents, examine_backup, restore_backup
from nkv_core.plugin_host import PluginHost


class _NoNode:
    """What plugins see of the node: there is none."""

    def __getattr__(self, name: str) -> Never:
        raise StartError("No node runs while a backup is restored.")


async def restore_node(
    settings: Settings, file: BinaryIO, progress: Progress | None = None
) -> Contents:
    """Make a data directory, at `node.data_dir`, with what a backup has: all of it, or nothing.

    The folder must be new or empty, so that no node can be running on it. The node that starts with
    it has an identity and a history of its own. Raises `DataDamaged` or `NewerFormat` where the
    backup is not good, `DataDirError`, `SettingsError`, and what the storage raises.
    """
    given = settings.section(f"storage.{settings.storage}")
    if given.get("directory") is not None:
        raise SettingsError(
            f"storage.{settings.storage}.directory is set ({given.origin}): a backup is restored"
            " into a new data directory as a whole. Restore it without that, then move the folder."
        )
    contents = await anyio.to_thread.run_sync(examine_backup, file)
    with new_data_dir(settings.node.data_dir) as data:
        host = PluginHost(
            settings=settings.plugins,
            sections=settings.section,
            dispatcher=Dispatcher(settings=settings.bus),
            data_dir=data.path,
            node=cast("NodeView", _NoNode()),
            insecure=False,
            authenticated=False,
        )
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            await tasks.start(host.run)
            try:
                storage = await _find_storage(host, settings)
                keyspace = LocalKeyspace(storage, settings.keyspace, node_id=data.node_id)
                await keyspace.open()
                try:
                    await restore_backup(keyspace, file, contents=contents, progress=progress)
                finally:
                    await keyspace.aclose()
            except Exception as error:  # noqa: BLE001  # raised below: the group would wrap it
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # else it and this frame hold each other
    return contents


async def _find_storage(host: PluginHost, settings: Settings) -> Storage:
    """Load plugins until one offers the storage; those that do not are unloaded again."""
    error: Any = None
    for spec in _specs(host, settings):
        info = await host.load(spec)
        try:
            storage, _ = host.storage(settings.storage)
        except PluginNotFound as missing:
            error = missing
            await host.unload(info.name)
            continue
        if not storage.durable:
            raise SettingsError(f"The storage {settings.storage} keeps nothing: choose another.")
        return storage
    raise error or PluginNotFound(f"No plugin offers a storage called {settings.storage}.")


def _specs(host: PluginHost, settings: Settings) -> Iterator[str]:
    usual = STORAGE_PREFIX + settings.storage
    if usual in host.available():
        yield usual
    yield from (spec for spec in settings.plugins.load if spec != usual)
