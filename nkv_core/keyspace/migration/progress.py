"""Progress: how far a migration is, for people and for `/v1/status`."""

from time import monotonic
from typing import Any, Final, Literal

from nkv_core.errors import NkvError
from nkv_core.records import wall_clock
from nkv_core.times import format_time

Phase = Literal[
    "opening", "copying", "verifying", "switching", "baking", "done", "failed", "rolled_back"
]
ENDS: Final[tuple[Phase, ...]] = ("done", "failed", "rolled_back")


class Progress:
    """What one migration says of itself."""

    def __init__(self, identity: str, source: str, target: str, bake: float) -> None:
        self.id: Final = identity
        self.source: Final = source
        self.target: Final = target
        self.bake: Final = bake  #: seconds
        self.phase: Phase = "opening"
        self.begun: Final = format_time(wall_clock())
        self.total = 0  #: records that there were when copying began
        self.copied = 0
        self.compared = 0
        self.repaired = 0
        self.barriers = 0  #: that were put up
        self.pause = 0.0  #: seconds that writers waited behind the last one
        self.digest: str | None = None
        self.error: NkvError | None = None
        self._started: Final = monotonic()
        self._baking_until = 0.0
        self._seconds: float | None = None

    def enter(self, phase: Phase) -> None:
        """Begin a phase."""
        self.phase = phase
        if phase == "baking":
            self._baking_until = monotonic() + self.bake
        if phase in ENDS:
            self._seconds = monotonic() - self._started

    def copy(self, records: int) -> None:
        """Note that records were copied."""
        self.copied += records

    def compare(self, records: int) -> None:
        """Note that records were compared."""
        self.compared += records

    @property
    def over(self) -> bool:
        """Whether it has come to an end."""
        return self.phase in ENDS

    def shown(self, backlog: int, retries: int) -> dict[str, Any]:
        """For JSON."""
        seconds = monotonic() - self._started if self._seconds is None else self._seconds
        return {
            "id": self.id,
            "from": self.source,
            "to": self.target,
            "phase": self.phase,
            "begun": self.begun,
            "seconds": round(seconds, 3),
            "records": self.total,
            "copied": self.copied,
            "compared": self.compared,
            "repaired": self.repaired,
            "waiting_bytes": backlog,
            "retries": retries,
            "write_pause": round(self.pause, 4),
            "digest": self.digest,
            "baking_for": (
                round(max(self._baking_until - monotonic(), 0.0), 1)
                if self.phase == "baking"
                else None
            ),
            "error": (
                None
                if self.error is None
                else {"code": self.error.code, "detail": self.error.detail}
            ),
        }
