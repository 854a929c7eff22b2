"""Audit: a record of every attempt to change what the node runs, refused ones too.

Each record is one JSON object on a line of `audit.jsonl` in the data directory. A full file is
renamed, and the one that was renamed before it is removed, so that there are never more than two.
A change is refused where its record cannot be written: what nobody can see later is not done.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final, Literal

import msgspec

from nkv_core.errors import NkvError, StorageFull
from nkv_core.records import wall_clock
from nkv_core.times import format_time

FILE: Final = "audit.jsonl"
MAX_BYTES: Final = 4 * 1024 * 1024  #: of each of the two files
_MAX_DETAIL: Final = 2_000  #: characters
_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW

log = logging.getLogger("nkv.plugins")

#: How an attempt came: over the admin socket, by a signal, or from the plugin folder.
Origin = Literal["admin", "signal", "folder"]


class Attempt(msgspec.Struct):
    """One attempt. Whoever carries it out fills in what comes to light meanwhile."""

    time: str
    origin: Origin
    uid: int
    pid: int
    verb: str
    plugin: str | None = None
    spec: str | None = None
    sha256: str | None = None
    generation: int | None = None
    outcome: str = "done"  #: or the code of an error
    detail: str | None = None


class Audit:
    """Writes the records of one node. Used on the event loop: a line is small."""

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self._path: Final = folder / FILE
        self._max_bytes: Final = max_bytes

    @contextmanager
    def attempt(
        self,
        origin: Origin,
        uid: int,
        pid: int,
        verb: str,
        *,
        plugin: str | None = None,
        spec: str | None = None,
    ) -> Iterator[Attempt]:
        """While within, the attempt of a process of this user is carried out; at the end it is
        recorded with its outcome.

        Raises `StorageFull` before anything is done where a record cannot be written.
        """
        self._make_room()
        attempt = Attempt(format_time(wall_clock()), origin, uid, pid, verb, plugin, spec)
        try:
            yield attempt
        except NkvError as error:
            attempt.outcome, attempt.detail = error.code, error.detail[:_MAX_DETAIL]
            raise
        except BaseException as error:
            attempt.outcome, attempt.detail = "failed", type(error).__name__
            raise
        finally:
            self._write(attempt)

    def by_node(
        self, origin: Origin, verb: str, *, plugin: str | None = None, spec: str | None = None
    ) -> AbstractContextManager[Attempt]:
        """As `attempt`, of the node's own process."""
        return self.attempt(origin, os.geteuid(), os.getpid(), verb, plugin=plugin, spec=spec)

    def refused(self, origin: Origin, uid: int, pid: int, error: NkvError) -> None:
        """Record an attempt that was refused before anybody looked at what it wants."""
        try:
            with self.attempt(origin, uid, pid, "connect"):
                raise error
        except NkvError as raised:
            if raised is not error:
                log.error("%s", raised)

    def _make_room(self) -> None:
        try:
            handle = os.open(self._path, _FLAGS, 0o600)
            try:
                if os.fstat(handle).st_size < self._max_bytes:
                    return
            finally:
                os.close(handle)
            self._path.replace(self._path.with_suffix(".1.jsonl"))
        except OSError as error:
            raise StorageFull(
                f"{self._path} cannot be written ({error.strerror}): without a record of it nothing"
                " is changed."
            ) from None

    def _write(self, attempt: Attempt) -> None:
        line = msgspec.json.encode(attempt) + b"\n"
        try:
            handle = os.open(self._path, _FLAGS, 0o600)
            try:
                os.write(handle, line)
            finally:
                os.close(handle)
        except OSError as error:
            log.error("the audit log misses a record (%s): %s", error.strerror, line.decode())
