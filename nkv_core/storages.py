"""Storages: which one the node has, where it comes from, and how it is exchanged."""

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from nkv_core.config import STORAGE_PREFIX, Settings
from nkv_core.contracts.storage import Storage
from nkv_core.data_dir import DataDir
from nkv_core.errors import (
    BadRequest,
    MigrationFailed,
    MigrationRunning,
    NkvError,
    NoMigration,
    OtherStorage,
    PluginNotFound,
    SettingsError,
    Stopping,
    VolatileTarget,
)
from nkv_core.keyspace import LocalKeyspace
from nkv_core.keyspace.migration import Entry, Journal, Migration, Place
from nkv_core.keyspace.migration.journal import FORMAT
from nkv_core.plugin_host import PluginHost
from nkv_core.specs import absolute_spec

log: Final = logging.getLogger("nkv.node")

IN_CHARGE: Final = (
    "It offers the storage in charge, which the node cannot leave: nkv storage migrate NAME"
)
_MIGRATING: Final = "It offers a storage of the migration that is under way."


class Storages:
    """The storage in charge of one node, and the migration to another one."""

    keyspace: LocalKeyspace

    def __init__(self, settings: Settings, host: PluginHost, data: DataDir) -> None:
        self._settings: Final = settings
        self._host: Final = host
        self._data: Final = data
        self._journal: Final = Journal(data.path)
        self._place = Place(settings.storage)
        self._plugin = ""  # that offers it
        self._target_plugin = ""  # that offers what is migrated to
        self._tasks: TaskGroup | None = None
        self._migration: Migration | None = None
        self._beginning: Final = anyio.Lock()
        self._settled = anyio.Event()  # once nothing remains to be done for the migration

    # --- the node's life --------------------------------------------------------------------------

    async def open(self, tasks: TaskGroup) -> LocalKeyspace:
        """Open the keyspace over the storage in charge, which the journal names where there is one.

        Raises `OtherStorage` where the settings name another, `SettingsError` where no plugin
        offers it, and as `LocalKeyspace.open`. Migrations run in `tasks`.
        """
        self._tasks = tasks
        entry = await to_thread.run_sync(self._journal.read)
        if entry is not None:
            self._place = entry.in_charge
            self._refuse_another(entry)
        storage, self._plugin = await self._find(self._place)
        keyspace = LocalKeyspace(
            storage,
            self._settings.keyspace,
            node_id=self._data.node_id,
            copy_to=self._data.path,
            in_charge=entry is not None,
        )
        await keyspace.open()
        self.keyspace = keyspace
        self._host.hold(self._plugin, IN_CHARGE)
        if entry is not None and entry.migration is not None:
            await self._settle(entry)
        return keyspace

    def _refuse_another(self, entry: Entry) -> None:
        wanted, found = self._settings.storage, entry.in_charge.storage
        if self._settings.names_storage and wanted != found:
            raise OtherStorage(
                f"storage.name is {wanted}, but {found} has been in charge since {entry.since}"
                f" ({self._journal.path}). Either start with --storage {found}, or without naming"
                f" one. Or, to have {wanted}: start so, then nkv storage migrate {wanted}."
            )

    async def _settle(self, entry: Entry) -> None:
        """The node has ended in the middle of a migration."""
        migration = entry.migration
        assert migration is not None  # noqa: S101  # the caller has looked
        if migration.phase == "copying":
            log.warning(
                "the migration from %s to %s was cut short: begin it anew",
                entry.in_charge.storage,
                migration.other.storage,
            )
        else:
            log.warning(
                "the node has ended while it could still go back from %s to %s: that is past",
                entry.in_charge.storage,
                migration.other.storage,
            )
        settled = Entry(FORMAT, entry.in_charge, entry.since)
        await to_thread.run_sync(self._journal.write, settled)

    async def close(self) -> None:
        """End the migration that is under way, as a node does that stops, then the keyspace."""
        migration = self._migration
        if migration is not None and not migration.progress.over:
            await migration.stop()
        if hasattr(self, "keyspace"):
            await self.keyspace.aclose()

    # --- finding a storage ------------------------------------------------------------------------

    async def _find(self, place: Place) -> tuple[Storage, str]:
        """Load plugins until one offers the storage: its namesake, else what is to be loaded."""
        host, name = self._host, place.storage
        loaded = {info.name: info.spec for info in host.plugins() if info.state == "active"}
        namesake = STORAGE_PREFIX + name
        if namesake not in loaded and namesake in host.available():
            await host.load(namesake)
        try:
            return host.storage(name, place.settings)
        except PluginNotFound:
            pass
        specs = dict.fromkeys((*filter(None, [place.plugin]), *self._settings.plugins.load))
        for spec in specs:
            if absolute_spec(spec) in loaded.values():
                continue
            await host.load(spec)
            try:
                return host.storage(name, place.settings)
            except PluginNotFound:
                continue
        usual = [
            plugin.removeprefix(STORAGE_PREFIX)
            for plugin in host.available()
            if plugin.startswith(STORAGE_PREFIX)
        ]
        raise SettingsError(
            f"storage.name: no plugin offers a storage called {name}. There are:"
            f" {', '.join(usual)}, and what plugins given with --plugin offer."
        )

    def _spec_of(self, plugin: str, storage: str) -> str | None:
        """How to come to the plugin at the next start, where its name does not say it."""
        if plugin == STORAGE_PREFIX + storage:
            return None
        return next(info.spec for info in self._host.plugins() if info.name == plugin)

    # --- migrations -------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The name of the storage in charge."""
        return self._in_charge()[0].storage

    def _in_charge(self) -> tuple[Place, str]:
        """The storage in charge, and the plugin that offers it."""
        migration = self._migration
        if migration is None or migration.in_charge is migration.source:
            return self._place, self._plugin
        return migration.target, self._target_plugin

    def migration(self) -> dict[str, Any] | None:
        """How far the migration is, or what became of the last one, for JSON."""
        return None if self._migration is None else self._migration.status()

    def status(self) -> dict[str, Any]:
        """What `nkv storage status` shows."""
        return {
            "in_charge": self.name,
            "plugin": self._in_charge()[1],
            "durable": self.keyspace.storage.durable,
            "migration": self.migration(),
        }

    async def begin(
        self,
        name: str,
        settings: Mapping[str, Any] | None = None,
        *,
        allow_volatile: bool = False,
        bake: float | None = None,
    ) -> Migration:
        """Begin to migrate to the storage called `name`, while the node serves.

        `settings` go over those of its section; `bake` is in seconds, `keyspace.bake_time` unless
        given. Raises `MigrationRunning`, `VolatileTarget`, `BadRequest` where it is in charge
        already, `SettingsError`, `PluginError`, and then nothing has been begun.
        """
        if self._tasks is None:
            raise Stopping("The node does not run.")
        if self._beginning.locked() or (self._migration is not None and not self._settled.is_set()):
            raise MigrationRunning(
                "A migration is under way: nkv storage status shows it, and nkv storage commit or"
                " rollback ends it."
            )
        async with self._beginning:
            before = {info.name for info in self._host.plugins() if info.state == "active"}
            place = Place(name, None, dict(settings or {}))
            if (name, place.settings) == (self.name, self._in_charge()[0].settings):
                raise BadRequest(f"{name} is in charge already.")
            storage, plugin = await self._find(place)
            place = Place(name, self._spec_of(plugin, name), place.settings)
            new = plugin not in before
            try:
                if self.keyspace.storage.durable and not storage.durable:
                    if not allow_volatile:
                        raise VolatileTarget(
                            f"{name} keeps nothing beyond the node's end, unlike {self.name}:"
                            " give --allow-volatile if that is meant."
                        )
                    log.warning("what is written from now on does not outlive the node")
            except NkvError:
                if new:
                    await self._host.unload(plugin)
                raise
            if plugin != self._in_charge()[1]:
                self._host.hold(plugin, _MIGRATING)
            migration = Migration(
                self.keyspace,
                storage,
                source=self._in_charge()[0],
                target=place,
                journal=self._journal,
                bake=self._settings.keyspace.bake_time if bake is None else bake,
            )
            self._place, self._plugin = self._in_charge()
            self._migration, self._settled = migration, anyio.Event()
            self._target_plugin = plugin
            self._tasks.start_soon(partial(self._run, migration, new=new))
        return migration

    async def _run(self, migration: Migration, *, new: bool) -> None:
        """See a migration to its end. Of the two plugins only that in charge is held then."""
        settled = self._settled
        await migration.run()
        (_, used), target = self._in_charge(), self._target_plugin
        idle = target if used == self._plugin else self._plugin
        self._host.hold(used, IN_CHARGE)
        if idle != used:
            self._host.release(idle)
            if new and idle == target:
                with anyio.CancelScope(shield=True):
                    await self._unload(target)
        settled.set()

    async def _unload(self, plugin: str) -> None:
        try:
            await self._host.unload(plugin)
        except NkvError as error:
            log.warning("%s was loaded for the migration and stays: %s", plugin, error)

    async def migrate(
        self,
        name: str,
        settings: Mapping[str, Any] | None = None,
        *,
        allow_volatile: bool = False,
        bake: float | None = None,
    ) -> None:
        """As `begin`, and wait until the other storage is in charge. Raises `MigrationFailed` too,
        or what else it failed with; then the former one is.
        """
        migration = await self.begin(name, settings, allow_volatile=allow_volatile, bake=bake)
        await migration.switched.wait()
        if migration.progress.phase in ("failed", "rolled_back"):
            raise migration.progress.error or MigrationFailed("The migration was called off.")

    async def rollback(self) -> None:
        """Go back to the storage of before, or call the migration off. Raises `NoMigration` once it
        is over, and `MigrationFailed`.
        """
        await self._current().decide("rollback")
        await self._settled.wait()

    async def commit(self) -> None:
        """End the bake time: there is no way back any more. Raises as `rollback`."""
        await self._current().decide("commit")
        await self._settled.wait()

    def _current(self) -> Migration:
        if self._migration is None:
            raise NoMigration("No migration is under way.")
        return self._migration
