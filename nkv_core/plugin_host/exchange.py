"""Exchange: generations of plugins that come, with those that they replace, and plugins that go.

It is one step for all of them. Before it, everything that comes is set up; if one of them cannot
be, all are discarded, and nothing has changed. After it, what has a probe is asked whether it works
now that it is in charge; the old generations are kept whole until then, and are put back in charge,
in one step again, if it does not.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec
from anyio import CancelScope

from nkv_core.contracts.settings import PluginSettings
from nkv_core.dispatch import Dispatcher, Registration
from nkv_core.events import PluginLoaded
from nkv_core.plugin_host.audit import Attempt
from nkv_core.plugin_host.departures import Departure
from nkv_core.plugin_host.lifecycle import Generation
from nkv_core.records import wall_clock

Sections = Callable[[str], Mapping[str, Any]]
Given = Mapping[str, Any] | None
Prepare = Callable[[Generation, Given], Awaitable[None]]


class Retire(Protocol):
    """Has a generation go that is out of charge."""

    def __call__(self, generation: Generation, loaded_at: int, *, goodbye: bool) -> Departure:
        """`goodbye`: nobody takes its place."""


log = logging.getLogger("nkv.plugins")


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """Several changes that are to be made together, and the settings from then on."""

    settings: PluginSettings
    sections: Sections
    load: tuple[str, ...] = ()  #: SPECs
    replace: tuple[str, ...] = ()  #: names
    unload: tuple[str, ...] = ()  #: names


class Slot:
    """One loaded plugin: what stays the same while its generations come and go."""

    def __init__(self, generation: Generation, order: int, given: Given) -> None:
        self.generation = generation
        self.order: Final = order  #: the place of its listeners among all
        self.given = given  #: settings that came with it, over those of its section
        self.loaded_at = wall_clock()
        self.failure: str | None = None
        self.departure: Departure | None = None  #: where its generation has failed by itself


class Arrival:
    """A new generation for a slot, and the settings over those of its section."""

    def __init__(
        self, slot: Slot, generation: Generation, given: Given, attempt: Attempt | None = None
    ) -> None:
        """`attempt` is told what comes to light."""
        self.slot: Final = slot
        self.generation: Final = generation
        self.given: Final = given
        self.before: Final = slot.generation
        self.since: Final = slot.loaded_at
        self.is_new: Final = slot.generation is generation  #: it replaces none
        self._attempt: Final = attempt

    @property
    def old(self) -> Generation | None:
        """The generation that it replaces, unless that has gone already."""
        return None if self.is_new or self.slot.departure is not None else self.before

    def note(self) -> None:
        """Note in the attempt which generation of what source it is."""
        if self._attempt is not None:
            self._attempt.generation = self.generation.number
            self._attempt.sha256 = self.generation.sha256 or None


class Exchange:
    """One exchange. `slots` are those of all loaded plugins, by name: it keeps them right."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        slots: dict[str, Slot],
        arrivals: Sequence[Arrival],
        leaving: Sequence[Slot] = (),
    ) -> None:
        self._dispatcher = dispatcher
        self._slots = slots
        self._arrivals = arrivals
        self._leaving = leaving
        self._prepared: list[Generation] = []
        self._left: list[Registration] = []
        #: Whose fault it is that `run` raised: more than one where it cannot be told.
        self.culprits: Sequence[Arrival] = ()

    async def run(self, *, prepare: Prepare, retire: Retire) -> None:
        """Do it. Where it raises, all is as it was before.

        `prepare` brings a generation to where it could serve; `retire` has one go that is out of
        charge, and is given since when it was loaded.
        """
        try:
            await self._prepare(prepare)
            await self._switch()
            await self._probe(retire)
        except BaseException as error:
            for arrival in self._arrivals:
                if not arrival.is_new:
                    arrival.before.show_lines()
                    if arrival in self.culprits and isinstance(error, Exception):
                        arrival.slot.failure = f"its replacement failed: {error}"
            raise
        finally:
            for arrival in self._arrivals:
                arrival.note()
        for arrival in self._arrivals:
            self._settle(arrival, retire)
        for slot in self._leaving:
            if slot.departure is None:
                retire(slot.generation, slot.loaded_at, goodbye=True)

    def failed_meanwhile(self) -> list[Generation]:
        """Those that were put back, and had failed by themselves by then."""
        return [a.old for a in self._arrivals if a.old is not None and a.old.error is not None]

    async def _prepare(self, prepare: Prepare) -> None:
        try:
            for arrival in self._arrivals:
                self.culprits = (arrival,)
                await prepare(arrival.generation, arrival.given)
                self._prepared.append(arrival.generation)
        except BaseException:
            await self._discard()
            raise
        self.culprits = self._arrivals

    async def _switch(self) -> None:
        """Put them in charge, in one step that gives way to no other task, unless it raises."""
        leave = [arrival.before.owner for arrival in self._arrivals if not arrival.is_new]
        leave += [slot.generation.owner for slot in self._leaving]
        enter = [each.generation.registration(each.slot.order) for each in self._arrivals]
        try:
            self._left = self._dispatcher.exchange(leave=leave, enter=enter)
        except Exception:
            await self._discard()
            raise
        for arrival in self._arrivals:
            if arrival.old is not None:
                arrival.old.pause()
            arrival.slot.generation = arrival.generation
            self._slots[arrival.generation.name] = arrival.slot
            arrival.generation.activate()
        for slot in self._leaving:
            del self._slots[slot.generation.name]

    async def _probe(self, retire: Retire) -> None:
        """Ask each that has a probe whether it works; put back what was before if one does not."""
        try:
            for arrival in self._arrivals:
                self.culprits = (arrival,)
                await arrival.generation.probe()
        except BaseException:
            self._switch_back()
            for arrival in self._arrivals:  # they finish what they have begun
                retire(arrival.generation, arrival.since, goodbye=arrival.is_new)
            raise

    def _switch_back(self) -> None:
        leave = [arrival.generation.owner for arrival in self._arrivals]
        self._dispatcher.exchange(leave=leave, enter=self._left)
        for arrival in self._arrivals:
            arrival.generation.pause()
            arrival.slot.generation = arrival.before
            if arrival.is_new:
                del self._slots[arrival.generation.name]
            elif arrival.old is not None:
                arrival.old.resume()
        self._slots.update((slot.generation.name, slot) for slot in self._leaving)

    def _settle(self, arrival: Arrival, retire: Retire) -> None:
        """Note that a generation serves, and have the one before it go."""
        slot, generation, old = arrival.slot, arrival.generation, arrival.old
        slot.given, slot.loaded_at, slot.failure = arrival.given, wall_clock(), None
        slot.departure = None
        if old is not None:
            retire(old, arrival.since, goodbye=False)
        log.info("%s is loaded, generation %d.", generation.name, generation.number)
        self._dispatcher.emit(PluginLoaded(generation.name, generation.number))

    async def _discard(self) -> None:
        with CancelScope(shield=True):
            for generation in self._prepared:
                await generation.discard()
