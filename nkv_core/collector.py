"""Python's garbage collector, kept from stopping a node for long.

A full collection looks at every object there is: with thousands of connections open it stops the
process for a second, though next to nothing of that can have become garbage. So what has outlived a
collection that took long is set aside (`gc.freeze`), and the next one looks at what came since.
What is set aside and let go is freed as ever; only what then holds itself in a circle stays. Once
as much was set aside as could hide many such circles, all of it is looked at again.
"""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

#: Seconds of a full collection from which on its survivors are set aside.
LONG: Final = 0.03
#: Objects that may be set aside before all are looked at again; more where more than half live.
ASIDE: Final = 1_500_000

_OLDEST: Final = 2


class Sparing:
    """Is told of each collection, and sets aside what survives the long ones."""

    def __init__(self, long: float = LONG, aside: int = ASIDE) -> None:
        self._long = long
        self._least = self._most = aside
        self._aside = 0
        self._began = 0.0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        """As `gc.callbacks` has it."""
        if info["generation"] != _OLDEST:
            return
        if phase == "start":
            self._began = time.perf_counter()
        elif time.perf_counter() - self._began >= self._long:
            self._set_aside()

    def _set_aside(self) -> None:
        again = self._aside == 0  # all there is has just been looked at
        self._aside += len(gc.get_objects(_OLDEST))
        if again:
            self._most = max(self._least, 2 * self._aside)
        if self._aside < self._most:
            gc.freeze()
        else:
            self.look_at_all()

    def look_at_all(self) -> None:
        """Have the next full collection look at what was set aside as well."""
        gc.unfreeze()
        self._aside = 0


_sparing: Final = Sparing()


def look_at_all() -> None:
    """Have the next full collection look at all there is, for those who must know what is gone."""
    _sparing.look_at_all()


@contextmanager
def sparing_collector() -> Iterator[None]:
    """Keep the collector from stopping this process for long, while within.

    For a process that is a node's own: it is one collector for all that runs in it.
    """
    gc.callbacks.append(_sparing)
    try:
        yield
    finally:
        gc.callbacks.remove(_sparing)
        look_at_all()
