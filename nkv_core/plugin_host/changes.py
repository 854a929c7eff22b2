"""Change feed: tells one generation's `nkv_changed` listeners of every change, off the write path.

It is a watcher of the hub like any other. A listener may take its time: the feed falls behind, and
where it falls too far behind, the hub says what range was missed.
"""

import logging
from collections.abc import Sequence
from typing import Final

from anyio import Event

from nkv_core.bus import Listener
from nkv_core.contracts.owner import Owner
from nkv_core.contracts.watch import Changed, Ended, Gap, Hub, Item
from nkv_core.keys import EVERYTHING
from nkv_core.plugin_host.blame import whole_story

_LOGGED: Final = 10

log = logging.getLogger("nkv.plugins")


class ChangeFeed:
    """Follows the change stream from when it is made until `finish`, and what was told by then."""

    def __init__(self, owner: Owner, listeners: Sequence[Listener], hub: Hub) -> None:
        self._owner = owner
        self._listeners = sorted(listeners, key=lambda listener: listener.priority)
        self._hub = hub
        self._watcher = hub.watch(EVERYTHING, resync=False, label=f"plugin {owner.name}")
        self._until: int | None = None
        self._errors = 0
        self.finished: Final = Event()

    def finish(self) -> None:
        """Tell what was committed until now, and nothing behind it."""
        self._until = self._hub.token.revision
        if self._is_through():
            self._watcher.close()

    def close(self) -> None:
        """Tell nothing any more."""
        self._watcher.close()

    async def run(self) -> None:
        """Tell, until finished or closed."""
        try:
            while items := await self._watcher.read():
                for item in items:
                    await self._tell(item)
                    if self._until is not None and _is_behind(item, self._until):
                        self._watcher.close()
                        break
                if self._is_through():
                    self._watcher.close()
        finally:
            self._watcher.close()
            self.finished.set()

    def _is_through(self) -> bool:
        token = self._watcher.token
        return self._until is not None and token is not None and token.revision >= self._until

    async def _tell(self, item: Item) -> None:
        if isinstance(item, Changed):
            for listener in self._listeners:
                try:
                    result = listener.call(item.change)
                    if result is not None and hasattr(result, "__await__"):
                        await result
                except Exception as error:  # noqa: BLE001  # a listener's error stops here
                    self._failed(error)
        elif isinstance(item, Gap):
            log.warning(
                "%s was too slow for the change stream: its listener misses the changes behind"
                " %s, up to %s.",
                self._owner.name,
                item.after,
                item.upto,
            )
        elif isinstance(item, Ended):
            log.warning("%s is told of no more changes: %s", self._owner.name, item.detail)

    def _failed(self, error: Exception) -> None:
        self._errors += 1
        if self._errors <= _LOGGED or self._errors % 1000 == 0:
            log.error(
                "A listener of changes of %s failed, %d times so far.\n%s",
                self._owner.name,
                self._errors,
                whole_story(error),
            )


def _is_behind(item: Item, until: int) -> bool:
    return item.token is not None and item.token.revision >= until
