"""Plugin host: loads, replaces and unloads the plugins of a node while it serves.

One of these at a time, behind one lock; draining goes on outside of it. Until the new generation is
ready nothing is changed, and then all is in one synchronous step.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import anyio
from anyio import CancelScope, Event, to_thread
from anyio.abc import TaskGroup, TaskStatus

from nkv_core.config import section_of
from nkv_core.contracts.context import NodeView
from nkv_core.contracts.mesh import Mesh
from nkv_core.contracts.settings import PluginSettings
from nkv_core.contracts.storage import Storage
from nkv_core.contracts.watch import Hub
from nkv_core.dispatch import Dispatcher
from nkv_core.errors import (
    PluginExists,
    PluginInUse,
    PluginInvalid,
    PluginNotFound,
    PluginSetupFailed,
    SettingsError,
    StartError,
)
from nkv_core.events import PluginFailed, PluginLoaded, PluginUnloaded
from nkv_core.plugin_host import discovery
from nkv_core.plugin_host.broker import Broker
from nkv_core.plugin_host.context import Services, StatefulKeyspace
from nkv_core.plugin_host.departures import Departure
from nkv_core.plugin_host.info import PluginInfo, info_of
from nkv_core.plugin_host.leaks import Collector
from nkv_core.plugin_host.lifecycle import Generation
from nkv_core.plugin_host.offers import merged
from nkv_core.records import wall_clock

log = logging.getLogger("nkv.plugins")


class Slot:
    """One loaded plugin: what stays the same while its generations come and go."""

    def __init__(self, generation: Generation, order: int, given: Mapping[str, Any] | None) -> None:
        self.generation = generation
        self.order: Final = order  #: the place of its listeners among all
        self.given = given  #: settings that came with it, over those of its section
        self.loaded_at = wall_clock()
        self.failure: str | None = None
        self.departure: Departure | None = None  #: where its generation has failed by itself


class PluginHost:
    """The plugins of one node. All of it is used on the event loop that `run` runs on."""

    def __init__(
        self,
        *,
        settings: PluginSettings,
        sections: Callable[[str], Mapping[str, Any]],
        dispatcher: Dispatcher,
        data_dir: Path,
        node: NodeView,
        insecure: bool,
        authenticated: bool,
    ) -> None:
        """`sections` gives the settings of a section; `authenticated` says that tokens are used."""
        self._settings = settings
        self._sections = sections
        self._dispatcher = dispatcher
        self._services = Services(
            dispatcher=dispatcher,
            broker=Broker(insecure=insecure, authenticated=authenticated),
            data_dir=data_dir,
            node=node,
            offered=self._offered,
        )
        self._lock = anyio.Lock()
        self._tasks: TaskGroup | None = None
        self._slots: dict[str, Slot] = {}
        self._departures: list[Departure] = []
        self._held: dict[str, str] = {}
        self._numbers: dict[str, int] = {}
        self._orders = 0
        self._collector = Collector()
        self._stopping = Event()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Host the plugins until cancelled; then unload them all, each within its deadlines."""
        async with anyio.create_task_group() as self._tasks:
            try:
                task_status.started()
                await anyio.sleep_forever()
            finally:
                with CancelScope(shield=True):
                    await self.unload_all(held=True)
                self._tasks.cancel_scope.cancel()

    def attach(self, keyspace: StatefulKeyspace, hub: Hub) -> None:
        """Give plugins the keyspace, now that it is open."""
        self._services.attach(keyspace, hub)
        for slot in self._slots.values():
            slot.generation.follow_changes()

    # --- load, replace, unload --------------------------------------------------------------------

    async def load(self, spec: str, settings: Mapping[str, Any] | None = None) -> PluginInfo:
        """Load a plugin. `settings` go over those of its section, for its replacements too.

        Raises `PluginError`, `SettingsError` or `StartError`, and then has changed nothing.
        """
        async with self._lock:
            candidate = await self._find(spec)
            if candidate.name in self._slots:
                raise PluginExists(
                    f"{candidate.name} is loaded: nkv plugins replace {candidate.name} {spec}"
                )
            generation = self._generation(candidate)
            await self._prepare(generation, settings)
            self._orders += 1
            slot = Slot(generation, self._orders, settings)
            await self._take_over(slot, generation)
            self._slots[candidate.name] = slot
            return self._info(slot)

    async def replace(
        self, name: str, spec: str | None = None, settings: Mapping[str, Any] | None = None
    ) -> PluginInfo:
        """Put a new generation in the place of a plugin, from its old SPEC or another one.

        The source is read anew. Returns once the new generation serves; the old one drains. Raises
        as `load`, and `PluginNotFound`; then the old one serves on.
        """
        async with self._lock:
            slot = self._slot(name)
            self._refuse_held(name)
            candidate = await self._find(spec or slot.generation.candidate.spec)
            if candidate.name != name:
                raise PluginInvalid(
                    f"{candidate.spec} is the plugin {candidate.name}; it cannot replace {name}."
                )
            old, since = slot.generation, slot.loaded_at
            generation = self._generation(candidate, old.undone)
            given = slot.given if settings is None else settings
            try:
                await self._prepare(generation, given)
                await self._take_over(slot, generation, leave=old)
            except Exception as error:
                slot.failure = f"its replacement failed: {error}"
                old.show_lines()
                raise
            slot.given, slot.loaded_at, slot.failure = given, wall_clock(), None
            if slot.departure is None:  # else it has gone already
                self._retire(old, since, goodbye=False)
            slot.departure = None
            return self._info(slot)

    async def unload(self, name: str) -> None:
        """Take a plugin out; returns once it is closed, or found to have leaked.

        Raises `PluginNotFound`, and `PluginInUse` while the node depends on it.
        """
        async with self._lock:
            slot = self._slot(name)
            self._refuse_held(name)
            departure = self._take_out(slot)
        await departure.over.wait()

    async def unload_all(self, *, held: bool = False) -> None:
        """Unload everything because the node stops: transports first, then the latest first, what
        is held only where `held`. Nothing can be loaded any more. Raises nothing but cancellation.
        """
        self._stopping.set()
        async with self._lock:
            slots = [s for name, s in self._slots.items() if held or name not in self._held]
            slots.sort(key=lambda slot: (slot.generation.serving.transport is None, -slot.order))
            transports = [slot for slot in slots if slot.generation.serving.transport is not None]
            await _all_over([self._take_out(slot) for slot in transports])
            for slot in slots[len(transports) :]:
                await _all_over([self._take_out(slot)])
            await _all_over(self._departures)

    def hold(self, plugin_name: str, reason: str) -> None:
        """Refuse to unload or replace a plugin. `reason` says what to do instead."""
        self._held[plugin_name] = reason

    def release(self, plugin_name: str) -> None:
        """Take a `hold` back."""
        self._held.pop(plugin_name, None)

    # --- what there is ----------------------------------------------------------------------------

    def plugins(self) -> list[PluginInfo]:
        """All plugins in load order, with the generations that are still leaving."""
        self._departures = [one for one in self._departures if not one.is_past()]
        infos = [self._info(slot) for slot in self._slots.values()]
        shown = [slot.generation for slot in self._slots.values()]
        infos += [
            info_of(
                departure.generation,
                loaded_at=departure.loaded_at,
                conducts=[],
                held_by=departure.held_by,
            )
            for departure in self._departures
            if departure.generation not in shown
        ]
        return infos

    def available(self) -> list[str]:
        """The names of the plugins that are installed, loaded or not."""
        return discovery.available()

    def storage(self, name: str) -> tuple[Storage, str]:
        """The storage of this name, not yet open, and the name of the plugin that offers it.

        Raises `PluginNotFound`, and `PluginInvalid` where two offer it.
        """
        offers: dict[str, Storage] = {}
        asked = []
        for plugin, slot in self._slots.items():
            hook = slot.generation.hooks.one("nkv_storage")
            if hook is None or slot.generation.state != "active":
                continue
            asked.append(plugin)
            settings, error = self._storage_settings(slot.generation, name)
            offered = slot.generation.ask(hook, name=name, settings=settings)
            if offered is not None:
                if error is not None:
                    raise error
                offers[plugin] = offered
        if not offers:
            raise PluginNotFound(
                f"No loaded plugin offers a storage called {name}."
                f" Asked were: {', '.join(asked) or 'none'}."
            )
        _only_offer(f"storage {name}", offers)
        ((plugin, storage),) = offers.items()
        return storage, plugin

    def _storage_settings(
        self, generation: Generation, name: str
    ) -> tuple[Any, SettingsError | None]:
        """The section `storage.NAME` for a plugin that may or may not know that name.

        A plugin that is called as its storage has that section anyway. One with more in it than a
        storage has its own, which it gets where the other is empty.
        """
        section = f"storage.{name}"
        given = self._sections(section)
        if section_of(generation.name).startswith("storage.") or not given:
            return generation.settings, None
        try:
            return generation.convert(section, given), None
        except SettingsError as error:
            return generation.settings, error

    @property
    def mesh(self) -> Mesh | None:
        """The mesh around the node's own keyspace, if there is one."""
        return self._services.mesh

    def _offered(self, hook: str, name: str, asking: str) -> Any:
        """What other plugins than `asking` offer under a name.

        Raises `PluginNotFound`, and `PluginInvalid` where two do.
        """
        offers = {
            plugin: offer
            for plugin, slot in self._slots.items()
            if plugin != asking and slot.generation.state == "active"
            if (offer := slot.generation.offer(hook, name)) is not None
        }
        return _only_offer(f"{hook.removeprefix('nkv_')} called {name}", offers)

    # --- one generation in, one out ---------------------------------------------------------------

    async def _find(self, spec: str) -> discovery.Candidate:
        """Find a plugin, in a thread: all that is installed is looked at."""
        with anyio.move_on_after(self._settings.setup_deadline):
            return await to_thread.run_sync(discovery.find, spec, abandon_on_cancel=True)
        raise PluginSetupFailed(
            f"Looking for {spec} took longer than {self._settings.setup_deadline:g} s."
        )

    def _generation(
        self, candidate: discovery.Candidate, predecessor: Event | None = None
    ) -> Generation:
        number = self._numbers[candidate.name] = self._numbers.get(candidate.name, 0) + 1
        return Generation(
            candidate,
            number,
            settings=self._settings,
            services=self._services,
            features=self._features,
            failed=self._failed,
            predecessor=predecessor,
        )

    async def _prepare(self, generation: Generation, settings: Mapping[str, Any] | None) -> None:
        """Bring a generation to where it could serve."""
        if self._tasks is None or self._stopping.is_set():
            raise StartError("The plugin host does not run, or is being stopped.")
        try:
            given = self._sections(section_of(generation.name))
            await generation.load(merged(given, settings) if settings else given)
            try:
                # Two generations at most: the one that is still draining ends now.
                await self._hurry(generation.name)
            except BaseException:
                generation.undo()
                raise
            await generation.set_up(self._tasks)
        except Exception as error:
            self._announce_failure(generation, error)
            raise

    async def _take_over(
        self, slot: Slot, generation: Generation, leave: Generation | None = None
    ) -> None:
        """Put a prepared generation in charge, in one step that gives way to no other task."""
        try:
            self._dispatcher.switch(
                leave=None if leave is None else leave.owner,
                enter=generation.registration(slot.order),
            )
        except Exception as error:
            with CancelScope(shield=True):
                await generation.discard()
            self._announce_failure(generation, error)
            raise
        slot.generation = generation
        generation.activate()
        log.info("%s is loaded, generation %d.", generation.name, generation.number)
        self._dispatcher.emit(PluginLoaded(generation.name, generation.number))

    def _take_out(self, slot: Slot) -> Departure:
        generation = slot.generation
        del self._slots[generation.name]
        if slot.departure is not None:
            return slot.departure
        self._dispatcher.switch(leave=generation.owner)
        return self._retire(generation, slot.loaded_at)

    def _retire(self, generation: Generation, loaded_at: int, *, goodbye: bool = True) -> Departure:
        assert self._tasks is not None  # noqa: S101  # it was loaded, so that we run
        departure = Departure(generation, loaded_at, self._collector)
        self._departures = [one for one in self._departures if not one.is_past()]
        self._departures.append(departure)
        generation.step_down(goodbye=goodbye)
        self._tasks.start_soon(self._see_off, departure, name=f"nkv: retire {generation.owner!r}")
        return departure

    async def _see_off(self, departure: Departure) -> None:
        generation = departure.generation
        with CancelScope(shield=True):
            await generation.retire()
            self._dispatcher.emit(PluginUnloaded(generation.name, generation.number))
            await departure.look_back(self._stopping)

    async def _hurry(self, name: str) -> None:
        for departure in list(self._departures):
            generation = departure.generation
            if generation.name == name and not generation.owner.closed:
                generation.hurry()
                await generation.undone.wait()

    def _failed(self, generation: Generation) -> None:
        """An active generation has failed by itself: what stood on its scope goes with it.

        One that the node depends on stays nevertheless, as far as it is still there.
        """
        log.error("%r has failed: %s", generation.owner, generation.error)
        if generation.name not in self._held:
            slot = self._slots[generation.name]
            self._dispatcher.switch(leave=generation.owner)
            slot.departure = self._retire(generation, slot.loaded_at)
        if generation.error is not None:
            self._announce_failure(generation, generation.error)

    def _announce_failure(self, generation: Generation, error: Exception) -> None:
        self._dispatcher.emit(PluginFailed(generation.name, generation.number, error))

    def _features(self, listener: str) -> frozenset[str] | None:
        """What handlers for a listener may be besides plain ones; None where nobody serves it."""
        for slot in self._slots.values():
            serving = slot.generation.serving
            if serving.transport is not None and serving.listener == listener:
                return serving.transport.features
        return None

    def _slot(self, name: str) -> Slot:
        if name not in self._slots:
            loaded = ", ".join(self._slots) or "none"
            raise PluginNotFound(f"The plugin {name} is not loaded. Loaded are: {loaded}.")
        return self._slots[name]

    def _refuse_held(self, name: str) -> None:
        if name in self._held:
            raise PluginInUse(f"{name} is in use: {self._held[name]}")

    def _info(self, slot: Slot) -> PluginInfo:
        return info_of(
            slot.generation,
            loaded_at=slot.loaded_at,
            conducts=self._dispatcher.offences(),
            failure=slot.failure,
            in_use=self._held.get(slot.generation.name),
        )


def _only_offer(what: str, offers: Mapping[str, Any]) -> Any:
    """The one among the offers of plugins. Raises `PluginNotFound` or `PluginInvalid`."""
    if not offers:
        raise PluginNotFound(f"No loaded plugin offers a {what}.")
    if len(offers) > 1:
        raise PluginInvalid(
            f"The {what} is offered twice, by {' and by '.join(offers)}: unload one."
        )
    (offer,) = offers.values()
    return offer


async def _all_over(departures: list[Departure]) -> None:
    for departure in list(departures):
        await departure.over.wait()
