"""Info: a plugin as people and programs are shown it."""

import msgspec

from nkv_core.bus import Conduct
from nkv_core.config import section_of
from nkv_core.plugin_host.lifecycle import Generation, State


class PluginInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A plugin, as `nkv plugins list` shows it. One that is replaced shows twice for a while."""

    name: str
    spec: str
    state: State
    generation: int
    sha256: str
    kinds: tuple[str, ...]  #: `storage`, `transport`, `mesh`, ...; see `registry.KINDS`
    section: str  #: of its settings
    loaded_at: int  #: milliseconds since 1970
    error: str | None = None  #: why it failed, or why its last replacement did
    quarantined: tuple[str, ...] = ()  #: listeners that are called no more
    held_by: tuple[str, ...] = ()  #: what holds a leaked one, as far as it could be found
    in_use: str | None = None  #: why it cannot be unloaded


def info_of(
    generation: Generation,
    *,
    loaded_at: int,
    conducts: list[Conduct],
    failure: str | None = None,
    held_by: tuple[str, ...] = (),
    in_use: str | None = None,
) -> PluginInfo:
    """What there is to show of a generation. `conducts`: what the bus knows of all listeners."""
    quarantined = tuple(
        f"{conduct.event}: {conduct.listener}"
        for conduct in conducts
        if conduct.owner is generation.owner and conduct.quarantined
    )
    return PluginInfo(
        name=generation.name,
        spec=generation.candidate.spec,
        state=generation.state,
        generation=generation.number,
        sha256=generation.sha256,
        kinds=generation.kinds,
        section=section_of(generation.name),
        loaded_at=loaded_at,
        error=str(generation.error) if generation.error is not None else failure,
        quarantined=quarantined,
        held_by=held_by,
        in_use=in_use,
    )
