"""Reload: what a change of settings asks of a node that serves.

Plugins whose settings have changed are replaced, those that are new are loaded, those that are no
longer wanted are unloaded. What only a new start can change is named, and left as it is.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from nkv_core.config import CORE_SECTIONS, Settings
from nkv_core.plugin_host import PluginInfo
from nkv_core.specs import absolute_spec

#: Of the section `plugins`: what says which are loaded, and what is looked at only at the start.
_LOADED: Final = ("load", "disable")
_AT_START: Final = ("directory", "watch")


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a reload does, or would do."""

    load: tuple[str, ...] = ()  #: SPECs
    replace: tuple[str, ...] = ()  #: names
    unload: tuple[str, ...] = ()  #: names
    settings: tuple[str, ...] = ()  #: of the node's own, that hold from then on
    restart: tuple[str, ...] = ()  #: that are changed by a new start only

    def __bool__(self) -> bool:
        return any((self.load, self.replace, self.unload, self.settings, self.restart))


def plan(
    old: Settings,
    new: Settings,
    infos: Sequence[PluginInfo],
    defaults: Sequence[str],
    storage: str,
) -> Plan:
    """What has to be done to go from the settings that hold to others.

    `infos` are the plugins that are loaded, `defaults` those that are without being asked for, and
    `storage` is the one in charge.
    """
    loaded = {info.name: info for info in infos if info.state in ("active", "failed")}
    by_spec = {info.spec: info.name for info in loaded.values()}
    gone = [spec for spec in old.plugins.load if spec not in new.plugins.load]
    load = [
        spec
        for spec in new.plugins.load
        if spec not in old.plugins.load
        and absolute_spec(spec) not in by_spec
        and spec not in loaded
    ]
    unload = [by_spec[absolute_spec(spec)] for spec in gone if absolute_spec(spec) in by_spec]
    for name in defaults:
        before, after = name not in old.plugins.disable, name not in new.plugins.disable
        if before and not after and name in loaded:
            unload.append(name)
        elif after and not before and name not in loaded:
            load.append(name)
    restart = list(_changed_in_core(old, new))
    replace = []
    for info in loaded.values():
        sections = {info.section}
        if "storage" in info.kinds:
            sections.add(f"storage.{storage}")
        changed = sorted(s for s in sections if dict(old.section(s)) != dict(new.section(s)))
        if not changed or info.name in unload:
            continue
        if info.in_use:
            restart.extend(changed)
        else:
            replace.append(info.name)
    held = [name for name in unload if loaded[name].in_use]
    restart.extend(f"plugins.load ({name})" for name in held)
    return Plan(
        load=tuple(dict.fromkeys(load)),
        replace=tuple(replace),
        unload=tuple(dict.fromkeys(name for name in unload if name not in held)),
        settings=tuple(
            f"plugins.{name}"
            for name in _differing(old.plugins, new.plugins)
            if name not in (*_LOADED, *_AT_START)
        ),
        restart=tuple(restart),
    )


def in_force(old: Settings, new: Settings) -> Settings:
    """The settings that hold after a reload: the new ones, as far as they need no new start."""
    kept = {name: getattr(old, name) for name in CORE_SECTIONS if name != "plugins"}
    at_start = {name: getattr(old.plugins, name) for name in _AT_START}
    plugins = msgspec.structs.replace(new.plugins, **at_start)
    return msgspec.structs.replace(new, **kept, plugins=plugins, storage=old.storage)


def _changed_in_core(old: Settings, new: Settings) -> Iterator[str]:
    for section in CORE_SECTIONS:
        for name in _differing(getattr(old, section), getattr(new, section)):
            if section != "plugins" or name in _AT_START:
                yield f"{section}.{name}"
    if old.storage != new.storage:
        yield "storage.name"


def _differing(old: msgspec.Struct, new: msgspec.Struct) -> list[str]:
    fields = type(old).__struct_fields__
    return [name for name in fields if getattr(old, name) != getattr(new, name)]
