"""Folder: plugins that are loaded because they lie in a folder, and watched where asked for.

While it watches, a file that is saved is replaced in the running node, one that comes is loaded,
and one that goes is unloaded. Whether a plugin has changed is judged by its source alone: what
wakes the watcher may come twice, late, or not at all. One that cannot be loaded is told in the log,
and tried again when its source changes; what it would have replaced serves on.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import anyio
from anyio import Event, to_thread

from nkv_core.data_dir import PLUGIN_FOLDER
from nkv_core.errors import NkvError, SettingsError
from nkv_core.events import PluginLoaded, PluginUnloaded
from nkv_core.plugin_host import discovery
from nkv_core.plugin_host.audit import Audit
from nkv_core.plugin_host.host import PluginHost
from nkv_core.plugin_host.info import PluginInfo
from nkv_core.plugin_host.source import Source, read_source

#: Milliseconds for the writes of one save to come together.
_TOGETHER: Final = 100
#: Milliseconds after which it looks even though nothing woke it.
_LOOK_EVERY: Final = 1_000

log = logging.getLogger("nkv.plugins")


def folder_of(setting: str | None, data_dir: Path) -> Path:
    """The plugin folder. Raises `SettingsError` where one is named that is not there."""
    if setting is None:
        return (data_dir / PLUGIN_FOLDER).absolute()
    folder = Path(setting).expanduser().absolute()
    if not folder.is_dir():
        raise SettingsError(f"plugins.directory: there is no folder {folder}.")
    return folder


def specs_in(folder: Path) -> list[str]:
    """The plugins in a folder, by name: files and packages, without those that begin with `_` or
    a dot. None where there is no such folder.
    """
    try:
        found = sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    return [
        str(path)
        for path in found
        if not path.name.startswith(("_", "."))
        if path.suffix == ".py" or (path / "__init__.py").exists()
    ]


class FolderWatch:
    """Keeps the plugins that were given as paths as their files are."""

    def __init__(self, host: PluginHost, folder: Path, audit: Audit) -> None:
        """Raises `SettingsError` where what it needs is not installed."""
        try:
            from watchfiles import awatch  # noqa: PLC0415  # only those who develop plugins need it
        except ModuleNotFoundError:
            raise SettingsError(
                "plugins.watch needs watchfiles: pip install 'nkv-core[watch]'"
            ) from None
        self._awatch: Final = awatch
        self._host: Final = host
        self._folder: Final = folder
        self._audit: Final = audit
        self._tried: dict[str, str] = {}  # by SPEC: the SHA-256 that was tried last
        self._others = Event()  # other places are to be watched

    def note(self, _: PluginLoaded | PluginUnloaded) -> None:
        """What is loaded has changed."""
        self._others.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            self._others = Event()
            await self.look()
            await self._wait()

    async def _wait(self) -> None:
        """Return once anything may have changed."""
        places = [place for place in self._places() if place.is_dir()]
        if not places:
            with anyio.move_on_after(_LOOK_EVERY / 1000):
                await self._others.wait()
            return
        changes = self._awatch(
            *places,
            debounce=_TOGETHER,
            rust_timeout=_LOOK_EVERY,
            stop_event=self._others,
            yield_on_timeout=True,
            recursive=True,
        )
        async for _ in changes:
            return

    def _places(self) -> set[Path]:
        found = {self._folder}
        for info in self._given_as_paths():
            path = Path(info.spec)
            found.add(path if path.is_dir() else path.parent)
        return found

    def _given_as_paths(self) -> Iterator[PluginInfo]:
        for info in self._host.plugins():
            if Path(info.spec).is_absolute() and info.state in ("active", "failed"):
                yield info

    async def look(self) -> None:
        """Load, replace and unload what has come, changed and gone."""
        loaded = {info.spec: info for info in self._given_as_paths()}
        for spec in specs_in(self._folder):
            if spec not in loaded:
                await self._try(spec, None)
        for spec, info in loaded.items():
            if await anyio.Path(spec).exists():
                await self._try(spec, info)
            elif Path(spec).parent == self._folder:
                self._tried.pop(spec, None)
                await self._attempt("unload", spec, self._host.unload, info.name, info.name)

    async def _try(self, spec: str, info: PluginInfo | None) -> None:
        try:
            source = await to_thread.run_sync(self._read, spec)
            if not source.files[""].data:
                return  # it is being saved: editors empty a file before they write it
            sha256 = source.sha256
        except NkvError as error:  # it is half written, or not to be trusted
            sha256 = f"{error.code}: {error.detail}"
            if self._tried.get(spec) != sha256:
                log.error("%s: %s", spec, error)
                self._tried[spec] = sha256
            return
        if self._tried.get(spec) == sha256 or (info is not None and info.sha256 == sha256):
            return
        self._tried[spec] = sha256
        if info is None:
            await self._attempt("load", spec, self._host.load, spec)
        else:
            await self._attempt("replace", spec, self._host.replace, info.name, info.name)

    def _read(self, spec: str) -> Source:
        return read_source(discovery.find(spec), self._host.folders)

    async def _attempt(
        self, verb: str, spec: str, change: Any, argument: str, plugin: str | None = None
    ) -> None:
        try:
            with self._audit.by_node(
                "folder", f"plugins.{verb}", plugin=plugin, spec=spec
            ) as attempt:
                await change(argument, attempt=attempt)
        except NkvError as error:
            log.error("%s was not %sed: %s", spec, verb.removesuffix("e"), error)
