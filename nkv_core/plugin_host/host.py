"""Plugin host: loads, replaces and unloads the plugins of a node while it serves.

One of these at a time, behind one lock; draining goes on outside of it. Until the new generation is
ready nothing is changed, and then all is in one synchronous step.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    StaleGeneration,
    StartError,
)
from nkv_core.events import PluginFailed, PluginUnloaded
from nkv_core.plugin_host import discovery
from nkv_core.plugin_host.audit import Attempt
from nkv_core.plugin_host.broker import Broker
from nkv_core.plugin_host.context import Services, StatefulKeyspace
from nkv_core.plugin_host.departures import Departure
from nkv_core.plugin_host.exchange import Arrival, Changes, Exchange, Given, Sections, Slot
from nkv_core.plugin_host.info import PluginInfo, info_of
from nkv_core.plugin_host.leaks import Collector
from nkv_core.plugin_host.lifecycle import Generation
from nkv_core.plugin_host.offering import offered, storage_offered
from nkv_core.plugin_host.offers import merged

log = logging.getLogger("nkv.plugins")


class PluginHost:
    """The plugins of one node. All of it is used on the event loop that `run` runs on."""

    def __init__(
        self,
        *,
        settings: PluginSettings,
        sections: Sections,
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

    async def load(
        self,
        spec: str,
        settings: Given = None,
        *,
        sha256: str | None = None,
        attempt: Attempt | None = None,
    ) -> PluginInfo:
        """Load a plugin. `settings` go over those of its section, for its replacements too.

        `sha256` is what its source must have. What comes to light is noted in `attempt`.

        Raises `PluginError`, `SettingsError` or `StartError`, and then has changed nothing.
        """
        async with self._lock:
            arrival = await self._arrival(spec, settings, attempt)
            arrival.generation.pin = sha256
            await self._exchange([arrival])
            return self._info(arrival.slot)

    async def replace(
        self,
        name: str,
        spec: str | None = None,
        settings: Given = None,
        *,
        sha256: str | None = None,
        if_generation: int | None = None,
        attempt: Attempt | None = None,
    ) -> PluginInfo:
        """Put a new generation in the place of a plugin, from its old SPEC or another one.

        The source is read anew. Returns once the new generation serves; the old one drains. Raises
        as `load`, `PluginNotFound`, and `StaleGeneration` where it is not `if_generation` that is
        loaded; then the old one serves on.
        """
        async with self._lock:
            self._slot(name, if_generation)
            arrival = await self._successor(name, spec, settings, attempt)
            arrival.generation.pin = sha256
            await self._exchange([arrival])
            return self._info(arrival.slot)

    async def unload(
        self, name: str, *, if_generation: int | None = None, attempt: Attempt | None = None
    ) -> None:
        """Take a plugin out; returns once it is closed, or found to have leaked.

        Raises `PluginNotFound`, `StaleGeneration`, and `PluginInUse` while the node depends on it.
        """
        async with self._lock:
            slot = self._slot(name, if_generation)
            self._refuse_held(name)
            if attempt is not None:
                attempt.generation = slot.generation.number
                attempt.sha256 = slot.generation.sha256
            departure = self._take_out(slot)
        await departure.over.wait()

    async def change(self, changes: Changes) -> list[PluginInfo]:
        """Load, replace and unload several plugins and change the settings of all, in one step.

        Raises as `load`, `replace` and `unload`, and then has changed nothing. What is unloaded
        drains when this returns.
        """
        async with self._lock:
            before = self._settings, self._sections
            self._settings, self._sections = changes.settings, changes.sections
            try:
                leaving = [self._slot(name) for name in changes.unload]
                for name in (*changes.unload, *changes.replace):
                    self._refuse_held(name)
                arrivals = [await self._successor(name) for name in changes.replace]
                arrivals += [await self._arrival(spec) for spec in changes.load]
                await self._exchange(arrivals, leaving)
            except BaseException:
                self._settings, self._sections = before
                raise
            return [self._info(arrival.slot) for arrival in arrivals]

    def check(self, names: Sequence[str], sections: Sections) -> None:
        """Raise `SettingsError` or `PluginError` where plugins that are loaded could not have the
        settings that `sections` has.
        """
        for name in names:
            slot = self._slot(name)
            slot.generation.convert(section_of(name), _given(name, sections, slot.given))

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

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders that a plugin given as a path must lie in, if any are set."""
        return self._settings.folders

    async def section(self, spec: str) -> str:
        """The section of the plugin that a SPEC stands for. Raises as `load` if there is none."""
        return section_of((await self._find(spec)).name)

    def available(self) -> list[str]:
        """The names of the plugins that are installed, loaded or not."""
        return discovery.available()

    def storage(self, name: str, given: Given = None) -> tuple[Storage, str]:
        """The storage of this name, not yet open, and the name of the plugin that offers it. What
        is `given` goes over the settings of its section.

        Raises `PluginNotFound`, and `PluginInvalid` where two offer it.
        """
        return storage_offered(self._slots.values(), self._sections, name, given)

    @property
    def mesh(self) -> Mesh | None:
        """The mesh around the node's own keyspace, if there is one."""
        return self._services.mesh

    def _offered(self, hook: str, name: str, asking: str) -> Any:
        return offered(self._slots.values(), hook, name, asking)

    # --- one generation in, one out ---------------------------------------------------------------

    async def _find(self, spec: str) -> discovery.Candidate:
        """Find a plugin, in a thread: all that is installed is looked at."""
        with anyio.move_on_after(self._settings.setup_deadline):
            return await to_thread.run_sync(discovery.find, spec, abandon_on_cancel=True)
        raise PluginSetupFailed(
            f"Looking for {spec} took longer than {self._settings.setup_deadline:g} s."
        )

    async def _arrival(
        self, spec: str, settings: Given = None, attempt: Attempt | None = None
    ) -> Arrival:
        """A plugin that is to be loaded. Raises `PluginExists`, and as `discovery.find`."""
        candidate = await self._find(spec)
        if attempt is not None:
            attempt.plugin = candidate.name
        if candidate.name in self._slots:
            raise PluginExists(
                f"{candidate.name} is loaded: nkv plugins replace {candidate.name} {spec}"
            )
        generation = self._generation(candidate)
        self._orders += 1
        slot = Slot(generation, self._orders, settings)
        return Arrival(slot, generation, settings, attempt)

    async def _successor(
        self,
        name: str,
        spec: str | None = None,
        settings: Given = None,
        attempt: Attempt | None = None,
    ) -> Arrival:
        """A generation that is to replace the one that is loaded."""
        slot = self._slot(name)
        self._refuse_held(name)
        candidate = await self._find(spec or slot.generation.candidate.spec)
        if candidate.name != name:
            raise PluginInvalid(
                f"{candidate.spec} is the plugin {candidate.name}; it cannot replace {name}."
            )
        given = slot.given if settings is None else settings
        return Arrival(slot, self._generation(candidate, slot.generation.undone), given, attempt)

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

    async def _exchange(self, arrivals: Sequence[Arrival], leaving: Sequence[Slot] = ()) -> None:
        """Put all that arrives in charge and take out what leaves, or change nothing."""
        exchange = Exchange(self._dispatcher, self._slots, arrivals, leaving)
        try:
            await exchange.run(prepare=self._prepare, retire=self._retire)
        except Exception as error:
            for arrival in exchange.culprits:
                self._announce_failure(arrival.generation, error)
            for waited in exchange.failed_meanwhile():
                self._failed(waited)
            raise

    async def _prepare(self, generation: Generation, settings: Given) -> None:
        """Bring a generation to where it could serve."""
        if self._tasks is None or self._stopping.is_set():
            raise StartError("The plugin host does not run, or is being stopped.")
        await generation.load(_given(generation.name, self._sections, settings))
        try:
            # Two generations at most: the one that is still draining ends now.
            await self._hurry(generation.name)
        except BaseException:
            generation.undo()
            raise
        await generation.set_up(self._tasks)

    def _take_out(self, slot: Slot) -> Departure:
        del self._slots[slot.generation.name]
        if slot.departure is None:
            self._dispatcher.switch(leave=slot.generation.owner)
        return slot.departure or self._retire(slot.generation, slot.loaded_at)

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
        slot = self._slots.get(generation.name)
        if slot is None or slot.generation is not generation:
            return  # it waits for whether its successor works, and is seen to then
        if generation.name not in self._held:
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

    def _slot(self, name: str, if_generation: int | None = None) -> Slot:
        if name not in self._slots:
            loaded = ", ".join(self._slots) or "none"
            raise PluginNotFound(f"The plugin {name} is not loaded. Loaded are: {loaded}.")
        slot = self._slots[name]
        number = slot.generation.number
        if if_generation not in (None, number):
            raise StaleGeneration(
                f"{name} is of generation {number}, not {if_generation}: somebody has replaced it."
            )
        return slot

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


def _given(name: str, sections: Sections, over: Given) -> Mapping[str, Any]:
    """The settings of a plugin: those of its section, and what came with it over them."""
    given = sections(section_of(name))
    return merged(given, over) if over else given


async def _all_over(departures: list[Departure]) -> None:
    for departure in list(departures):
        await departure.over.wait()
