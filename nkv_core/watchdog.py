"""Watchdog: a thread that names the plain listener which blocks the event loop, while it does.

A plain function cannot be stopped from outside, so what can be done is to say whose it is and where
it hangs. The bus notes in a `Watch` what it calls; the thread looks there a few times a second.
"""

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Final

log: Final = logging.getLogger(__name__)

#: Frames shown, from the innermost outwards.
FRAMES: Final = 16
#: Seconds that stopping waits for the thread, which wakes at once unless it is writing a log.
STOP_DEADLINE: Final = 1.0


class Watch:
    """What the event loop is calling just now, and since when. Written by the loop alone.

    `since` is to be set before `what`: read between the two, a call seems younger, never older.
    """

    __slots__ = ("since", "what")

    def __init__(self) -> None:
        self.what: object = None
        self.since = 0.0  #: by `time.perf_counter`


class Watchdog:
    """Watches one event loop, from `start` to `stop`, both of which are called on that loop."""

    def __init__(
        self, watch: Watch, budget: float, describe: Callable[[object], str] = str
    ) -> None:
        """`budget` is how many seconds a call may take; `describe` says what `watch.what` is."""
        self._watch = watch
        self._budget = budget
        self._describe = describe
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    @property
    def running(self) -> bool:
        """Whether the thread is there."""
        return self._thread is not None

    def start(self) -> None:
        """Watch the thread that calls this. Starting twice does nothing."""
        if self._thread is None:
            self._stopped = threading.Event()
            self._thread = threading.Thread(
                target=self._look,
                args=(threading.get_ident(), self._stopped),
                name="nkv-watchdog",
                daemon=True,
            )
            self._thread.start()

    def stop(self) -> None:
        """Watch no more. Stopping twice does nothing."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stopped.set()
            thread.join(STOP_DEADLINE)

    def _look(self, loop_thread: int, stopped: threading.Event) -> None:
        watch, budget = self._watch, self._budget
        named = 0.0  # when the call began that was named last: each is named once
        while not stopped.wait(budget / 2):
            what, since = watch.what, watch.since
            blocked = time.perf_counter() - since
            if what is None or since == named or blocked <= budget:
                continue
            frame = sys._current_frames().get(loop_thread)
            stack = traceback.format_stack(frame, FRAMES) if frame is not None else []
            del frame  # it holds all that the blocked call holds
            if watch.what is not what or watch.since != since:
                continue  # it has just ended, and the stack is somebody else's
            named = since
            log.warning(
                "%s has been blocking the node for %.2f s:\n%s",
                self._describe(what),
                blocked,
                "".join(stack),
            )
            del what
