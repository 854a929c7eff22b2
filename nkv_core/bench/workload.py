"""Workload: which operations, on which keys, with which values."""

import bisect
import itertools
import random
from typing import Final, Literal

import msgspec

Distribution = Literal["uniform", "zipfian"]
#: Of the zipfian distribution: how much more often the first keys are asked for (as YCSB has it).
_SKEW: Final = 0.99


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for."""

    seconds: float = 10.0  #: how long
    warm_up: float = 1.0  #: seconds before, which do not count
    connections: int = 32
    pipeline: int = 1  #: requests under way on each connection
    reads: float = 0.5  #: of the operations, from 0 (all are writes) to 1
    value_bytes: int = 100
    keys: int = 10_000
    distribution: Distribution = "uniform"
    prefix: str = "bench."
    seed: int = 0


class Chooser:
    """Chooses the operations of one connection, the same ones for the same seed."""

    def __init__(self, workload: Workload, connection: int) -> None:
        self._random = random.Random(f"{workload.seed}.{connection}")  # noqa: S311  # no secret
        self._reads = workload.reads
        self._keys = [f"{workload.prefix}{number:08d}" for number in range(workload.keys)]
        self._sums: list[float] | None = None
        if workload.distribution == "zipfian":
            weights = (1 / (rank**_SKEW) for rank in range(1, workload.keys + 1))
            self._sums = list(itertools.accumulate(weights))

    def next(self) -> tuple[Literal["get", "set"], str]:
        """The next operation, and its key."""
        operation: Literal["get", "set"] = "get" if self._random.random() < self._reads else "set"
        if self._sums is None:
            return operation, self._keys[int(self._random.random() * len(self._keys))]
        at = bisect.bisect_left(self._sums, self._random.random() * self._sums[-1])
        return operation, self._keys[min(at, len(self._keys) - 1)]


class Times:
    """How long operations took: a histogram with buckets that grow by a twentieth each."""

    _FIRST: Final = 1e-6  # seconds
    _GROWTH: Final = 1.05
    _BOUNDS: Final = [1e-6 * 1.05**number for number in range(400)]

    def __init__(self) -> None:
        self._counts = [0] * (len(self._BOUNDS) + 1)
        self.count = 0
        self.total = 0.0
        self.longest = 0.0

    def note(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect.bisect_left(self._BOUNDS, seconds)] += 1
        self.count += 1
        self.total += seconds
        self.longest = max(self.longest, seconds)

    def add(self, other: "Times") -> None:
        """Count all that another has."""
        self._counts = [one + two for one, two in zip(self._counts, other._counts, strict=True)]
        self.count += other.count
        self.total += other.total
        self.longest = max(self.longest, other.longest)

    def percentile(self, share: float) -> float:
        """The seconds within which this share of them, from 0 to 100, came to an end."""
        wanted = self.count * share / 100
        seen = 0
        for bound, count in zip((*self._BOUNDS, self.longest), self._counts, strict=True):
            seen += count
            if count and seen >= wanted:
                return min(bound, self.longest)
        return self.longest
