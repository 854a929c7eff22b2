"""What takes several requests, as generators that the clients drive.

A procedure yields a `Call` and is sent its result, or has its error thrown in; or it yields a
`Pause` and is sent None. What it returns is the outcome.
"""

import random
from collections.abc import Callable, Generator
from typing import Any, Final, TypeVar

import msgspec

from nkv_core.client import calls
from nkv_core.client.calls import Call, Page
from nkv_core.client.failures import TOO_LONG
from nkv_core.client.values import Item, Written
from nkv_core.errors import ConditionFailed, NkvError

T = TypeVar("T")


class Pause(msgspec.Struct, frozen=True):
    """Wait so many seconds."""

    seconds: float


Procedure = Generator[Call[Any] | Pause, Any, T]
#: Makes the new value of the present one (None: no record, or delete it).
Compute = Callable[[bytes | None], bytes | None]

_FIRST_PAGE: Final = 64
_LARGEST_PAGE: Final = 1000
_PAGE_BYTES: Final = 1024 * 1024
_LONGEST_PAUSE: Final = 0.5


def update(
    key: str, compute: Compute, *, ttl: float | None, expires: int | None, attempts: int
) -> Procedure[Written | None]:
    """Read, compute and write under the condition that nobody else wrote meanwhile; else again.

    Returns what the write did, or None where nothing was there and nothing is. Raises
    `ConditionFailed` after so many attempts.
    """
    for attempt in range(attempts):
        if attempt:
            # Whoever lost tries again at a time of their own, or the same ones would meet again.
            longest = min(0.01 * 2**attempt, _LONGEST_PAUSE)
            yield Pause(random.uniform(0, longest))  # noqa: S311  # no secret
        item: Item | None = yield calls.get(key)
        value = compute(None if item is None else item.value)
        try:
            if value is not None:
                written: Written = yield calls.put(
                    key,
                    value,
                    ttl=ttl,
                    expires=expires,
                    if_version=None if item is None else item.version,
                    if_absent=item is None,
                )
                return written
            if item is None:
                return None
            yield calls.delete(key, if_version=item.version)
            return Written(version=None, existed=True)
        except ConditionFailed:
            continue
    raise ConditionFailed(f"{key!r} was changed by others in each of {attempts} attempts.")


class Pages:
    """Which page of a scan to ask for next.

    The node bounds a page by its number of records; this keeps its bytes near a goal as well, by
    what the records so far were like, and asks for fewer where a page was too long to be read.
    """

    def __init__(self, pattern: str, after: str | None = None) -> None:
        """Begin behind the key `after`."""
        self._pattern = pattern
        self._after = after
        self._limit = _FIRST_PAGE
        self.done = False

    def next(self) -> Call[Page]:
        """The call for the next page."""
        return calls.scan(self._pattern, after=self._after, limit=self._limit)

    def take(self, page: Page) -> list[Item]:
        """Note what came; returns its records."""
        self._after = page.after
        self.done = page.after is None
        if page.items:
            size = sum(len(item.value) + len(item.key) + 64 for item in page.items)
            fitting = max(_PAGE_BYTES * len(page.items) // size, 1)
            self._limit = min(fitting, 4 * self._limit, _LARGEST_PAGE)
        return page.items

    def failed(self, error: NkvError) -> None:
        """Ask for fewer where the page was too long; raises the error where that cannot help."""
        if error.code != TOO_LONG or self._limit == 1:
            raise error
        self._limit = max(self._limit // 16, 1)
