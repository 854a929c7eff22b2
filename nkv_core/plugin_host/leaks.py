"""Leaks: whether a closed generation is really gone, and if not, what holds it.

Weak references to the functions and classes of its modules are the witnesses; the modules
themselves tell nothing, for their globals live on through any function of theirs.
"""

import atexit
import functools
import gc
import logging
import signal
import sys
import threading
import time
import types
import weakref
from typing import Any, Final

from nkv_core.collector import look_at_all
from nkv_core.plugin_host.modules import Modules

_DEPTH: Final = 6
_WIDTH: Final = 50
_MOST: Final = 5

_CACHE: Final = type(functools.lru_cache(repr))

#: Seconds between two runs of the collector, which holds up everything while it runs.
PAUSE: Final = 0.1


class Witnesses:
    """Tells whether anything of a generation's modules is still alive. Keeps nothing alive."""

    def __init__(self, modules: Modules) -> None:
        self._prefix = modules.prefix
        self._references: list[weakref.ref[Any]] = []
        for name in modules.loaded():
            for value in list(vars(sys.modules[name]).values()):
                made_here = getattr(value, "__module__", None) == name
                if made_here and isinstance(value, types.FunctionType | type):
                    self._references.append(weakref.ref(value))

    def gone(self) -> bool:
        """Whether all are. Call the collector before: a module is a circle of references."""
        return all(reference() is None for reference in self._references)

    def holders(self) -> list[str]:
        """What keeps the generation alive, in words, as far as it can be found.

        The nearest holders that have a name: what holds these in turn is no news.
        """
        look_at_all()
        named = [*threads_in(self._prefix), *hidden_from_collector(self._prefix)]
        layer = [value for reference in self._references if (value := reference()) is not None]
        own = {id(self._references)}
        seen = {id(value) for value in layer}
        for _ in range(_DEPTH):
            # One pass over the heap for each layer, and none gets too wide.
            found = gc.get_referrers(*layer[:_WIDTH])
            own |= {id(layer), id(found)}
            outer: list[Any] = []
            for holder in found:
                if id(holder) in own or id(holder) in seen or holder is sys._getframe():
                    continue
                seen.add(id(holder))
                text = None if self._is_ours(holder) else _name(holder)
                if text is None:
                    outer.append(holder)
                elif text not in named:
                    named.append(text)
            if named or not outer:
                break
            layer = outer
        return named[:_MOST]

    def _is_ours(self, value: Any) -> bool:
        if isinstance(value, dict):
            return _is_below(str(value.get("__name__") or value.get("__module__")), self._prefix)
        if isinstance(value, types.FunctionType | type):
            return _is_below(str(value.__module__), self._prefix)
        if isinstance(value, types.FrameType):  # one that runs is that of a thread
            return _is_below(str(value.f_globals.get("__name__")), self._prefix)
        return _is_below(str(type(value).__module__), self._prefix)


def threads_in(prefix: str) -> list[str]:
    """Threads that execute code of the modules whose names begin so."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    named = []
    for ident, frame in sys._current_frames().items():
        inner: types.FrameType | None = frame
        while inner is not None:
            if _is_below(str(inner.f_globals.get("__name__")), prefix):
                place = f"{inner.f_code.co_filename}:{inner.f_lineno}"
                named.append(f"thread {names.get(ident, ident)} at {place}")
                break
            inner = inner.f_back
    return named


def hidden_from_collector(prefix: str) -> list[str]:
    """What the interpreter itself holds of these modules, where the collector does not look."""
    named = [
        f"atexit, which is to call {_called(function)}"
        for function in _called_at_exit()
        if _is_below(str(getattr(function, "__module__", None)), prefix)
    ]
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        if _is_below(str(getattr(handler, "__module__", None)), prefix):
            named.append(
                f"the signal {getattr(number, 'name', number)}, which {_called(handler)} is for"
            )
    return named


class _Notes:
    """Is equal to nothing, and notes what it was compared with."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self) -> None:
        self.compared: list[Any] = []

    def __eq__(self, other: object) -> bool:
        self.compared.append(other)
        return False


def _called_at_exit() -> list[Any]:
    """All functions given to `atexit`, which shows them only to what it is asked to remove."""
    notes = _Notes()
    atexit.unregister(notes)  # type: ignore[arg-type]
    return notes.compared


def _called(function: Any) -> str:
    return str(getattr(function, "__qualname__", function))


def _is_below(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def _name(holder: Any) -> str | None:
    """Words for something that holds; None for what is itself held by what has a better name."""
    if isinstance(holder, types.FrameType):
        code = holder.f_code
        if code.co_filename == __file__:
            return None
        return f"a call of {code.co_name} at {code.co_filename}:{holder.f_lineno}"
    if isinstance(holder, types.CoroutineType | types.GeneratorType | types.AsyncGeneratorType):
        return f"{type(holder).__name__} {holder.__qualname__}"
    if isinstance(holder, types.TracebackType | BaseException):
        return f"an exception that was kept ({type(holder).__name__})"
    if isinstance(holder, dict) and isinstance(holder.get("__name__"), str):
        module = sys.modules.get(holder["__name__"])
        if module is not None and vars(module) is holder:
            return f"module {module.__name__}"
    if isinstance(holder, types.ModuleType):
        return f"module {holder.__name__}"
    if isinstance(holder, type):
        return f"class {holder.__qualname__} of {holder.__module__}"
    return _name_of_service(holder)


def _name_of_service(holder: Any) -> str | None:
    """Words for what calls or remembers on somebody's behalf."""
    if isinstance(holder, threading.Thread):
        return f"thread {holder.name}"
    if isinstance(holder, logging.Logger):
        return f"logger {holder.name}"
    if isinstance(holder, _CACHE):
        return f"the cache of {_called(holder)} of {holder.__module__}"
    if type(holder).__name__ == "Task":
        return f"task {holder!r:.100}"
    if type(holder).__name__ in {"Handle", "TimerHandle"} and not holder.cancelled():
        return f"a timer or callback of the event loop: {holder!r:.100}"
    return None


class Collector:
    """Runs Python's collector for all who wait for something to be gone, but not too often."""

    def __init__(self) -> None:
        self._last = -PAUSE

    def gone(self, witnesses: Witnesses | None) -> bool:
        """Whether nothing is left. No is no certain answer: ask again after `PAUSE`."""
        if witnesses is None or witnesses.gone():
            return True
        if time.monotonic() - self._last < PAUSE:
            return False
        look_at_all()
        gc.collect()
        self._last = time.monotonic()
        return witnesses.gone()
