"""Registry: pluggy, told what is a hook of nkv and what is not. One for each node.

pluggy finds and validates implementations when a plugin comes, and forgets them when it goes. It is
not thread-safe, and nobody calls hooks through it: the bus does, from what is handed out here.
"""

import inspect
import threading
from collections.abc import Callable
from difflib import get_close_matches
from types import FunctionType, ModuleType
from typing import Any, Final

import msgspec
import pluggy

from nkv_core.bus import Listener
from nkv_core.contracts.context import LifecycleHooks
from nkv_core.contracts.handlers import HandlerHooks
from nkv_core.contracts.listeners import ListenerHooks
from nkv_core.contracts.markers import PRIORITY_ATTRIBUTE, PROJECT
from nkv_core.contracts.mesh import MeshHooks
from nkv_core.contracts.owner import Owner
from nkv_core.contracts.storage import StorageHooks
from nkv_core.contracts.transport import TransportHooks
from nkv_core.errors import PluginInvalid
from nkv_core.events import (
    Connect,
    Disconnect,
    PeerDown,
    PeerUp,
    PluginFailed,
    PluginLoaded,
    PluginUnloaded,
    RequestComplete,
    RequestEnd,
    RequestStart,
)
from nkv_core.records import Change

SPECIFICATIONS: Final = (
    LifecycleHooks,
    HandlerHooks,
    ListenerHooks,
    StorageHooks,
    TransportHooks,
    MeshHooks,
)

EVENTS: Final[dict[str, type]] = {
    "nkv_connect": Connect,
    "nkv_disconnect": Disconnect,
    "nkv_request_start": RequestStart,
    "nkv_request_complete": RequestComplete,
    "nkv_request_end": RequestEnd,
    "nkv_changed": Change,
    "nkv_plugin_loaded": PluginLoaded,
    "nkv_plugin_unloaded": PluginUnloaded,
    "nkv_plugin_failed": PluginFailed,
    "nkv_peer_up": PeerUp,
    "nkv_peer_down": PeerDown,
}

#: What a plugin is, by the hooks that it implements.
KINDS: Final = {
    "nkv_storage": "storage",
    "nkv_transport": "transport",
    "nkv_mesh": "mesh",
    "nkv_merger": "merger",
    "nkv_discovery": "discovery",
    "nkv_handlers": "handlers",
    "nkv_setup": "setup",
}
#: May be implemented once in a plugin: there is one answer.
_SINGLE: Final = (
    "nkv_settings",
    "nkv_storage",
    "nkv_transport",
    "nkv_mesh",
    "nkv_merger",
    "nkv_discovery",
)
#: May be async: these are awaited; what `nkv_setup` returns is looked at when it is called.
_ASYNC: Final = frozenset({*EVENTS, "nkv_setup"})


class Implementation(msgspec.Struct, frozen=True, eq=False):
    """A plugin's implementation of one hook."""

    function: Callable[..., Any]
    takes: tuple[str, ...]  #: the hook's arguments that it wants
    priority: int

    def __call__(self, **arguments: Any) -> Any:
        """Call it with those of the hook's arguments that it takes."""
        return self.function(*(arguments[name] for name in self.takes))


class Hooks:
    """What one generation of a plugin implements."""

    def __init__(self, found: dict[str, tuple[Implementation, ...]]) -> None:
        self._found = found

    def all(self, hook: str) -> tuple[Implementation, ...]:
        """Its implementations of a hook."""
        return self._found.get(hook, ())

    def one(self, hook: str) -> Implementation | None:
        """Its implementation of a hook that can have but one."""
        return next(iter(self.all(hook)), None)

    @property
    def kinds(self) -> tuple[str, ...]:
        """What the plugin is: of the values of `KINDS`, and `listeners`."""
        kinds = [kind for hook, kind in KINDS.items() if hook in self._found]
        if any(hook in self._found for hook in EVENTS):
            kinds.append("listeners")
        return tuple(kinds)

    def listeners(self, owner: Owner, order: int) -> tuple[Listener, ...]:
        """Its listeners, as the bus takes them; those of `Change` are the watch hub's to tell."""
        return tuple(
            Listener(event, found.function, owner, found.priority, order)
            for hook, event in EVENTS.items()
            for found in self.all(hook)
        )


class Registry:
    """Registers and unregisters plugins, on the thread that it was made on."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._manager = pluggy.PluginManager(PROJECT)
        self._arguments: dict[str, tuple[str, ...]] = {}
        for specification in SPECIFICATIONS:
            self._manager.add_hookspecs(specification)
            for name in dir(specification):
                if self._manager.parse_hookspec_opts(specification, name) is not None:
                    spec = getattr(self._manager.hook, name).spec
                    self._arguments[name] = tuple(spec.argnames)

    @property
    def hooks(self) -> tuple[str, ...]:
        """The names of all hooks."""
        return tuple(sorted(self._arguments))

    def registered(self) -> list[str]:
        """The names under which plugins are registered."""
        return sorted(name for name, _ in self._manager.list_name_plugin())

    def register(self, name: str, key: str, plugin: ModuleType) -> Hooks:
        """Register a plugin's module under `key`, and return what it implements.

        Raises `PluginInvalid`, naming the place, where a hook is unknown, takes what it is not
        given, or is of the wrong sort; then nothing is registered.
        """
        self._check_thread()
        counts: dict[str, int] = {}
        for attribute in dir(plugin):
            options = self._manager.parse_hookimpl_opts(plugin, attribute)
            if options is None:
                self._refuse_unmarked(name, plugin, attribute)
                continue
            hook = options.get("specname") or attribute
            self._check(name, hook, getattr(plugin, attribute), options)
            counts[hook] = counts.get(hook, 0) + 1
            if hook in _SINGLE and counts[hook] > 1:
                raise PluginInvalid(f"{name} implements {hook} twice; it can have but one answer.")
        if not counts:
            raise PluginInvalid(
                f"{name} implements no hook: mark its functions with nkv_core.hookimpl."
            )
        try:
            self._manager.register(plugin, key)
        except pluggy.PluginValidationError as error:
            raise PluginInvalid(f"{name}: {error}") from None
        found: dict[str, tuple[Implementation, ...]] = {}
        for hook in counts:
            found[hook] = tuple(
                Implementation(
                    each.function,
                    tuple(each.argnames),
                    getattr(each.function, PRIORITY_ATTRIBUTE, 0),
                )
                for each in getattr(self._manager.hook, hook).get_hookimpls()
                if each.plugin_name == key
            )
        return Hooks(found)

    def unregister(self, key: str) -> None:
        """Forget what is registered under `key`; nothing happens where nothing is."""
        self._check_thread()
        if self._manager.has_plugin(key):
            self._manager.unregister(name=key)

    def _check(self, name: str, hook: str, function: Any, options: Any) -> None:
        place = _place(function)
        if hook not in self._arguments:
            near = get_close_matches(hook, self.hooks, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(self.hooks)}."
            raise PluginInvalid(f"{name}: there is no hook {hook}{place}. {hint}")
        if options.get("wrapper") or options.get("hookwrapper"):
            raise PluginInvalid(f"{name}: {hook} cannot be a wrapper{place}.")
        if options.get("tryfirst") or options.get("trylast"):
            raise PluginInvalid(f"{name}: order {hook} by `hookimpl(priority=...)`{place}.")
        offered = self._arguments[hook]
        wanted = [
            parameter.name
            for parameter in inspect.signature(function).parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        strange = [argument for argument in wanted if argument not in offered]
        if strange:
            raise PluginInvalid(
                f"{name}: {hook} takes {', '.join(strange)}, which it is not given. It is given"
                f" {', '.join(offered) or 'nothing'}{place}."
            )
        keyword_only = inspect.Parameter.KEYWORD_ONLY
        if any(p.kind is keyword_only for p in inspect.signature(function).parameters.values()):
            raise PluginInvalid(f"{name}: {hook} is called by position, not by keyword{place}.")
        is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
        if is_async and hook not in _ASYNC:
            raise PluginInvalid(f"{name}: {hook} must be a plain function, not async{place}.")

    def _refuse_unmarked(self, name: str, plugin: ModuleType, attribute: str) -> None:
        """A function called like a hook, but not marked, would do nothing in silence."""
        if attribute not in self._arguments:
            return
        function = vars(plugin).get(attribute)
        if isinstance(function, FunctionType) and function.__module__ == plugin.__name__:
            raise PluginInvalid(f"{name}: {attribute} lacks @hookimpl{_place(function)}.")

    def _check_thread(self) -> None:
        if threading.get_ident() != self._thread:
            raise RuntimeError("Plugins are registered on the event loop's thread only.")


def _place(function: Any) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""
