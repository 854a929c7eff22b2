"""Follower: reads the change stream for all clients of a transport, as long as one wants it."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from nkv_core.contracts.watch import Changed, Ended, Gap, Hub, Watcher
from nkv_core.keys import EVERYTHING
from nkv_core.records import Change

from .events import events_of
from .pubsub import KEYEVENT, KEYSPACE, Channels
from .tracking import Tracker

#: Changes told in one turn of the event loop.
_AT_ONCE: Final = 256
#: Changes that may wait to be told before some are lost.
_PENDING: Final = 16_384


class Follower:
    """Makes changes into notifications and invalidations."""

    def __init__(
        self,
        hub: Callable[[], Hub],
        channels: Channels,
        tracker: Tracker,
        lost: Callable[[], None],
        log: logging.Logger,
    ) -> None:
        """`lost` is called where subscribers missed something."""
        self._hub = hub
        self._channels = channels
        self._tracker = tracker
        self._lost = lost
        self._log = log
        self._watcher: Watcher | None = None
        self._due = False

    def follow(self) -> None:
        """Read the stream from now on. Raises what the hub raises."""
        if self._watcher is None:
            self._watcher = self._hub().watch(
                EVERYTHING,
                mode="every",
                resync=False,
                wake=self._wake,
                label="resp",
                pending=_PENDING,
            )

    def close(self) -> None:
        """Read it no more. Closing twice does nothing."""
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None

    def _wake(self) -> None:
        # Not within the commit: whoever writes is not to wait for those who are told.
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        self._due = False
        watcher = self._watcher
        if watcher is None:
            return
        items = watcher.take(_AT_ONCE)
        for item in items:
            match item:
                case Changed(change=change):
                    self._changed(change)
                case Gap():
                    self._log.warning("the change stream went on without some clients being told")
                    self._miss()
                case Ended(detail=detail):
                    self._log.warning("the change stream has ended: %s", detail)
                    self._watcher = None
                    self._miss()
                    return
        if items:
            self._wake()

    def _changed(self, change: Change) -> None:
        if not self._channels.empty:
            for event in events_of(change):
                key, name = change.key.encode(), event.encode()
                self._channels.publish(KEYSPACE + key, name, change.key)
                self._channels.publish(KEYEVENT + name, key, change.key)
        if not self._tracker.empty:
            self._tracker.changed(change)

    def _miss(self) -> None:
        self._tracker.flush()
        self._lost()
