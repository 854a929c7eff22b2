"""Tally: counts requests for `/metrics`, cheaply enough to be done for each of them."""

from typing import Any, Final

from nkv_core.contracts.context import Measurement
from nkv_core.contracts.handlers import Reply
from nkv_core.errors import NkvError

#: Combinations of transport, command and code that are told apart. Codes and commands are a
#: plugin's to choose, so that there has to be a bound; beyond it they count as `other`.
MOST: Final = 2000


class Tally:
    """Requests that have ended, by transport, command and code."""

    __slots__ = ("_ended",)

    def __init__(self) -> None:
        self._ended: dict[tuple[str, str, str], list[float]] = {}

    def note(
        self, transport: str, command: str, outcome: Any, error: NkvError | None, elapsed: float
    ) -> None:
        """Count a request that took `elapsed` seconds.

        Its code is that of its error, the status of a `Reply` from 400 on, and `ok` otherwise.
        """
        code = "ok"
        if error is not None:
            code = error.code
        elif type(outcome) is Reply and outcome.status >= 400:
            code = str(outcome.status)
        counted = self._ended.get((transport, command, code))
        if counted is None:
            if len(self._ended) >= MOST:
                command = code = "other"
            counted = self._ended.setdefault((transport, command, code), [0, 0.0])
        counted[0] += 1
        counted[1] += elapsed

    def measurements(self, begun: int) -> list[Measurement]:
        """What was counted; `begun` is how many requests there ever were."""
        labelled = [
            ({"transport": transport, "command": command, "code": code}, counted)
            for (transport, command, code), counted in sorted(self._ended.items())
        ]
        return [
            Measurement(
                "nkv_requests_total",
                "counter",
                "Requests that have ended.",
                [(labels, counted[0]) for labels, counted in labelled],
            ),
            Measurement(
                "nkv_request_seconds_total",
                "counter",
                "Seconds that these requests took, replies included.",
                [(labels, counted[1]) for labels, counted in labelled],
            ),
            Measurement(
                "nkv_requests_in_flight",
                "gauge",
                "Requests under way, open streams included.",
                [({}, begun - sum(counted[0] for _, counted in labelled))],
            ),
        ]
