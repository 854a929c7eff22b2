"""The order of a table's keys: sorted lists of bounded length, one behind the other.

A dict has no order, so this stands beside it. It holds the very key objects of the dict, 8 bytes
each and some slack. Finding a place costs two binary searches; inserting moves the tail of one
short list and never the whole table, so that no single write stalls the event loop.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import Final

_CHUNK: Final = 512  # keys in a new list; twice as many are split


class KeyIndex:
    """A sorted set of keys. Not thread-safe: its table's lock is held around every call."""

    __slots__ = ("_chunks", "_firsts")

    def __init__(self, keys: Iterable[bytes] = ()) -> None:
        ordered = sorted(keys)
        self._chunks = [ordered[i : i + _CHUNK] for i in range(0, len(ordered), _CHUNK)]
        self._firsts = [chunk[0] for chunk in self._chunks]  # of each chunk, for the first search

    def add(self, key: bytes) -> None:
        """Add a key; one that is there already is left alone."""
        if not self._chunks:
            self._chunks.append([key])
            self._firsts.append(key)
            return
        which = max(bisect_right(self._firsts, key) - 1, 0)
        chunk = self._chunks[which]
        place = bisect_left(chunk, key)
        if place < len(chunk) and chunk[place] == key:
            return
        chunk.insert(place, key)
        self._firsts[which] = chunk[0]
        if len(chunk) > 2 * _CHUNK:
            # A full last chunk most likely grows at its end: leave it full rather than half empty.
            cut = 2 * _CHUNK if which == len(self._chunks) - 1 else _CHUNK
            self._chunks.insert(which + 1, chunk[cut:])
            self._firsts.insert(which + 1, chunk[cut])
            del chunk[cut:]

    def discard(self, key: bytes) -> None:
        """Remove a key; one that is not there is no error."""
        which, place = self._find(key)
        if which < len(self._chunks) and self._chunks[which][place] == key:
            self._cut(which, place, place + 1)

    def ascending(self, start: bytes, stop: bytes | None) -> Iterator[bytes]:
        """The keys with `start <= key < stop` in order. The index must not change meanwhile."""
        which, place = self._find(start)
        end_which, end_place = self._end(stop)
        while which < end_which:
            chunk = self._chunks[which]
            yield from chunk[place:] if place else chunk
            which, place = which + 1, 0
        if which == end_which < len(self._chunks):
            yield from self._chunks[which][place:end_place]

    def descending(self, start: bytes, stop: bytes | None) -> Iterator[bytes]:
        """The keys with `start <= key < stop` in reverse. The index must not change meanwhile."""
        which, place = self._find(start)
        end_which, end_place = self._end(stop)
        if end_which < len(self._chunks) and end_which >= which:
            low = place if end_which == which else 0
            yield from reversed(self._chunks[end_which][low:end_place])
        for middle in range(end_which - 1, which, -1):
            yield from reversed(self._chunks[middle])
        if which < end_which:
            yield from reversed(self._chunks[which][place:])

    def remove_range(self, start: bytes, stop: bytes | None) -> None:
        """Remove the keys with `start <= key < stop`."""
        which, place = self._find(start)
        end_which, end_place = self._end(stop)
        if (which, place) >= (end_which, end_place):
            return
        if which == end_which:
            self._cut(which, place, end_place)
            return
        if end_which < len(self._chunks):
            self._cut(end_which, 0, end_place)
        keep = which + 1 if place else which
        del self._chunks[keep:end_which]
        del self._firsts[keep:end_which]
        if place:
            del self._chunks[which][place:]

    def _find(self, key: bytes) -> tuple[int, int]:
        """Chunk and place of the first key that is not less; behind the last chunk if none is."""
        which = bisect_right(self._firsts, key) - 1
        if which < 0:
            return 0, 0
        place = bisect_left(self._chunks[which], key)
        return (which, place) if place < len(self._chunks[which]) else (which + 1, 0)

    def _end(self, stop: bytes | None) -> tuple[int, int]:
        return (len(self._chunks), 0) if stop is None else self._find(stop)

    def _cut(self, which: int, low: int, high: int) -> None:
        """Remove a slice of one chunk, and the chunk where nothing is left of it."""
        chunk = self._chunks[which]
        del chunk[low:high]
        if chunk:
            self._firsts[which] = chunk[0]
        else:
            del self._chunks[which], self._firsts[which]
