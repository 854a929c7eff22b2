"""Discovery: from a SPEC to the files of a plugin. Nothing of the plugin is executed here.

A SPEC is the name of an entry point of the group `nkv.plugins`, an importable module, or a path to
a file or a package's folder. What has a separator in it, or `.py` at its end, is a
path.
"""

import importlib
import importlib.metadata
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from pathlib import Path
from typing import Final

import msgspec

from nkv_core.errors import PluginInvalid, PluginNotFound
from nkv_core.specs import absolute_spec, is_path

GROUP: Final = "nkv.plugins"
RESERVED: Final = frozenset({"nkv", "nkv_core"})

log = logging.getLogger("nkv.plugins")


class Candidate(msgspec.Struct, frozen=True):
    """A plugin that was found. `path` is its file, or the `__init__.py` of its package."""

    name: str
    spec: str
    path: Path
    is_package: bool
    installed: bool  #: found by the import system, not by a path
    distribution: str | None = None  #: where an entry point led to it


class EntryPoint(msgspec.Struct, frozen=True):
    """One entry point of our group, with the distribution that declares it."""

    name: str
    module: str
    distribution: str
    editable: bool


def available() -> list[str]:
    """The names of all entry points, whether they can be loaded or not."""
    return sorted({entry.name for entry in entry_points()})


def entry_points() -> Iterator[EntryPoint]:
    """All entry points of our group. A distribution whose metadata is damaged is passed over."""
    seen = set()
    for distribution in importlib.metadata.distributions():
        try:
            name = distribution.metadata["Name"]
            normal = re.sub(r"[-_.]+", "-", name).lower()
            if normal in seen:
                continue  # hidden behind one that comes earlier on the path
            seen.add(normal)
            ours = [entry for entry in distribution.entry_points if entry.group == GROUP]
            editable = bool(ours) and _is_editable(distribution)
        except Exception as error:  # noqa: BLE001  # a stranger's broken metadata stops nobody else
            log.warning("An installed distribution has unreadable metadata: %s", error)
            continue
        for entry in ours:
            yield EntryPoint(entry.name, entry.value, name, editable)


def find(spec: str) -> Candidate:
    """Find the plugin that a SPEC stands for.

    Raises `PluginNotFound`, naming what there is, and `PluginInvalid` where it was found but cannot
    be one.
    """
    if not spec:
        raise PluginNotFound("The plugin's SPEC is empty.")
    if is_path(spec):
        return _from_path(spec)
    importlib.invalidate_caches()  # something may have been installed since
    entries = list(entry_points())
    found = {entry.module: entry for entry in entries if entry.name == spec}
    if len(found) > 1:
        owners = " and ".join(f"{e.distribution} ({e.module})" for e in found.values())
        raise PluginInvalid(f"The entry point {spec} is declared twice, by {owners}.")
    for entry in found.values():
        return _from_entry_point(spec, entry)
    origin = _locate(spec)
    if origin is None:
        raise PluginNotFound(_not_found(spec, entries))
    return _from_module(spec, spec, origin, None)


def install_hint(module: str, candidate: Candidate) -> str:
    """How to install a module that a plugin misses: by its distribution's extra, if it has one."""
    if candidate.distribution is not None:
        extra = _extra_for(module, candidate)
        if extra is not None:
            return f"pip install '{candidate.distribution}[{extra}]'"
    sibling = candidate.path.parent / f"{module}.py"
    if not candidate.is_package and (sibling.exists() or sibling.with_suffix("").is_dir()):
        return f"put both in a package's folder, and write `from . import {module}`"
    return f"pip install {module}"


def _from_path(spec: str) -> Candidate:
    spec = absolute_spec(spec)
    path = Path(spec)
    if path.is_dir():
        init = path / "__init__.py"
        if not init.exists():
            raise PluginInvalid(f"{path} is no package: it has no __init__.py.")
        _check_name(path.name, spec)
        return Candidate(path.name, spec, init, is_package=True, installed=False)
    if not os.path.lexists(path):
        raise PluginNotFound(f"There is no file or folder {path}.")
    if path.suffix != ".py":
        raise PluginInvalid(f"{path} is neither a .py file nor the folder of a package.")
    if path.name == "__init__.py":
        raise PluginInvalid(f"{path} belongs to a package: give its folder, {path.parent}.")
    _check_name(path.stem, spec)
    return Candidate(path.stem, spec, path, is_package=False, installed=False)


def _from_entry_point(spec: str, entry: EntryPoint) -> Candidate:
    if ":" in entry.module:
        raise PluginInvalid(
            f"The entry point {entry.name} of {entry.distribution} must name a module,"
            f" not an object in one: {entry.module}."
        )
    origin = _locate(entry.module)
    if origin is None:
        why = (
            " It is an editable install: one that was made while the node runs is found only after"
            " a restart."
            if entry.editable
            else f" Is {entry.distribution} installed whole?"
        )
        raise PluginNotFound(
            f"{entry.distribution} declares the plugin {entry.name}, but its module"
            f" {entry.module} cannot be found.{why}"
        )
    return _from_module(spec, entry.module, origin, entry.distribution)


def _from_module(spec: str, module: str, origin: ModuleSpec, distribution: str | None) -> Candidate:
    name = module.rpartition(".")[2]
    _check_name(name, spec)
    if isinstance(origin.loader, ExtensionFileLoader):
        raise PluginInvalid(f"{module} is an extension module, which Python cannot unload.")
    if origin.origin is None and origin.submodule_search_locations is not None:
        raise PluginInvalid(f"{module} is no package: it has no __init__.py.")
    path = Path(origin.origin or "")
    if path.suffix != ".py" or not path.is_file():
        raise PluginInvalid(f"{module} has no source file on disk ({origin.origin}).")
    return Candidate(
        name,
        spec,
        path,
        is_package=origin.submodule_search_locations is not None,
        installed=True,
        distribution=distribution,
    )


def _locate(module: str) -> ModuleSpec | None:
    """Find a module without importing anything, the packages around it neither."""
    path: list[str] | None = None
    origin: ModuleSpec | None = None
    for index, level in enumerate(levels := module.split(".")):
        if not level.isidentifier() or (index and path is None):
            return None
        origin = _ask_finders(".".join(levels[: index + 1]), path)
        if origin is None:
            return None
        locations = origin.submodule_search_locations
        path = None if locations is None else list(locations)
    return origin


def _ask_finders(module: str, path: list[str] | None) -> ModuleSpec | None:
    for finder in list(sys.meta_path):
        try:
            found = finder.find_spec(module, path, None)
        except Exception as error:  # noqa: BLE001  # a stranger's finder
            log.warning("%r could not look for %s: %s", finder, module, error)
            continue
        if found is not None:
            return found
    return None


def _check_name(name: str, spec: str) -> None:
    if not name.isidentifier() or name in RESERVED:
        raise PluginInvalid(
            f"{spec}: {name!r} cannot be a plugin's name. It is made of letters, digits and"
            f" underscores, and is none of {', '.join(sorted(RESERVED))}: rename it."
        )


def _not_found(spec: str, entries: list[EntryPoint]) -> str:
    names = sorted({entry.name for entry in entries})
    near = get_close_matches(spec, names, n=1)
    text = f"There is no plugin {spec}: it is neither an entry point nor a module."
    if near:
        text += f" Did you mean {near[0]}?"
    if Path(f"{spec}.py").exists() or Path(spec).is_dir():
        text += f" A path has a separator in it: ./{spec}"
    return f"{text} There are: {', '.join(names) or 'none'}."


def _is_editable(distribution: importlib.metadata.Distribution) -> bool:
    text = distribution.read_text("direct_url.json")
    return text is not None and bool(json.loads(text).get("dir_info", {}).get("editable"))


def _extra_for(module: str, candidate: Candidate) -> str | None:
    """The extra that requires a distribution of the module's name, or has the plugin's short name:
    names differ (`zmq` is of `pyzmq`), so that each plugin's extra is called as the plugin is.
    """
    try:
        distribution = importlib.metadata.distribution(candidate.distribution or "")
    except importlib.metadata.PackageNotFoundError:
        return None
    for requirement in distribution.requires or ():
        required = re.match(r"[A-Za-z0-9._-]+", requirement)
        extra = re.search(r"""extra\s*==\s*['"]([^'"]+)['"]""", requirement)
        if required and extra and re.sub(r"[-.]", "_", required[0]).lower() == module.lower():
            return extra[1]
    short = candidate.name.split("_", 2)[-1]
    extras = distribution.metadata.get_all("Provides-Extra") or ()
    return next((extra for extra in extras if extra.replace("-", "_") == short), None)
