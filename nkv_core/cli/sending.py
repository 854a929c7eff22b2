"""Sending many records to a node, in order, and knowing up to which line they are there.

Records go in batches, several under way at a time. Two batches with a key in common never are, so
that the later line wins; and what is acknowledged is always everything up to one line.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import msgspec

from nkv_core.cli.formats import Entry, Skipped
from nkv_core.client import Client, Put
from nkv_core.errors import NkvError

#: A batch is sent once it has so many records or bytes. The node takes bodies of two mebibytes, and
#: JSON makes a third more of what is not text.
BATCH_RECORDS: Final = 1000
BATCH_BYTES: Final = 768 * 1024
IN_FLIGHT: Final = 2  #: one is made or sent while the node works on the other; more gained nothing

#: Errors behind which the same batch may be sent again: its puts have no conditions.
_PASSING: Final = frozenset(
    {"unreachable", "outcome_unknown", "deadline_exceeded", "overloaded", "stopping"}
)
#: Errors that one record of a batch may be the reason for.
_OF_A_RECORD: Final = frozenset({400, 403, 406, 412, 413, 422})
_OF_THE_REQUEST: Final = frozenset({"foreign_origin", "unsupported_media_type"})
_LONGEST_PAUSE: Final = 2.0


class Batch:
    """Records to be sent together."""

    __slots__ = ("entries", "keys", "size", "through")

    def __init__(self) -> None:
        self.entries: Final[list[Entry]] = []
        self.keys: Final[set[str]] = set()
        self.size = 0
        #: The last line that is dealt with once this batch is.
        self.through = 0

    def add(self, entry: Entry) -> None:
        """Take one more record."""
        self.entries.append(entry)
        self.keys.add(entry.key)
        self.size += len(entry.key) + len(entry.value)

    @property
    def full(self) -> bool:
        """Whether it is time to send it."""
        return len(self.entries) >= BATCH_RECORDS or self.size >= BATCH_BYTES


class Sent(msgspec.Struct, frozen=True):
    """A batch that the node has acknowledged."""

    through: int  #: everything up to this line is dealt with
    imported: int
    skipped: list[Skipped]  #: what the node refused, and why


class Sender:
    """Sends batches with a few threads. Used by one thread, as a context manager."""

    def __init__(self, client: Client, patience: float) -> None:
        """`patience`: seconds to go on trying where the node does not answer or is overloaded."""
        self._client: Final = client
        self._patience: Final = patience
        self._stopped: Final = threading.Event()
        self._threads: Final = ThreadPoolExecutor(IN_FLIGHT, "nkv-import")
        self._under_way: Final[deque[tuple[Batch, Future[Sent]]]] = deque()

    def __enter__(self) -> "Sender":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._threads.shutdown(cancel_futures=True)

    def stop(self) -> None:
        """Try nothing again from now on."""
        self._stopped.set()

    def send(self, batch: Batch) -> Iterator[Sent]:
        """Send a batch; gives those that were acknowledged meanwhile, in order.

        It waits while too many are under way, or one that has a key of this one. Raises the error
        of the first batch that could not be sent; what came behind it may be there or not.
        """
        while self._under_way and (self._under_way[0][1].done() or self._must_wait(batch)):
            yield self._next()
        self._under_way.append((batch, self._threads.submit(self._post, batch)))

    def finish(self) -> Iterator[Sent]:
        """Wait for all that is under way. Raises as `send`."""
        while self._under_way:
            yield self._next()

    def _must_wait(self, batch: Batch) -> bool:
        return len(self._under_way) >= IN_FLIGHT or any(
            not batch.keys.isdisjoint(other.keys) for other, _ in self._under_way
        )

    def _next(self) -> Sent:
        sent = self._under_way[0][1].result()
        self._under_way.popleft()
        return sent

    # --- in the threads ---------------------------------------------------------------------------

    def _post(self, batch: Batch) -> Sent:
        skipped = list(self._put_or_split(batch.entries))
        return Sent(batch.through, len(batch.entries) - len(skipped), skipped)

    def _put_or_split(self, entries: Sequence[Entry]) -> Iterator[Skipped]:
        """Put all; where the node refuses them, find the ones that it refuses by halving."""
        try:
            self._put(entries)
        except NkvError as error:
            if error.status not in _OF_A_RECORD or error.code in _OF_THE_REQUEST:
                raise
            if len(entries) == 1:
                yield Skipped(entries[0].line, f"{error.detail} ({error.code})")
                return
            middle = len(entries) // 2
            yield from self._put_or_split(entries[:middle])
            yield from self._put_or_split(entries[middle:])

    def _put(self, entries: Sequence[Entry]) -> None:
        """Put all or none; tries again while the node does not answer."""
        puts = [Put(entry.key, entry.value, expires=entry.expires) for entry in entries]
        end = time.monotonic() + self._patience
        pause = 0.05
        while True:
            try:
                self._client.batch(puts)
            except NkvError as error:
                if error.code not in _PASSING or time.monotonic() + pause > end:
                    raise
                if self._stopped.wait(pause):
                    raise
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                return
