"""Changes: what is asked over the admin socket that changes the node: recorded, not too often."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Final

from nkv_core.admin.server import Call, Caller
from nkv_core.errors import NkvError, Overloaded

if TYPE_CHECKING:
    from nkv_core.plugin_host.audit import Attempt, Audit

_MINUTE: Final = 60.0  #: seconds


class Changes:
    """Lets changes through, so many in a minute, and has each attempt recorded."""

    def __init__(self, audit: "Audit", most: int) -> None:
        """`most` is how many may be made within any minute."""
        self._audit = audit
        self._most = most
        self._times: deque[float] = deque()
        self._told = False

    @contextmanager
    def attempt(
        self, call: Call, *, plugin: str | None = None, spec: str | None = None
    ) -> Iterator["Attempt"]:
        """While within, what was asked for is done. Raises `Overloaded` where it is too much, and
        `StorageFull` where it could not be recorded; then nothing is done.
        """
        too_many = self._too_many()
        if too_many is not None and self._told:
            raise too_many  # one record of it is enough: many would drive out the others
        self._told = too_many is not None
        with self._audit.attempt(
            "admin", call.caller.uid, call.caller.pid, call.verb, plugin=plugin, spec=spec
        ) as attempt:
            if too_many is not None:
                raise too_many
            yield attempt

    def refused(self, caller: Caller, error: NkvError) -> None:
        """Record that somebody was turned away at the door."""
        self._audit.refused("admin", caller.uid, caller.pid, error)

    def _too_many(self) -> Overloaded | None:
        now = monotonic()
        while self._times and self._times[0] <= now - _MINUTE:
            self._times.popleft()
        if len(self._times) < self._most:
            self._times.append(now)
            return None
        wait = self._times[0] + _MINUTE - now
        return Overloaded(
            f"More than {self._most} changes in a minute (plugins.max_changes_per_minute): try"
            f" again in {wait:.0f} s."
        )
