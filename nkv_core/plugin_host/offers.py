"""Offers: what a plugin's hooks return, checked and made into what the host works with."""

import inspect
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from nkv_core.config import convert_section
from nkv_core.errors import PluginSetupFailed
from nkv_core.loop import refuse_other_backends


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Settings over others, table by table."""
    whole = dict(under)
    for key, value in over.items():
        below = whole.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        whole[key] = merged(below, value) if both else value  # type: ignore[arg-type]
    return whole


def converted(
    plugin: str, section: str, given: Mapping[str, Any], kind: Any, directory: Path
) -> msgspec.Struct:
    """A section as the type that `nkv_settings` returned; its `directory`, if it has one, is set.

    Raises `SettingsError`, and `PluginSetupFailed` where that is no type of settings.
    """
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        raise PluginSetupFailed(f"{plugin}: nkv_settings must return a type of msgspec.Struct.")
    settings = convert_section(section, given, kind)
    if getattr(settings, "directory", "") is None:
        settings = msgspec.structs.replace(settings, directory=str(directory))
    return settings


def managed(plugin: str, made: Any) -> AbstractAsyncContextManager[Any]:
    """What `nkv_setup` returned, as a context manager: it may be a bare generator."""
    if inspect.isasyncgen(made):
        generator: AsyncIterator[Any] = made
        return asynccontextmanager(lambda: generator)()
    if hasattr(made, "__aenter__") and hasattr(made, "__aexit__"):
        return made  # type: ignore[no-any-return]
    if inspect.iscoroutine(made):
        made.close()
    raise PluginSetupFailed(
        f"{plugin}: nkv_setup must be an asynchronous context manager:"
        " an async function with one `yield`."
    )


def checked(plugin: str, kind: str, name: str, offered: Any) -> Any:
    """The transport or mesh that a hook returned for `name`, if it runs on the backend that we run
    on. Raises `PluginSetupFailed`.
    """
    if offered is None:
        raise PluginSetupFailed(f"{plugin} offers no {kind} called {name}.")
    refuse_other_backends(f"The {kind} {name}", offered.backends)
    return offered
