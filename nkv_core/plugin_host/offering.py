"""Offering: what loaded plugins offer under a name, asked for by the node or by another plugin."""

from collections.abc import Iterable, Mapping
from typing import Any

from nkv_core.config import section_of
from nkv_core.contracts.storage import Storage
from nkv_core.errors import PluginInvalid, PluginNotFound, SettingsError
from nkv_core.plugin_host.exchange import Given, Sections, Slot
from nkv_core.plugin_host.lifecycle import Generation
from nkv_core.plugin_host.offers import merged


def offered(slots: Iterable[Slot], hook: str, name: str, asking: str) -> Any:
    """What other plugins than `asking` offer under a name.

    Raises `PluginNotFound`, and `PluginInvalid` where two do.
    """
    offers = {
        slot.generation.name: offer
        for slot in slots
        if slot.generation.name != asking and slot.generation.state == "active"
        if (offer := slot.generation.offer(hook, name)) is not None
    }
    return _only(f"{hook.removeprefix('nkv_')} called {name}", offers)


def storage_offered(
    slots: Iterable[Slot], sections: Sections, name: str, given: Given = None
) -> tuple[Storage, str]:
    """The storage of this name, not yet open, and the name of the plugin that offers it. `given`
    are settings over those of its section.

    Raises `PluginNotFound`, and `PluginInvalid` where two offer it.
    """
    offers: dict[str, Storage] = {}
    asked = []
    for slot in slots:
        generation = slot.generation
        hook = generation.hooks.one("nkv_storage")
        if hook is None or generation.state != "active":
            continue
        asked.append(generation.name)
        settings, error = _settings_for(generation, sections, name, given)
        storage = generation.ask(hook, name=name, settings=settings)
        if storage is not None:
            if error is not None:
                raise error
            offers[generation.name] = storage
    if not offers:
        raise PluginNotFound(
            f"No loaded plugin offers a storage called {name}."
            f" Asked were: {', '.join(asked) or 'none'}."
        )
    _only(f"storage {name}", offers)
    ((plugin, storage),) = offers.items()
    return storage, plugin


def _settings_for(
    generation: Generation, sections: Sections, name: str, over: Given
) -> tuple[Any, SettingsError | None]:
    """The section `storage.NAME` for a plugin that may or may not know that name.

    A plugin that is called as its storage has that section anyway. One with more in it than a
    storage has its own, which it gets where the other is empty.
    """
    section = f"storage.{name}"
    given = sections(section)
    if over:
        given = merged(given, over)
    elif section_of(generation.name).startswith("storage.") or not given:
        return generation.settings, None
    try:
        return generation.convert(section, given), None
    except SettingsError as error:
        return generation.settings, error


def _only(what: str, offers: Mapping[str, Any]) -> Any:
    """The one among the offers of plugins. Raises `PluginNotFound` or `PluginInvalid`."""
    if not offers:
        raise PluginNotFound(f"No loaded plugin offers a {what}.")
    if len(offers) > 1:
        raise PluginInvalid(
            f"The {what} is offered twice, by {' and by '.join(offers)}: unload one."
        )
    (offer,) = offers.values()
    return offer
