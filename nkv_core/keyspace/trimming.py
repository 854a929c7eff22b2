"""Trimming: keeps the change log within its bounds, behind the writes that make it grow."""

import logging
from typing import Final

from nkv_core.contracts.settings import KeyspaceSettings
from nkv_core.keyspace.book import Book
from nkv_core.loop import Worker

log = logging.getLogger("nkv.keyspace")

_SLACK: Final = 64  # the log may be over its bound by this part of it, so as to be cut rarely


class Trimmer:
    """Trims the log of one committer, in the thread in which that one writes."""

    __slots__ = ("_book", "_full", "_settings", "_worker", "closed")

    def __init__(self, book: Book, settings: KeyspaceSettings, worker: Worker | None) -> None:
        """`worker` is the thread in which the storage writes, None where it does so inline."""
        self._book: Final = book
        self._settings: Final = settings
        self._worker: Final = worker
        self._full: Final = settings.log_bytes + settings.log_bytes // _SLACK
        self.closed = False  #: whether nothing is to be begun any more

    def look(self) -> None:
        """Look, behind a write, whether there is something to trim. It never raises."""
        if self._book.log.size <= self._full:
            return
        if self._worker is not None:
            self._trim_soon(self._worker)
            return
        try:
            self._trim()
        except Exception as error:  # noqa: BLE001  # the write that led here is done and well
            self._trimmed(None, error)

    async def trim(self) -> bool:
        """Forget some of what the log has beyond its bounds; whether there is more to forget."""
        return self._trim() if self._worker is None else await self._worker.run(self._trim)

    def _trim(self) -> bool:
        oldest = self._book.wall() - round(self._settings.log_age * 1000)
        return self._book.trim(self._settings.log_bytes, oldest)

    def _trim_soon(self, worker: Worker) -> None:
        if not self.closed:
            worker.submit(self._trim, self._trimmed)

    def _trimmed(self, more: bool | None, error: BaseException | None) -> None:
        if more and self._worker is not None:
            self._trim_soon(self._worker)
        if error is not None:
            log.warning("The change log could not be trimmed; trying again later: %s", error)
