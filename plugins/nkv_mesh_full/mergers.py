"""Two mergers: a counter and a set, which only grow.

A value that is not of a merger's form counts as the least there can be; of two such the later
holds. Of two expiries the later holds, and never is the latest.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from nkv_core.contracts.mesh import Merger
from nkv_core.records import Record

F = TypeVar("F")

_encode: Final = msgspec.json.Encoder(order="sorted").encode


class CounterMerger:
    """Values `{"WRITER": NUMBER, ...}`, the count being their sum: each writer adds to its own
    number, and of two numbers of a writer the greater holds.
    """

    def merge(self, ours: Record, theirs: Record) -> Record:
        """Both counts together."""
        return _merged(ours, theirs, dict[str, int], _greater)


class SetMerger:
    """Values `["MEMBER", ...]`: what is in either is in both."""

    def merge(self, ours: Record, theirs: Record) -> Record:
        """Both sets together."""
        return _merged(ours, theirs, list[str], lambda one, two: sorted({*one, *two}))


MERGERS: Final[dict[str, Callable[[], Merger]]] = {"counter": CounterMerger, "set": SetMerger}


def _greater(one: dict[str, int], two: dict[str, int]) -> dict[str, int]:
    return {
        writer: max(side[writer] for side in (one, two) if writer in side)
        for writer in {*one, *two}
    }


def _merged(ours: Record, theirs: Record, form: type[F], join: Callable[[F, F], F]) -> Record:
    found: list[Any] = []
    for record in (ours, theirs):
        try:
            found.append(msgspec.json.decode(record.value, type=form))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            found.append(None)
    one, two = found
    if one is None and two is None:
        later = max(ours, theirs, key=lambda record: (record.modified, record.origin, record.value))
        value = later.value
    else:
        # One alone is joined with itself, so that it comes out in the form that both would give.
        first, second = one if one is not None else two, two if two is not None else one
        value = _encode(join(first, second))
    return msgspec.structs.replace(ours, value=value, expires=_later(ours.expires, theirs.expires))


def _later(one: int | None, two: int | None) -> int | None:
    return None if one is None or two is None else max(one, two)
