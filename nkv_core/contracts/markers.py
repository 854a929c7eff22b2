"""The two markers of nkv's hooks: `hookspec` declares one, `hookimpl` implements one."""

from collections.abc import Callable
from typing import Any, Final, TypeVar, overload

import pluggy

PROJECT: Final = "nkv"
PRIORITY_ATTRIBUTE: Final = "nkv_priority"

F = TypeVar("F", bound=Callable[..., Any])

hookspec = pluggy.HookspecMarker(PROJECT)
_hookimpl = pluggy.HookimplMarker(PROJECT)


@overload
def hookimpl(function: F) -> F: ...
@overload
def hookimpl(*, priority: int = ..., specname: str | None = ...) -> Callable[[F], F]: ...
def hookimpl(
    function: F | None = None, *, priority: int = 0, specname: str | None = None
) -> F | Callable[[F], F]:
    """Mark a function as the implementation of a hook.

    `priority`: listeners with a smaller one are called earlier; those with the same are called in
    the order in which their plugins were first loaded. `specname`: the hook, where the function has
    another name.
    """

    def mark(marked: F) -> F:
        setattr(marked, PRIORITY_ATTRIBUTE, priority)
        return _hookimpl(specname=specname)(marked)

    return mark if function is None else mark(function)
