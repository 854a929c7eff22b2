"""Routing: which watchers a change concerns, found by its key alone.

Routes are a tree of levels. A change walks down the levels of its key and stops where nobody
watches any more, so that its cost follows the depth of the key and the number of watchers that
match, not the number of all.
"""

from collections.abc import Hashable
from typing import Any, Final, Generic, TypeVar

from nkv_core.errors import InvalidPattern
from nkv_core.keys import SEPARATOR, WILDCARD, Pattern
from nkv_core.records import Change

T = TypeVar("T", bound=Hashable)


class Subtree:
    """The keys of a pattern and all that lies below these: a subscription."""

    __slots__ = ("parts", "pattern")

    def __init__(self, pattern: Pattern) -> None:
        self.pattern: Final = pattern
        #: The same as patterns of which no key matches two.
        self.parts: Final = (pattern, *_below(pattern))

    def matches(self, key: str) -> bool:
        """Whether the key is one of them."""
        return any(part.matches(key) for part in self.parts)

    def overlaps(self, prefix: str) -> bool:
        """Whether a key that begins with `prefix` could be one of them."""
        return any(part.overlaps(prefix) for part in self.parts)


#: What a watcher watches.
Selector = Pattern | Subtree


def selector(pattern: Pattern, *, subtree: bool) -> Selector:
    """What to watch. Where a pattern ends in `*`, what lies below is in it already."""
    if not subtree or pattern.text.rpartition(SEPARATOR)[2] == WILDCARD:
        return pattern
    return Subtree(pattern)


def parts_of(watched: Selector) -> tuple[Pattern, ...]:
    """The patterns to scan for: each record is found by exactly one."""
    return watched.parts if isinstance(watched, Subtree) else (watched,)


def concerns(change: Change, watched: Selector) -> bool:
    """Whether one who watches this is to be told of the change."""
    return watched.overlaps(change.key) if change.kind == "clear" else watched.matches(change.key)


def _below(pattern: Pattern) -> tuple[Pattern, ...]:
    try:
        return (Pattern(pattern.text + SEPARATOR + WILDCARD),)
    except InvalidPattern:
        return ()  # too long, and so are the keys that would lie there


class _Node:
    """A place in the tree. Each kind of route holds None, one watcher, or a dict of several."""

    __slots__ = ("below", "children", "here", "tree", "width", "wild")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = _CHILDLESS
        self.here: Any = None  #: of this very key
        self.tree: Any = None  #: of this key and all below it
        self.below: Any = None  #: of all below this key
        self.wild: dict[Any, Selector] | None = None  #: a wildcard next, and more
        #: None where there are none but `here`, else what a key below has to be longer than.
        self.width: int | None = None

    def empty(self) -> bool:
        return self.width is None and self.here is None and not self.children


_CHILDLESS: Final[dict[str, _Node]] = {}  # shared by all leaves, and never changed


class Routes(Generic[T]):
    """Who watches what. What it returns is the caller's own: routes may change meanwhile."""

    __slots__ = ("_root",)

    def __init__(self) -> None:
        self._root: Final = _Node()

    def add(self, watcher: T, watched: Selector) -> None:
        """Have the watcher found for what it watches."""
        levels, kind = _place(watched)
        node = self._root
        for level in levels:
            child = node.children.get(level)
            if child is None:
                child = _Node()
                if node.children:
                    node.children[level] = child
                else:
                    node.children = {level: child}
            node = child
        if kind == "wild":
            if node.wild is None:
                node.wild = {}
            node.wild[watcher] = watched
        else:
            setattr(node, kind, _with(getattr(node, kind), watcher))
        if kind != "here":
            node.width = sum(map(len, levels)) + len(levels)

    def discard(self, watcher: T, watched: Selector) -> None:
        """Undo `add`; without it, do nothing."""
        levels, kind = _place(watched)
        path = [self._root]
        for level in levels:
            child = path[-1].children.get(level)
            if child is None:
                return
            path.append(child)
        node = path[-1]
        if kind == "wild":
            if node.wild is not None:
                node.wild.pop(watcher, None)
                node.wild = node.wild or None
        else:
            setattr(node, kind, _without(getattr(node, kind), watcher))
        if node.tree is None and node.below is None and node.wild is None:
            node.width = None
        for level in reversed(levels):
            if not path.pop().empty():
                return
            above = path[-1]
            del above.children[level]
            above.children = above.children or _CHILDLESS

    def matching(self, key: str) -> list[T]:
        """Those who watch this key."""
        found: list[T] = []
        node = self._root
        for level in key.split(SEPARATOR):
            if node.width is not None:
                _collect_below(node, key, found)
            child = node.children.get(level)
            if child is None:
                return found
            node = child
        if node.here is not None:
            _collect(node.here, found)
        if node.tree is not None:
            _collect(node.tree, found)
        return found

    def overlapping(self, prefix: str) -> list[T]:
        """Those whose keys may begin with this prefix."""
        found: list[T] = []
        *levels, begun = prefix.split(SEPARATOR)
        node = self._root
        for level in levels:
            self._passing(node, prefix, found)
            child = node.children.get(level)
            if child is None:
                return found
            node = child
        self._passing(node, prefix, found)
        # What lies under the last whole level and begins alike is concerned with all below it.
        nodes = [child for level, child in (node.children or {}).items() if level.startswith(begun)]
        while nodes:
            node = nodes.pop()
            for bucket in (node.here, node.tree, node.below):
                _collect(bucket, found)
            found += node.wild or ()
            nodes += node.children.values()
        return found

    def _passing(self, node: _Node, prefix: str, found: list[T]) -> None:
        _collect(node.tree, found)
        _collect(node.below, found)
        if node.wild is not None:
            found += [watcher for watcher, sel in node.wild.items() if sel.overlaps(prefix)]


def _place(watched: Selector) -> tuple[list[str], str]:
    """Where in the tree a watcher belongs: the levels down to it, and which of the routes there."""
    pattern = watched.pattern if isinstance(watched, Subtree) else watched
    levels = pattern.text.split(SEPARATOR)
    if pattern.exact:
        return levels, "tree" if isinstance(watched, Subtree) else "here"
    first = levels.index(WILDCARD)
    return levels[:first], "below" if first == len(levels) - 1 else "wild"


def _with(bucket: Any, watcher: Any) -> Any:
    if bucket is None:
        return watcher
    if type(bucket) is not dict:
        bucket = {bucket: None}
    bucket[watcher] = None
    return bucket


def _without(bucket: Any, watcher: Any) -> Any:
    if type(bucket) is dict:
        bucket.pop(watcher, None)
        return bucket or None
    return None if bucket == watcher else bucket


def _collect(bucket: Any, found: list[Any]) -> None:
    if type(bucket) is dict:
        found += bucket
    elif bucket is not None:
        found.append(bucket)


def _collect_below(node: _Node, key: str, found: list[Any]) -> None:
    # `a.*` and a subscription to `a` are not about `a.`, which has nothing behind the dot.
    if node.width is not None and len(key) > node.width:
        _collect(node.tree, found)
        _collect(node.below, found)
    if node.wild is not None:
        found += [watcher for watcher, sel in node.wild.items() if sel.matches(key)]
