"""Merging: which merger makes one record of two, by key; the later write wins everywhere else."""

import logging
from collections.abc import Callable, Sequence
from typing import Final

from nkv_core.contracts.mesh import Merger
from nkv_core.errors import InvalidPattern, SettingsError
from nkv_core.keys import Pattern
from nkv_core.records import Record


class Merging:
    """A `contracts.keyspace.Merge`. Raises nothing; it may be called in any thread."""

    def __init__(
        self,
        rules: Sequence[str],
        find: Callable[[str], Merger],
        log: logging.Logger,
    ) -> None:
        """`rules`: `PATTERN=NAME` each, of which the first that matches a key holds. `find` gives a
        merger by name, anew for each use: its plugin may be replaced.

        Raises `SettingsError` where a rule is none.
        """
        self._rules: Final = [_parse(rule) for rule in rules]
        self._find: Final = find
        self._log: Final = log
        self.failed = 0  #: how often a merger was missing or raised, and the later write won

    def __bool__(self) -> bool:
        return bool(self._rules)

    def concerns(self, key: str) -> bool:
        """Whether records of a key are merged."""
        return any(pattern.matches(key) for pattern, _ in self._rules)

    def __call__(self, ours: Record, theirs: Record) -> Record:
        """What both sides are to have."""
        name = next((n for pattern, n in self._rules if pattern.matches(ours.key)), None)
        if name is not None:
            try:
                return self._find(name).merge(ours, theirs)
            except Exception:  # noqa: BLE001  # a stranger's; and the write cannot be refused
                self.failed += 1
                if self.failed == 1:
                    self._log.exception("The merger %s failed: the later write wins.", name)
        return _later(ours, theirs)


def _later(ours: Record, theirs: Record) -> Record:
    return max(ours, theirs, key=lambda one: (one.modified, one.origin, one.value))


def _parse(rule: str) -> tuple[Pattern, str]:
    text, _, name = rule.rpartition("=")
    try:
        pattern = Pattern(text)
    except InvalidPattern as error:
        raise SettingsError(f"mesh.full.mergers: {rule!r}: {error.detail}") from None
    if not name:
        raise SettingsError(f"mesh.full.mergers: {rule!r} is not PATTERN=NAME.")
    return pattern, name
