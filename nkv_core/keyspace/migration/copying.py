"""Copying: what was committed before following began, table by table, page by page.

The order matters: clears before the records that they hide. Each page is read at its own moment and
taken only where it is later than what is there, while following goes on.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from time import monotonic
from typing import Final

import anyio

from nkv_core.contracts.storage import Storage, Table
from nkv_core.keyspace.draft import Draft
from nkv_core.keyspace.engine import Engine
from nkv_core.keyspace.layout import META_LOG, Pairs, behind, pack_number
from nkv_core.keyspace.log import pack_mark
from nkv_core.keyspace.migration.following import Follower, persist
from nkv_core.keyspace.migration.replay import take_log, take_records, take_state, take_tombstones
from nkv_core.keyspace.reading import Steps

READ_DEADLINE: Final = 30.0  #: seconds for a page
_PAGE_BYTES: Final = 128 * 1024
_PAGE_ROWS: Final = (32, 500)  # of the first page, and at most
_REST: Final = 0.5  # of the time that a page has taken, in which others have their turn


async def copy_all(follower: Follower, copied: Callable[[int], None]) -> None:
    """Copy what `follower` does not carry over. `copied` is told of numbers of records."""
    leader, heir = follower.leader, follower.heir

    async def take(table: Table, plan: Callable[[Pairs, Draft], None], stop: bytes | None) -> None:
        async with aclosing(pages(leader, table, stop)) as found:
            async for pairs in found:
                begun = monotonic()
                await persist(heir, partial(plan, pairs))
                if table == "records":
                    copied(len(pairs))
                await follower.kept_up()
                await anyio.sleep((monotonic() - begun) * _REST)

    await take("changes", take_log, pack_number(follower.since + 1))
    # Read behind that: what was forgotten meanwhile may be missing in the copy.
    mark = pack_mark(leader.book.log.forgotten, leader.book.clock.last)
    await persist(heir, lambda draft: draft.set_row("meta", META_LOG, mark))
    await persist(heir, lambda draft: draft.book.log.load())
    await take("state", lambda pairs, draft: take_state(pairs, follower.state_rows, draft), None)
    await take("tombstones", take_tombstones, None)
    await take("records", take_records, None)


async def pages(
    engine: Engine, table: Table, stop: bytes | None = None
) -> AsyncGenerator[Pairs, None]:
    """All rows of a table, some at a time, each page as it is when it is asked for."""
    start, rows = b"", _PAGE_ROWS[0]
    while pairs := await engine.read(page(engine.storage, table, start, stop, rows), READ_DEADLINE):
        yield pairs
        if len(pairs) < rows:
            return
        start = behind(pairs[-1][0])
        mean = sum(len(key) + len(value) for key, value in pairs) // len(pairs)
        rows = min(max(_PAGE_BYTES // (mean + 1), 2), _PAGE_ROWS[1])


def page(
    storage: Storage, table: Table, start: bytes, stop: bytes | None, rows: int
) -> Steps[Pairs]:
    """One page, read where the storage wants it."""
    yield from ()
    return storage.scan(table, start, stop, limit=rows)
