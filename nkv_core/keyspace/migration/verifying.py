"""Verifying: both storages are compared by digest, page by page, while they are written.

Pages whose digests differ are looked at key by key. What differs only because one side was read a
moment later is the same when it is looked at again; what still differs after some rounds is put
right behind the barrier, where nothing moves.
"""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from time import monotonic
from typing import Final

import anyio

from nkv_core.errors import MigrationFailed
from nkv_core.keyspace.engine import Engine
from nkv_core.keyspace.layout import Pairs, behind
from nkv_core.keyspace.migration.copying import READ_DEADLINE, page
from nkv_core.keyspace.migration.following import Follower
from nkv_core.keyspace.reading import Steps
from nkv_core.records import unpack_record

_ROWS: Final = 500
_ROUNDS: Final = 5
MOST_DIFFERENT: Final = 1000  #: keys that are put right behind the barrier
_REST: Final = 0.5


async def verify(follower: Follower, compared: Callable[[int], None]) -> tuple[set[bytes], str]:
    """Compare the records; returns the keys that still differ, and a digest of what was compared.

    Raises `MigrationFailed` where they are too many.
    """
    leader, heir = follower.leader, follower.heir
    whole = blake2b(digest_size=16)
    different: set[bytes] = set()
    start: bytes | None = b""
    while start is not None:
        begun = monotonic()
        here = await leader.read(page(leader.storage, "records", start, None, _ROWS), READ_DEADLINE)
        stop = behind(here[-1][0]) if len(here) == _ROWS else None
        there = await _all_of(heir, start, stop)
        here, there = _visible(leader, here), _visible(heir, there)
        digest = _digest(here)
        if digest != _digest(there):
            different |= {key for key, _ in set(here) ^ set(there)}
        whole.update(digest)
        compared(len(here))
        start = stop
        if len(different) > 2 * MOST_DIFFERENT:
            different = await _still_different(follower, different)
        await anyio.sleep((monotonic() - begun) * _REST)
    for _ in range(_ROUNDS):
        if not different:
            break
        different = await _still_different(follower, different)
    if len(different) > MOST_DIFFERENT:
        raise MigrationFailed(f"{len(different)} records differ between the two storages.")
    return different, whole.hexdigest()


async def _all_of(engine: Engine, start: bytes, stop: bytes | None) -> Pairs:
    found: Pairs = []
    while True:
        some = await engine.read(page(engine.storage, "records", start, stop, _ROWS), READ_DEADLINE)
        found += some
        if len(some) < _ROWS:
            return found
        start = behind(some[-1][0])


async def _still_different(follower: Follower, keys: set[bytes]) -> set[bytes]:
    """Those of the keys that differ for another reason than that of being written."""
    leader, heir = follower.leader, follower.heir
    left: set[bytes] = set()
    for some in _parts(sorted(keys)):
        here = await rows_of(leader, some)
        await follower.caught_up()
        there = await rows_of(heir, some)
        left.update(key for key in some if here.get(key) != there.get(key))
    return left


def _parts(keys: list[bytes]) -> list[list[bytes]]:
    return [keys[begin : begin + _ROWS] for begin in range(0, len(keys), _ROWS)]


async def rows_of(engine: Engine, keys: Sequence[bytes]) -> dict[bytes, bytes]:
    """The rows of these keys that can be seen."""
    return dict(_visible(engine, await engine.read(_rows(engine, keys), READ_DEADLINE)))


def _rows(engine: Engine, keys: Sequence[bytes]) -> Steps[Pairs]:
    yield from ()
    return list(engine.storage.get_many("records", keys).items())


def _visible(engine: Engine, pairs: Pairs) -> Pairs:
    """The rows that no clear hides: how far these are reclaimed differs."""
    clears = engine.book.clears.active
    if not clears:
        return pairs
    return [pair for pair in pairs if not clears.hides(unpack_record(pair[0].decode(), pair[1]))]


def _digest(pairs: Pairs) -> bytes:
    found = blake2b(digest_size=16)
    for key, value in pairs:
        found.update(b"%d %d " % (len(key), len(value)))
        found.update(key)
        found.update(value)
    return found.digest()
