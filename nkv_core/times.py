"""Times as the interface writes them: RFC 3339, in UTC, with milliseconds.

An expiry is `2026-01-31T12:00:00.250Z`. A timestamp has its counter behind a `+`:
`2026-01-31T12:00:00.250Z+3`; without one the counter is 0.
"""

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

from nkv_core.errors import BadRequest
from nkv_core.records import counter_of, milliseconds_of, timestamp_at

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_TIME: Final = re.compile(
    r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(?:\.\d{1,9})?(?:[Zz]|[+-]\d{2}:\d{2})", re.ASCII
)
_COUNTER: Final = re.compile(r"\d{1,5}", re.ASCII)


def format_time(milliseconds: int) -> str:
    """Write milliseconds since 1970. Raises `BadRequest` where the year is not 1 to 9999."""
    seconds, fraction = divmod(milliseconds, 1000)
    try:
        return f"{_second(seconds)}.{fraction:03d}Z"
    except OverflowError:
        raise BadRequest(f"{milliseconds} ms since 1970 is no time that has a name.") from None


@lru_cache(maxsize=1024)
def _second(seconds: int) -> str:
    """What is the same for all times of a second."""
    return (_EPOCH + timedelta(seconds=seconds)).isoformat()[:19]


def parse_time(text: str) -> int:
    """Read an RFC 3339 time as milliseconds since 1970, what is finer cut off.

    Raises `BadRequest` where it is none.
    """
    if _TIME.fullmatch(text):
        try:
            return (datetime.fromisoformat(text.upper()) - _EPOCH) // _MILLISECOND
        except (ValueError, OverflowError):
            pass
    raise BadRequest(f"{text[:40]!r} is not a time such as 2026-01-31T12:00:00.250Z.")


def format_timestamp(timestamp: int) -> str:
    """Write a timestamp, its counter always with it. Raises as `format_time`."""
    return f"{format_time(milliseconds_of(timestamp))}+{counter_of(timestamp)}"


def parse_timestamp(text: str) -> int:
    """Read a timestamp: a time and a counter. Raises `BadRequest`."""
    moment, mark, counter = text.partition("Z+")
    if not mark:
        return timestamp_at(parse_time(text))
    if not _COUNTER.fullmatch(counter) or int(counter) >= 1 << 16:
        raise BadRequest(f"{text[:40]!r} is not a timestamp.")
    return timestamp_at(parse_time(moment + "Z"), int(counter))
