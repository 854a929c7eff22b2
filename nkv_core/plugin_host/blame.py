"""Errors of strangers' code, told so that their author finds the place: plugin, file and line.

What is told is text. An exception that is kept keeps its traceback, that its frames, and they the
whole generation of the plugin: so none is.
"""

import traceback
from collections.abc import Container

from nkv_core.errors import (
    NkvError,
    PluginError,
    PluginInvalid,
    PluginSetupFailed,
    SettingsError,
    StartError,
)
from nkv_core.plugin_host.discovery import Candidate, install_hint

#: Errors that say by themselves what is wrong and what to do.
_CLEAR = (PluginError, SettingsError, StartError)


def innermost(error: BaseException) -> BaseException:
    """The one error in a group of one, however deep."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def describe(error: BaseException, files: Container[str]) -> str:
    """An error's type and text, and the last line among `files` that it came through."""
    error = innermost(error)
    kind = type(error).__name__
    if isinstance(error, SyntaxError):
        return f"{kind}: {error.msg} ({error.filename}:{error.lineno})"
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename in files:
            place = f" ({frame.f_code.co_filename}:{line})"
    if isinstance(error, BaseExceptionGroup):
        inner = "; ".join(describe(each, files) for each in error.exceptions)
        return f"{kind}: {inner}{place}"
    text = str(error)
    return f"{kind}: {text}{place}" if text else f"{kind}{place}"


def in_source(error: BaseException, candidate: Candidate, prefix: str) -> PluginInvalid:
    """What to raise where executing a plugin's modules, named with `prefix`, raised `error`."""
    name = candidate.name
    files = _FilesBelow(candidate)
    if isinstance(error, PluginInvalid):
        return PluginInvalid(error.detail)
    told = describe(error, files).replace(prefix, name)
    if isinstance(error, ModuleNotFoundError) and error.name:
        missing = error.name.partition(".")[0]
        if missing != prefix and error.msg == f"No module named {error.name!r}":
            return PluginInvalid(
                f"{name} needs {missing}: {install_hint(missing, candidate)}. {told}"
            )
    return PluginInvalid(f"{name}: {told}")


def in_setup(error: BaseException, candidate: Candidate, step: str) -> NkvError:
    """What to raise where setting up a plugin raised `error`: it, where it is clear in itself."""
    error = innermost(error)
    if isinstance(error, _CLEAR):
        return type(error)(error.detail)
    files = _FilesBelow(candidate)
    return PluginSetupFailed(f"{candidate.name}: {step}: {describe(error, files)}")


def is_clear(error: BaseException) -> bool:
    """Whether the error says by itself what is wrong, so that no traceback is needed."""
    return isinstance(innermost(error), _CLEAR)


def whole_story(error: BaseException) -> str:
    """The traceback as text, for the log."""
    return "".join(traceback.format_exception(error)).rstrip()


class _FilesBelow:
    """The files of a plugin, as a container of their names."""

    def __init__(self, candidate: Candidate) -> None:
        self._path = str(candidate.path)
        self._folder = f"{candidate.path.parent}/" if candidate.is_package else None

    def __contains__(self, name: object) -> bool:
        if name == self._path:
            return True
        return self._folder is not None and str(name).startswith(self._folder)
