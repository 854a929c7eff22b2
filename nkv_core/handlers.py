"""Handler registry: which handler answers a request, looked up in an immutable table.

A path is literal, or has parameters: `{name}` stands for one level, `{name:path}`, at the end only,
for all that is left, slashes included (keys may hold them). Neither stands for nothing. Where
several fit, the literal level goes before `{name}`, and that before `{name:path}`; what no handler
takes goes to the mounted application with the longest prefix.

For listener `http` a path begins with `/`. For another it may also be one word, such as the name of
a command.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple, Protocol

from nkv_core.contracts.handlers import (
    ANY_METHOD,
    DEFAULT_MAX_BODY,
    DEFAULT_TIMEOUT,
    WEBSOCKET,
    AsgiApp,
    ErrorForm,
    Handler,
    Route,
    WebSocketHandler,
)
from nkv_core.contracts.owner import Owner
from nkv_core.errors import MethodNotAllowed, NoHandler, PluginInvalid, PluginNotFound, RouteTaken

_PARAMETER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(:path)?\}")
_NO_PATH: Final = re.compile("[\x00-\x1f\x7f-\x9f?#]")
_METHOD: Final = re.compile(r"[A-Z][A-Z0-9-]*")
# What parameters are in the shape of a path. No literal level has braces.
_ONE: Final = "{}"
_REST: Final = "{:path}"


class Found(NamedTuple):
    """The route that answers, the parameters of its path, and what is left behind a mount."""

    route: Route
    params: "dict[str, str] | None"
    rest: str


class _Level:
    """The routes of one listener that share the first levels of their paths."""

    __slots__ = ("here", "literal", "one", "rest")

    def __init__(self) -> None:
        self.here: dict[str, tuple[Route, tuple[str, ...]]] = {}  #: by method, with names
        self.literal: dict[str, _Level] = {}
        self.one: _Level | None = None
        self.rest: _Level | None = None

    @property
    def is_end(self) -> bool:
        """Whether no path goes on from here."""
        return not self.literal and self.one is None and self.rest is None


class Routes:
    """All routes of one moment. Never changed once made."""

    __slots__ = ("_depths", "_levels", "_mounts", "_tails", "all", "exact")

    def __init__(self, routes: Iterable[Route] = ()) -> None:
        """Raises `RouteTaken` where two are for the same, and `PluginInvalid` for a bad path."""
        self.all: Final = tuple(routes)
        #: By (listener, method, path): those without parameters, found at once.
        self.exact: Final[dict[tuple[str, str, str], Route]] = {}
        self._levels: Final[dict[str, _Level]] = {}
        self._mounts: Final[dict[tuple[str, str], Route]] = {}
        for route in self.all:
            if route.kind == "mount":
                _take(self._mounts, (route.listener, mount_prefix(route.path)), route)
            else:
                self._add(route)
        for (listener, method, path), route in list(self.exact.items()):
            if method == "GET":
                self.exact.setdefault((listener, "HEAD", path), route)
        #: By (listener, method, beginning of the path): those that take whatever follows it, and
        #: the name that it has, where no other can take any of that.
        self._tails: Final = {
            (listener, method, prefix): tail
            for listener, root in self._levels.items()
            for method, prefix, tail in _tails(root)
        }
        #: By listener: how many slashes the beginnings of its tails have.
        self._depths: Final[dict[str, list[int]]] = {}
        for listener, _, prefix in self._tails:
            depths = self._depths.setdefault(listener, [])
            if (depth := prefix.count("/")) not in depths:
                depths.append(depth)

    def _add(self, route: Route) -> None:
        shape, names = parse_path(route.path, route.listener)
        level = self._levels.setdefault(route.listener, _Level())
        for part in shape:
            if part == _ONE:
                level.one = level = level.one or _Level()
            elif part == _REST:
                level.rest = level = level.rest or _Level()
            else:
                level = level.literal.setdefault(part, _Level())
        if (taken := level.here.get(route.method)) is not None:
            raise _taken(taken[0], route)
        level.here[route.method] = (route, names)
        if not names:
            self.exact[route.listener, route.method, route.path] = route

    def find(self, listener: str, method: str, path: str) -> Found:
        """The route for a request.

        Raises `NoHandler`, and `MethodNotAllowed` where the path is one of other methods.
        """
        for depth in self._depths.get(listener, ()):
            rest = path.split("/", depth)[-1]
            if not rest:
                continue
            tail = self._tails.get((listener, method, path[: -len(rest)]))
            if tail is not None:
                return Found(tail[0], {tail[1]: rest}, path)
        root = self._levels.get(listener)
        parts = path.split("/")
        if root is not None:
            found = _search(root, parts, 0, method, ())
            if found is None and method == "HEAD":
                found = _search(root, parts, 0, "GET", ())
            if found is not None:
                (route, names), values = found
                return Found(route, dict(zip(names, values, strict=True)) if names else None, path)
        if self._mounts:
            for end in range(len(parts), 0, -1):
                prefix = "/".join(parts[:end])
                mounted = self._mounts.get((listener, prefix))
                if mounted is not None:
                    return Found(mounted, None, path[len(prefix) :])
        siblings = self._siblings(listener, path)
        allowed = {route.method for route in siblings} - {WEBSOCKET}
        if not allowed:
            only = " without a WebSocket" if siblings else ""
            raise NoHandler(f"No handler is registered for {path[:200]}{only}.")
        if "GET" in allowed:
            allowed.add("HEAD")
        named = ", ".join(sorted(allowed))
        raise MethodNotAllowed(
            f"{path[:200]} takes {named}, not {method[:40]}.", allowed=tuple(sorted(allowed))
        )

    def sibling(self, listener: str, path: str) -> Route:
        """A handler of a path that `find` refused with `MethodNotAllowed`: that which fits best."""
        return next(r for r in self._siblings(listener, path) if r.kind == "handler")

    def _siblings(self, listener: str, path: str) -> list[Route]:
        found: list[Route] = []
        root = self._levels.get(listener)
        if root is not None:
            _collect(root, path.split("/"), 0, found)
        return found


def _tails(level: _Level, prefix: str = "") -> Iterator[tuple[str, str, tuple[Route, str]]]:
    """Method, beginning of the path, and route with the parameter's name, of what is found there
    and nowhere else.
    """
    if level.one is not None:
        return
    if level.rest is None:
        for part, below in level.literal.items():
            yield from _tails(below, f"{prefix}{part}/")
    elif all(part == "" and below.is_end for part, below in level.literal.items()):
        for method, (route, (name,)) in level.rest.here.items():
            yield method, prefix, (route, name)


def _search(
    level: _Level, parts: list[str], at: int, method: str, values: tuple[str, ...]
) -> tuple[tuple[Route, tuple[str, ...]], tuple[str, ...]] | None:
    # Where there is but one way to go on, as there mostly is, it takes no call for each level.
    while level.one is None and level.rest is None and at < len(parts):
        only = level.literal.get(parts[at])
        if only is None:
            return None
        level, at = only, at + 1
    if at == len(parts):
        here = level.here.get(method)
        return None if here is None else (here, values)
    part = parts[at]
    below = level.literal.get(part)
    if below is not None:
        found = _search(below, parts, at + 1, method, values)
        if found is not None:
            return found
    if level.one is not None and part:
        found = _search(level.one, parts, at + 1, method, (*values, part))
        if found is not None:
            return found
    if level.rest is not None:
        here = level.rest.here.get(method)
        rest = "/".join(parts[at:])
        if here is not None and rest:
            return here, (*values, rest)
    return None


def _collect(level: _Level, parts: list[str], at: int, found: list[Route]) -> None:
    if at == len(parts):
        found.extend(route for route, _ in level.here.values())
        return
    part = parts[at]
    below = level.literal.get(part)
    if below is not None:
        _collect(below, parts, at + 1, found)
    if level.one is not None and part:
        _collect(level.one, parts, at + 1, found)
    if level.rest is not None and "/".join(parts[at:]):
        found.extend(route for route, _ in level.rest.here.values())


def _take(table: dict[tuple[str, str], Route], place: tuple[str, str], route: Route) -> None:
    taken = table.setdefault(place, route)
    if taken is not route:
        raise _taken(taken, route)


def _taken(taken: Route, route: Route) -> RouteTaken:
    what = f"{route.method} {route.path} of listener {route.listener}"
    if route.kind == "mount":
        what = f"The prefix {route.path} of listener {route.listener}"
    if taken.owner is route.owner:
        return RouteTaken(f"{what} is registered twice by {route.owner.name}.")
    as_what = f" (as {taken.path})" if taken.path != route.path else ""
    return RouteTaken(
        f"{what} is taken by {taken.owner.name}{as_what}; {route.owner.name} cannot have it too."
    )


def parse_path(path: str, listener: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The levels of a path, parameters without their names, and those names.

    Raises `PluginInvalid` where it is not a path.
    """
    if _NO_PATH.search(path) or not path:
        raise PluginInvalid(f"{path!r} is not a path.")
    if not path.startswith("/") and (listener == "http" or "/" in path):
        raise PluginInvalid(f"The path {path!r} does not begin with a slash.")
    shape: list[str] = []
    names: list[str] = []
    for level in path.split("/"):
        parameter = _PARAMETER.fullmatch(level)
        if shape and shape[-1] == _REST:
            raise PluginInvalid(f"In {path!r} something follows what stands for all the rest.")
        if parameter is not None:
            shape.append(_REST if parameter[2] else _ONE)
            names.append(parameter[1])
        elif "{" in level or "}" in level:
            raise PluginInvalid(f"In {path!r} a level is neither literal nor one {{parameter}}.")
        else:
            shape.append(level)
    if len(set(names)) < len(names):
        raise PluginInvalid(f"In {path!r} two parameters have the same name.")
    return tuple(shape), tuple(names)


def mount_prefix(prefix: str) -> str:
    """A prefix without slashes at its end. Raises `PluginInvalid` where it is not one."""
    if not prefix.startswith("/") or _NO_PATH.search(prefix) or "{" in prefix or "}" in prefix:
        raise PluginInvalid(f"{prefix!r} is not a prefix to mount at.")
    return prefix.rstrip("/")


# --- registration ---------------------------------------------------------------------------------


class RouteSink(Protocol):
    """Where routes of a generation that is live go: the dispatcher."""

    def add_route(self, route: Route) -> None:
        """Raises `RouteTaken` or `PluginInvalid`."""

    def remove_route(self, listener: str, method: str, path: str, owner: Owner) -> None:
        """Raises `PluginNotFound`."""


#: What the transport behind a listener can do; None where no such transport is loaded.
Features = Callable[[str], "frozenset[str] | None"]


class HandlerCollector:
    """Takes the handlers of one generation: it keeps them until the generation is live, and passes
    them on from then on.

    A WebSocket or a mount for a listener without a transport is taken, so that the order of loading
    does not matter: if the transport that comes cannot do it, it never asks for it.
    """

    def __init__(self, owner: Owner, features: Features) -> None:
        self._owner: Final = owner
        self._features = features
        self._routes: tuple[Route, ...] = ()
        self._sink: RouteSink | None = None

    @property
    def routes(self) -> tuple[Route, ...]:
        """What was registered before the generation was live."""
        return self._routes

    def live(self, sink: RouteSink) -> None:
        """Pass on what comes from now on."""
        self._sink = sink

    def add(
        self,
        path: str,
        handler: Handler,
        methods: tuple[str, ...] = ("GET",),
        listener: str = "http",
        *,
        command: str = "",
        errors: ErrorForm | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        max_body: int = DEFAULT_MAX_BODY,
        public: bool = False,
    ) -> None:
        """Answer these methods on `path` with `handler`, as in `contracts.handlers.Handlers`."""
        parse_path(path, listener)
        if timeout is not None and not timeout > 0:
            raise PluginInvalid(f"The timeout of {path} is {timeout}; it must be above 0, or None.")
        self._put(
            [
                Route(
                    listener=listener,
                    method=method,
                    path=path,
                    target=handler,
                    owner=self._owner,
                    command=command,
                    errors=errors,
                    timeout=timeout,
                    max_body=max_body,
                    public=public,
                )
                for method in _checked_methods(methods, path)
            ]
        )

    def websocket(self, path: str, handler: WebSocketHandler, listener: str = "http") -> None:
        """Accept WebSockets on `path`."""
        self._needs("websocket", listener, path)
        parse_path(path, listener)
        self._put([Route(listener, WEBSOCKET, path, handler, self._owner, "websocket")])

    def mount(self, prefix: str, app: AsgiApp, listener: str = "http") -> None:
        """Give all requests below `prefix` that no handler takes to an ASGI application."""
        self._needs("mount", listener, prefix)
        mount_prefix(prefix)
        self._put([Route(listener, ANY_METHOD, prefix, app, self._owner, "mount")])

    def remove(
        self, path: str, methods: tuple[str, ...] = ("GET",), listener: str = "http"
    ) -> None:
        """Take back what this plugin added, a WebSocket or a mount by `WEBSOCKET`, `ANY_METHOD`."""
        for method in methods:
            if self._sink is not None:
                self._sink.remove_route(listener, method, path, self._owner)
            else:
                self._routes = without(self._routes, listener, method, path, self._owner)

    def _put(self, routes: list[Route]) -> None:
        for route in routes:
            if not callable(route.target):
                raise PluginInvalid(f"What should answer {route.path} cannot be called.")
        if self._sink is None:
            together = (*self._routes, *routes)
            Routes(together)  # whether they fit with each other
            self._routes = together
            return
        added: list[Route] = []
        try:
            for route in routes:
                self._sink.add_route(route)
                added.append(route)
        except Exception:
            for route in added:  # all methods or none
                self._sink.remove_route(route.listener, route.method, route.path, route.owner)
            raise

    def _needs(self, feature: str, listener: str, path: str) -> None:
        features = self._features(listener)
        if features is not None and feature not in features:
            raise PluginInvalid(f"The transport of listener {listener} has no {feature}: {path}.")


def without(
    routes: tuple[Route, ...], listener: str, method: str, path: str, owner: Owner
) -> tuple[Route, ...]:
    """The routes but one. Raises `PluginNotFound` where it is not there."""
    place = (listener, method, path)
    left = tuple(route for route in routes if (route.listener, route.method, route.path) != place)
    if len(left) == len(routes):
        raise PluginNotFound(f"{owner.name} has not registered {method} {path} for {listener}.")
    return left


def _checked_methods(methods: Any, path: str) -> tuple[str, ...]:
    if isinstance(methods, str) or not methods:
        raise PluginInvalid(f"The methods of {path} are to be a tuple such as ('GET',).")
    for method in methods:
        if not isinstance(method, str) or not _METHOD.fullmatch(method) or method == WEBSOCKET:
            raise PluginInvalid(f"{method!r} of {path} is not a method that a handler answers.")
    return tuple(dict.fromkeys(methods))
