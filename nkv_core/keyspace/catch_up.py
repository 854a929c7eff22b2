"""Catching up: what has to be waited for to serve a watcher, read a page at a time.

A watcher whose place lies before the stream in memory is read the keyspace's log; one that begins
with a snapshot is read the store. A few tasks do that for all watchers in turn, one page for each,
and no next page before the last one has been taken: a watcher that does not read costs one page.
"""

import logging
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import msgspec
from anyio import create_task_group, fail_after, sleep
from anyio.lowlevel import checkpoint

from nkv_core.contracts.keyspace import ChangePage, Keyspace
from nkv_core.contracts.watch import (
    Changed,
    Gap,
    Item,
    SnapshotEnd,
    WatchSettings,
)
from nkv_core.errors import NkvError, NotSupportedHere
from nkv_core.keyspace.routing import concerns
from nkv_core.keyspace.snapshot import Scan
from nkv_core.keyspace.stream import OVERHEAD, gather, size_of
from nkv_core.keyspace.watcher import Feed, HubWatcher, Reading
from nkv_core.loop import Waiter
from nkv_core.records import Record, Token

_CACHED_PAGES: Final = 8
_MOST: Final = 1000  # records or changes asked for at once
_LEAST: Final = 16
_LONGEST_PAUSE: Final = 2.0
_log = logging.getLogger("nkv.watch")

T = TypeVar("T")


class LogPage(msgspec.Struct, frozen=True):
    """Changes read from the log: all behind the revision `start`, up to and with `end`."""

    start: int
    end: int
    entries: list[Changed]
    gap: bool


class CatchUp:
    """Reads for the watchers of one hub."""

    def __init__(self, settings: WatchSettings, keyspace: Keyspace) -> None:
        self.keyspace = keyspace
        self.feed: Feed  #: set by the hub, which makes both
        self.gaps = 0  #: told so far
        self.pages = 0  #: read so far
        self._settings: Final = settings
        self._epoch = 0
        self._wanted: Final[OrderedDict[HubWatcher, None]] = OrderedDict()
        self._busy: Final[dict[HubWatcher, bool]] = {}  # and whether they are wanted again
        self._idle: Final[list[Waiter]] = []
        self._arrivals: Final[list[Waiter]] = []
        self._cache: Final[deque[LogPage]] = deque(maxlen=_CACHED_PAGES)
        self._limit = _MOST

    # --- called by the hub and the watchers ---

    def want(self, watcher: HubWatcher) -> None:
        """Have a page read for the watcher; it is roused when there is something to take."""
        if watcher in self._busy:
            self._busy[watcher] = True
            return
        self._wanted[watcher] = None
        if self._idle:
            self._idle.pop().wake()

    def drop(self, watcher: HubWatcher) -> None:
        """Read no more for the watcher."""
        self._wanted.pop(watcher, None)

    def begin_anew(self, keyspace: Keyspace) -> None:
        """What was read, or is being read, is of another history or keyspace."""
        self.keyspace = keyspace
        self._epoch += 1
        self._cache.clear()
        self.arrived()

    def arrived(self) -> None:
        """The stream has grown, or is another one."""
        if self._arrivals:
            for waiter in self._arrivals:
                waiter.wake()
            self._arrivals.clear()

    async def run(self, started: Callable[[], None]) -> None:
        """Read for watchers until cancelled."""
        async with create_task_group() as tasks:
            for _ in range(self._settings.readers):
                tasks.start_soon(self._read_for_all)
            started()

    # --- the reading tasks ---

    async def _read_for_all(self) -> None:
        while True:
            watcher = await self._next()
            self._busy[watcher] = False
            again = False
            try:
                again = await self._serve(watcher)
            finally:
                again |= self._busy.pop(watcher)
            if again and not watcher.closed:
                self.want(watcher)

    async def _next(self) -> HubWatcher:
        """The watcher that has waited longest. Yields to others in any case."""
        await checkpoint()
        while not self._wanted:
            self._cache.clear()
            waiter = self.feed.waiter()
            self._idle.append(waiter)
            try:
                await waiter.wait()
            finally:
                if waiter in self._idle:
                    self._idle.remove(waiter)
        return self._wanted.popitem(last=False)[0]

    async def _serve(self, watcher: HubWatcher) -> bool:
        """Read a page for the watcher; returns whether it is to have another turn."""
        try:
            again = await self._step(watcher)
        except (NkvError, TimeoutError, OSError) as error:
            return await self._failed(watcher, error)
        except Exception:  # noqa: BLE001  # a fault met for one watcher must not end the others
            _log.exception("Reading for watcher %d (%s) failed.", watcher.id, watcher.label)
            watcher.end("internal", "Reading for this watcher failed; the log has the reason.")
            return False
        if watcher.reading is not None:
            watcher.reading.tries = 0
        return again

    async def _step(self, watcher: HubWatcher) -> bool:
        reading = watcher.reading
        ready = reading is not None and reading.buffer
        if not ready and reading is not None and reading.scan is not None:
            return await self._snapshot(watcher, reading, reading.scan)
        if not ready and watcher.state == "behind" and watcher.cursor < self.feed.stream.floor:
            return await self._from_log(watcher)
        watcher.rouse()
        return False

    async def _failed(self, watcher: HubWatcher, error: Exception) -> bool:
        """Try again after a pause, until it has failed for too long."""
        if watcher.state == "ended":
            return False
        if watcher.reading is None:
            watcher.reading = Reading([])
        reading = watcher.reading
        now = self.feed.clock()
        if not reading.tries:
            reading.failing = now
            _log.warning("Reading for watcher %d (%s): %s", watcher.id, watcher.label, error)
        reading.tries += 1
        if now - reading.failing >= self._settings.give_up or isinstance(error, NotSupportedHere):
            code = error.code if isinstance(error, NkvError) else "storage_failed"
            watcher.end(code, str(error) or "The store did not answer in time.")
            return False
        await sleep(min(0.05 * 2 ** min(reading.tries, 10), _LONGEST_PAUSE))
        return True

    # --- the log ---

    async def _from_log(self, watcher: HubWatcher) -> bool:
        page = await self._read_log(watcher.cursor)
        if page is None or watcher.state != "behind":
            return True
        end, entries = self._use(page, watcher.cursor)
        stream = self.feed.stream
        buffer: list[Item] = []
        if page.gap:
            self.gaps += 1
            after = stream.token(watcher.cursor)
            if watcher.resync or (watcher.resync is None and watcher.resuming):
                watcher.resnap(Gap(after, stream.token(), resync=True))
                watcher.rouse()
                return False
            upto = _revision(entries[0]) - 1 if entries else end
            buffer.append(Gap(after, stream.token(upto), resync=False))
        watcher.resuming = False
        buffer += gather(entries, watcher.watched, watcher.mode, len(entries) + 1)[1]
        watcher.cursor = end
        if not buffer and end < stream.floor:
            return True
        self._give(watcher, buffer)
        return False

    async def _read_log(self, cursor: int) -> LogPage | None:
        """The changes behind a revision; None where the history has changed meanwhile."""
        for page in self._cache:
            if page.start <= cursor < page.end:
                return page
        epoch, history = self._epoch, self.feed.stream.history
        try:
            with fail_after(self._settings.read_deadline):
                read = await self.keyspace.changes(Token(history, cursor), limit=self._limit)
        except NotSupportedHere:  # it keeps no log: what the stream has not is lost
            read = ChangePage([], self.feed.stream.token(), gap=True)
        if epoch != self._epoch:
            return None
        self.pages += 1
        most = self._settings.page_bytes
        kept, size = _within(read.changes, 4 * most, size_of)
        self._limit = _fitting(most, size, len(kept))
        end = read.token.revision if len(kept) == len(read.changes) else kept[-1].revision
        page = LogPage(cursor, end, [Changed(change, history) for change in kept], read.gap)
        if kept and not page.gap:
            self._cache.append(page)
        return page

    def _use(self, page: LogPage, cursor: int) -> tuple[int, list[Changed]]:
        """What a page has behind a cursor for which the stream does not stand, and up to where."""
        floor = self.feed.stream.floor
        # Where the log has nothing at all behind the cursor, only revisions never used lie between.
        end = min(page.end, floor) if page.entries else floor
        first = bisect_right(page.entries, cursor, key=_revision)
        return end, page.entries[first : bisect_right(page.entries, end, key=_revision)]

    def _give(self, watcher: HubWatcher, buffer: list[Item]) -> None:
        if watcher.reading is None:
            watcher.reading = Reading([])
        watcher.reading.buffer = buffer
        watcher.rouse()

    # --- snapshots ---

    async def _snapshot(self, watcher: HubWatcher, reading: Reading, scan: Scan) -> bool:
        stream = self.feed.stream
        if not scan.begun:
            watcher.cursor = stream.head  # nothing was sent, so nothing can have become wrong
        elif watcher.cursor < stream.floor:
            return await self._amend(watcher, reading, scan)
        part, epoch = scan.parts[scan.part], self._epoch
        with fail_after(self._settings.read_deadline):
            first: list[Record] = []
            if scan.root is not None and not scan.begun:
                first = (await self.keyspace.scan(scan.root, limit=1)).records
            page = await self.keyspace.scan(part, after=scan.after, limit=scan.limit)
            # A record may be read before its change has been told.
            revisions = [record.revision for record in (*first, *page.records)]
            await self._reached(max(revisions, default=0), epoch)
        self.pages += 1
        came = await self._came(watcher, reading, epoch)
        if came is None:
            return True
        most = self._settings.page_bytes
        records, size = _within(page.records, most, _size_of_record)
        scan.limit = _fitting(most, size, len(records))
        last = page.after if len(records) == len(page.records) else records[-1].key
        buffer = scan.merge([*first, *records], last, came)
        watcher.cursor = stream.head
        if scan.done:
            buffer.append(SnapshotEnd(stream.token()))
            watcher.state = "behind"
            watcher.resuming = False
            reading.scan = None
        if not buffer:
            return True
        self._give(watcher, buffer)
        return False

    async def _came(
        self, watcher: HubWatcher, reading: Reading, epoch: int
    ) -> list[Changed] | None:
        """The watched changes behind the cursor, up to the head; None where that cannot be told."""
        stream, cursor = self.feed.stream, watcher.cursor
        came: list[Changed] = []
        while epoch == self._epoch and watcher.reading is reading:
            if cursor >= stream.floor:
                came += stream.between(stream.behind(cursor), stream.next)
                return gather(came, watcher.watched, watcher.mode, len(came) + 1)[1]
            page = await self._read_log(cursor)  # the page took so long that memory has gone on
            if page is None or page.gap:
                return None
            cursor, entries = self._use(page, cursor)
            came += [entry for entry in entries if concerns(entry.change, watcher.watched)]
        return None

    async def _amend(self, watcher: HubWatcher, reading: Reading, scan: Scan) -> bool:
        """Send what has happened to the records already sent, as far as it is in the log only."""
        page = await self._read_log(watcher.cursor)
        if page is None or watcher.reading is not reading:
            return True
        stream = self.feed.stream
        if page.gap:  # its owner is too slow for the log
            self.gaps += 1
            watcher.resnap(Gap(stream.token(watcher.cursor), stream.token(), resync=True))
            watcher.rouse()
            return False
        watcher.cursor, entries = self._use(page, watcher.cursor)
        told = gather(entries, watcher.watched, watcher.mode, len(entries) + 1)[1]
        buffer = scan.amends(told)
        if not buffer:
            return True
        self._give(watcher, buffer)
        return False

    async def _reached(self, revision: int, epoch: int) -> None:
        """Wait until the stream has come so far."""
        while self.feed.stream.head < revision and epoch == self._epoch:
            waiter = self.feed.waiter()
            self._arrivals.append(waiter)
            try:
                await waiter.wait()
            finally:
                if waiter in self._arrivals:
                    self._arrivals.remove(waiter)


def _revision(entry: Changed) -> int:
    return entry.change.revision


def _size_of_record(record: Record) -> int:
    return OVERHEAD + len(record.key) + len(record.value)


def _within(items: Sequence[T], most: int, size_of_one: Callable[[T], int]) -> tuple[list[T], int]:
    """The first of the items that fit into so many bytes, one at least; and their bytes."""
    kept: list[T] = []
    size = 0
    for item in items:
        size += size_of_one(item)
        if kept and size > most:
            return kept, size
        kept.append(item)
    return kept, size


def _fitting(most: int, size: int, count: int) -> int:
    """How many to ask for next, so that they make about so many bytes."""
    return _MOST if not count else max(_LEAST, min(_MOST, most * count // size))
