"""Locks: one key each, taken by compare-and-set, and let go by expiry where its holder is gone.

The value of the key names the one taking of the lock, so that a write whose answer was lost is
recognised. The version with which the lock was taken is its fencing version: the number behind its
last `-` is greater for each later holder, as long as the store keeps its history. A resource that
remembers the greatest number it has seen can refuse a holder that does not know yet that it has
lost the lock.
"""

import os
import platform
import random
import secrets
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final, Protocol, TypeVar

import anyio

from nkv_core.client import calls
from nkv_core.client.background import beside
from nkv_core.client.procedures import Pause, Procedure
from nkv_core.client.values import Item, Touch, Written
from nkv_core.errors import (
    ConditionFailed,
    InvalidExpiry,
    LockHeld,
    LockLost,
    NkvError,
)

DEFAULT_WAIT: Final = 60.0

#: Called once, with the name of the lock, when it is lost.
OnLost = Callable[[str], None]
T = TypeVar("T")

#: A lock is given up this part of its time before it expires: clocks do not run alike.
_MARGIN: Final = 0.05
#: Renewed after this part of its time.
_RENEWAL: Final = 1 / 3
_SHORTEST: Final = 0.1
_LONGEST_PAUSE: Final = 0.5
_RELEASE: Final = 2.0
#: How long the last attempt to take a lock may take.
_LAST_TRY: Final = 5.0
#: Where the node does not answer, is overloaded or restarts, it is asked again.
_FAILURES: Final = 500


class Drive(Protocol):
    """How procedures are carried out on asyncio or trio."""

    def __call__(self, steps: Procedure[T], timeout: float) -> Awaitable[T]:
        """Carry one out within so many seconds."""


class DriveInThread(Protocol):
    """How procedures are carried out by a thread."""

    def __call__(self, steps: Procedure[T], timeout: float) -> T:
        """Carry one out within so many seconds."""


class Held:
    """A lock that is held. It may be looked at from any thread."""

    def __init__(self, name: str, ttl: float) -> None:
        if not ttl >= _SHORTEST:
            raise InvalidExpiry(f"A lock is held for at least {_SHORTEST} seconds.")
        self.name: Final = name
        self.ttl: Final = ttl
        #: The fencing version.
        self.version = ""
        self._owner: Final = _owner()
        self._current = ""  # the version that the record has now
        self._until = 0.0
        self._lost = False

    @property
    def left(self) -> float:
        """Seconds for which it is certainly held, if it is not renewed."""
        return 0.0 if self._lost else max(self._until - time.monotonic(), 0.0)

    @property
    def lost(self) -> bool:
        """Whether others may have it."""
        return self.left == 0

    def check(self) -> None:
        """Raise `LockLost` if it is lost. What is done next may still meet with others: a program
        can be stopped at any moment, and only the fencing version helps against that.
        """
        if self.lost:
            raise self.error()

    def error(self) -> LockLost:
        """What to raise when it is lost."""
        return LockLost(f"The lock {self.name!r} is lost: others may hold it.")

    # --- procedures -------------------------------------------------------------------------------

    def acquire(self, wait: float) -> Procedure[None]:
        """Take it. Raises `LockHeld`, or why the node could not be asked, after `wait` seconds."""
        end = time.monotonic() + wait
        pause = 0.02
        while True:
            error: NkvError = LockHeld(f"{self.name!r} is held by others.")
            begun = time.monotonic()
            try:
                version = yield from self._try_to_acquire()
                if version is not None:  # unless the answer took so long that it has expired
                    self.version = version
                    self._note(version, begun)
                if not self.lost:
                    return
            except NkvError as failed:
                if failed.status < _FAILURES:
                    raise
                error = failed
            left = end - time.monotonic()
            if left <= 0:
                raise error
            yield Pause(min(random.uniform(pause / 2, pause), left))  # noqa: S311  # no secret
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _try_to_acquire(self) -> Procedure[str | None]:
        try:
            written: Written = yield calls.put(self.name, self._owner, ttl=self.ttl, if_absent=True)
        except ConditionFailed:
            pass
        else:
            return written.version
        # An earlier attempt whose answer was lost may be what is in the way.
        item: Item | None = yield calls.get(self.name)
        return item.version if item is not None and item.value == self._owner else None

    def renew(self) -> Procedure[None]:
        """Have it for its full time again. Raises `LockLost` where others have it."""
        for _ in range(2):
            begun = time.monotonic()
            touch = Touch(self.name, ttl=self.ttl, if_version=self._current)
            try:
                results: list[Written] = yield calls.batch([touch])
            except ConditionFailed:
                results = []
            if results and results[0].version is not None:
                self._note(results[0].version, begun)
                return
            # An earlier renewal whose answer was lost may have changed the version.
            yield from self._find()
        raise self.error()

    def release(self) -> Procedure[None]:
        """Let others have it. Nothing happens where they do already."""
        for _ in range(2):
            try:
                if self._current:
                    yield calls.delete(self.name, if_version=self._current)
                    return
            except ConditionFailed:
                pass
            try:
                yield from self._find()
            except LockLost:
                return

    def _find(self) -> Procedure[None]:
        item: Item | None = yield calls.get(self.name)
        if item is None or item.value != self._owner:
            raise self.error()
        self._current = item.version

    def _note(self, version: str, begun: float) -> None:
        self._current = version
        self._until = begun + self.ttl * (1 - _MARGIN)

    # --- renewal ----------------------------------------------------------------------------------

    def lose(self) -> None:
        """It is lost."""
        self._lost = True

    @property
    def next_renewal(self) -> float:
        """Seconds until it is to be renewed, and for which trying to may last."""
        return self.ttl * _RENEWAL

    def after(self, error: NkvError | None) -> float | None:
        """Seconds until the next renewal, `error` being how the last ended; None: it is lost."""
        if error is None:
            return self.next_renewal
        if isinstance(error, LockLost) or error.status < _FAILURES or self.lost:
            return None
        return min(self.next_renewal / 4, self.left)


def _owner() -> bytes:
    """Text that names one taking of a lock, for people as well."""
    return f"{platform.node()} {os.getpid()} {secrets.token_hex(8)}".encode()


def _deadline(held: Held) -> float:
    """How long a request about a lock may take: what comes later is of no use."""
    return min(held.next_renewal, held.left)


# --- the shells -----------------------------------------------------------------------------------


@asynccontextmanager
async def lock(
    drive: Drive, name: str, ttl: float, wait: float, on_lost: OnLost | None
) -> AsyncIterator[Held]:
    """Hold a lock until the block is left."""
    held = Held(name, ttl)

    async def release() -> None:
        with anyio.CancelScope(shield=True), suppress(NkvError):  # else it expires
            await drive(held.release(), _RELEASE)

    try:
        await drive(held.acquire(wait), wait + _LAST_TRY)
    except BaseException as error:
        if not isinstance(error, LockHeld):  # the write may have been made
            await release()
        raise
    block: anyio.CancelScope

    async def renew() -> None:
        pause: float | None = held.next_renewal
        while pause is not None:
            await anyio.sleep(pause)
            error: NkvError | None = None
            try:
                await drive(held.renew(), _deadline(held))
            except NkvError as failed:
                error = failed
            pause = held.after(error)
        held.lose()
        if on_lost is not None:
            on_lost(name)
        block.cancel()

    try:
        async with beside(renew) as block:
            yield held
    finally:
        was_lost = held.lost
        await release()
    if was_lost:
        raise held.error()


@contextmanager
def lock_in_thread(
    drive: DriveInThread, name: str, ttl: float, wait: float, on_lost: OnLost | None
) -> Iterator[Held]:
    """Hold a lock until the block is left; a thread renews it."""
    held = Held(name, ttl)

    def release() -> None:
        with suppress(NkvError):  # else it expires
            drive(held.release(), _RELEASE)

    try:
        drive(held.acquire(wait), wait + _LAST_TRY)
    except BaseException as error:
        if not isinstance(error, LockHeld):  # the write may have been made
            release()
        raise
    over = threading.Event()

    def renew() -> None:
        pause: float | None = held.next_renewal
        while pause is not None:
            if over.wait(pause):
                return
            error: NkvError | None = None
            try:
                drive(held.renew(), _deadline(held))
            except NkvError as failed:
                error = failed
            pause = held.after(error)
        held.lose()
        if on_lost is not None:
            on_lost(name)

    thread = threading.Thread(target=renew, name=f"nkv lock {name}", daemon=True)
    thread.start()
    try:
        yield held
    finally:
        over.set()
        thread.join(2 * held.next_renewal)
        was_lost = held.lost
        release()
    if was_lost:
        raise held.error()
