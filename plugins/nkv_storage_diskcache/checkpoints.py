"""Checkpoints: what the write-ahead log has is moved into the file, beside the writer.

SQLite's own way is to have the commit that finds the log long do all of it, which holds that commit
up, and all behind it, for a fifth of a second. A checkpoint of kind `PASSIVE` waits for nobody and
holds up nobody, so here a thread with a connection of its own makes them: often, because a commit
may have to wait while the system writes what one has moved. The log begins anew only where a commit
finds that nothing of it remains to be moved. So once it is long, what was committed during one is
moved by the next, ever smaller one, and the smallest of them is left to the writer.
"""

import sqlite3
from pathlib import Path
from threading import Condition, Lock, Thread
from typing import Final

from .file import connect, data_file
from .settings import CHECKPOINT_PAGES, LONG_PAGES

PASSIVE: Final = "PRAGMA wal_checkpoint(PASSIVE)"
_SMALL: Final = 250  # pages: what the writer can be asked to move
_PASSES: Final = 6


class Checkpoints:
    """Makes the checkpoints of one open file. The thread begins with the first one."""

    def __init__(
        self, directory: Path, pages: int = CHECKPOINT_PAGES, long: int = LONG_PAGES
    ) -> None:
        """One is made whenever about so many `pages` were written; a log of `long` begins anew."""
        self._directory: Final = directory
        self._due: Final = pages
        self._long: Final = long
        self._written = 0
        self._wanted = self._closed = False
        self._told: Final = Condition()
        self._thread: Thread | None = None
        #: Held while one is made. Whoever cannot bear one beside his own holds it too.
        self.making: Final = Lock()
        #: Whether the writer is to make the last one.
        self.last = False

    def note(self, pages: int) -> None:
        """Note that about so many pages were written; for the writer."""
        self._written += pages
        if self._written < self._due:
            return
        self._written = 0
        with self._told:
            if self._closed:
                return
            self._wanted = True
            if self._thread is None:
                self._thread = Thread(target=self._run, name="nkv-checkpoints", daemon=True)
                self._thread.start()
            self._told.notify()

    def close(self) -> None:
        """Finish the one that is being made, and make no more."""
        with self._told:
            self._closed = True
            self._told.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        connection: sqlite3.Connection | None = None
        try:
            while self._wait():
                try:
                    if connection is None:
                        connection = connect(data_file(self._directory), "rw")
                    self._make(connection)
                except sqlite3.Error:
                    # The disk is full, say. The log grows until the writer fails by itself.
                    continue
        finally:
            if connection is not None:
                connection.close()

    def _wait(self) -> bool:
        with self._told:
            while not (self._wanted or self._closed):
                self._told.wait()
            self._wanted = False
            return not self._closed

    def _make(self, connection: sqlite3.Connection) -> None:
        before = 0
        for _ in range(_PASSES):
            if self._closed:
                return
            with self.making:
                (_, pages, _) = connection.execute(PASSIVE).fetchone()
            if pages < self._long:
                return
            if pages - before < _SMALL:
                break
            before = pages
        self.last = True
