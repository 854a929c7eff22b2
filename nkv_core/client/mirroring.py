"""A mirror: a mapping in memory that stays equal to a part of what a node has."""

import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager
from typing import Any, Final

import anyio

from nkv_core.client.background import beside
from nkv_core.client.changes import Changed, Gap, SnapshotEnd, SnapshotStart, WatchItem
from nkv_core.client.failures import with_code
from nkv_core.client.watching import AsyncWatch, Watch
from nkv_core.errors import DeadlineExceeded, NkvError
from nkv_core.keys import WILDCARD

DEFAULT_MAX_MIRROR: Final = 256 * 1024 * 1024

#: What a record costs besides its key and value, about.
_RECORD: Final = 200
_JOIN: Final = 10.0


class Copy(Mapping[str, bytes]):
    """Keys and values as of what was taken so far, without input or output.

    Reading a mirror that cannot follow any more raises the reason. One that has lost its connection
    is read as it was; `synced` and `stale_for` say so.
    """

    def __init__(self, max_bytes: int = DEFAULT_MAX_MIRROR) -> None:
        """Begin empty; more than `max_bytes` of keys and values are not held."""
        self._records: dict[str, Changed] = {}
        self._fresh: dict[str, Changed] | None = None  # the snapshot that is being told
        self._size = self._fresh_size = 0
        self._max_bytes: Final = max_bytes
        self._complete = False
        self._down = True
        self._stale_since = time.monotonic()
        self._failure: NkvError | None = None

    # --- reading ----------------------------------------------------------------------------------

    @property
    def synced(self) -> bool:
        """Whether it is what the node has, but for what is on its way just now."""
        return self._complete and not self._down and self._failure is None

    @property
    def stale_for(self) -> float:
        """Seconds since it was `synced`, or since it began; 0 while it is."""
        return 0.0 if self.synced else time.monotonic() - self._stale_since

    @property
    def failure(self) -> NkvError | None:
        """Why it cannot follow any more."""
        return self._failure

    def record(self, key: str) -> Changed | None:
        """All that was told of a record: version, times. None where there is none."""
        return self._readable().get(key)

    def __getitem__(self, key: str) -> bytes:
        value = self._readable()[key].value
        return b"" if value is None else value

    def __contains__(self, key: object) -> bool:
        return key in self._readable()

    def __iter__(self) -> Iterator[str]:
        # Of a copy: what follows changes the records meanwhile, in a thread of its own perhaps.
        return iter(list(self._readable()))

    def __len__(self) -> int:
        return len(self._readable())

    def __repr__(self) -> str:
        state = "synced" if self.synced else f"stale for {self.stale_for:.1f} s"
        return f"<{type(self).__name__} of {len(self._records)} records, {state}>"

    def _readable(self) -> dict[str, Changed]:
        if self._failure is not None:
            raise self._failure
        return self._records

    # --- following --------------------------------------------------------------------------------

    def link(self, error: NkvError | None) -> None:
        """The connection was lost, or is there again."""
        self._note(down=error is not None, complete=self._complete)

    def fail(self, error: NkvError) -> None:
        """It cannot follow any more."""
        self._note(down=True, complete=self._complete)
        self._failure = error

    def take(self, item: WatchItem) -> None:
        """Take what a watch has told. Raises where the records are more than can be held."""
        match item:
            case Changed():
                self._change(item)
            case SnapshotStart():
                self._fresh, self._fresh_size = {}, 0
                self._note(down=False, complete=False)
            case SnapshotEnd():
                if self._fresh is not None:
                    # What was there before is seen until here: nobody meets half a snapshot.
                    self._records, self._size = self._fresh, self._fresh_size
                    self._fresh, self._fresh_size = None, 0
                self._note(down=False, complete=True)
            case Gap():
                self._note(down=False, complete=False)
        if self._size + self._fresh_size > self._max_bytes:
            raise with_code(
                "mirror_too_large", 507, f"There are more than {self._max_bytes} bytes to mirror."
            )

    def _note(self, *, down: bool, complete: bool) -> None:
        was = self.synced
        self._down, self._complete = down, complete
        if was and not self.synced:
            self._stale_since = time.monotonic()

    def _change(self, change: Changed) -> None:
        records = self._records if self._fresh is None else self._fresh
        gone: list[str] = []
        if change.kind == "clear":
            gone = [
                key
                for key, record in records.items()
                if key.startswith(change.key) and record.modified <= change.modified
            ]
        elif change.key in records:
            gone = [change.key]
        added = _size(change) if change.kind in ("put", "touch") else 0
        change_of_size = added - sum(_size(records[key]) for key in gone)
        if added:
            records[change.key] = change
        else:
            for key in gone:
                del records[key]
        if self._fresh is None:
            self._size += change_of_size
        else:
            self._fresh_size += change_of_size


def _size(change: Changed) -> int:
    return len(change.key) + len(change.value or b"") + _RECORD


def _late(timeout: float) -> DeadlineExceeded:
    return DeadlineExceeded(f"The mirror did not come to that within {timeout:g} seconds.")


def _options(prefix: str, on_link: Callable[[NkvError | None], None]) -> dict[str, Any]:
    """How to watch a prefix and all below it, for as long as it takes."""
    subtree = prefix != WILDCARD
    return {
        "mode": "latest",
        "snapshot": True,
        "subtree": subtree,
        "patience": math.inf,
        "on_link": on_link,
    }


class AsyncMirror(Copy):
    """A mirror that a task keeps."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(max_bytes)
        self._moved = anyio.Event()

    async def wait_synced(self, timeout: float) -> None:  # noqa: ASYNC109  # as the other methods
        """Wait until it is what the node has. Raises `DeadlineExceeded`, and why it cannot."""
        await self.wait_for(lambda mirror: mirror.synced, timeout)

    async def wait_for(
        self,
        condition: Callable[["AsyncMirror"], bool],
        timeout: float,  # noqa: ASYNC109  # as the other methods
    ) -> None:
        """Wait until `condition`, asked after each change, is met. Raises as `wait_synced`."""
        with anyio.move_on_after(timeout):
            while True:
                if self._failure is not None:
                    raise self._failure
                if condition(self):
                    return
                await self._moved.wait()
        raise _late(timeout)

    async def follow(self, watch: AsyncWatch) -> None:
        """Take what the watch tells until it is closed."""
        try:
            async for item in watch:
                self.take(item)
        except NkvError as error:
            self.fail(error)
        finally:
            await watch.aclose()

    def _note(self, *, down: bool, complete: bool) -> None:
        super()._note(down=down, complete=complete)
        self._wake()

    def _change(self, change: Changed) -> None:
        super()._change(change)
        self._wake()

    def fail(self, error: NkvError) -> None:
        """It cannot follow any more."""
        super().fail(error)
        self._wake()

    def _wake(self) -> None:
        self._moved.set()
        self._moved = anyio.Event()


@asynccontextmanager
async def mirror(
    watch: Callable[..., AsyncWatch], prefix: str, max_bytes: int
) -> AsyncIterator[AsyncMirror]:
    """Keep a mirror until the block is left."""
    made = AsyncMirror(max_bytes)
    opened = watch(prefix, **_options(prefix, made.link))
    async with beside(lambda: made.follow(opened)):
        yield made


class Mirror(Copy):
    """A mirror that a thread keeps."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(max_bytes)
        self._moved: Final = threading.Condition()

    def wait_synced(self, timeout: float) -> None:
        """Wait until it is what the node has. Raises `DeadlineExceeded`, and why it cannot."""
        self.wait_for(lambda mirror: mirror.synced, timeout)

    def wait_for(self, condition: Callable[["Mirror"], bool], timeout: float) -> None:
        """Wait until `condition`, asked after each change, is met. Raises as `wait_synced`."""
        with self._moved:
            met = self._moved.wait_for(
                lambda: self._failure is not None or condition(self), timeout
            )
        if self._failure is not None:
            raise self._failure
        if not met:
            raise _late(timeout)

    def follow(self, watch: Watch) -> None:
        """Take what the watch tells until it is closed."""
        try:
            for item in watch:
                self.take(item)
        except NkvError as error:
            self.fail(error)

    def take(self, item: WatchItem) -> None:
        """Take what a watch has told."""
        with self._moved:
            super().take(item)
            self._moved.notify_all()

    def link(self, error: NkvError | None) -> None:
        """The connection was lost, or is there again."""
        with self._moved:
            super().link(error)
            self._moved.notify_all()

    def fail(self, error: NkvError) -> None:
        """It cannot follow any more."""
        with self._moved:
            super().fail(error)
            self._moved.notify_all()


@contextmanager
def mirror_in_thread(watch: Callable[..., Watch], prefix: str, max_bytes: int) -> Iterator[Mirror]:
    """Keep a mirror until the block is left."""
    made = Mirror(max_bytes)
    with closing(watch(prefix, **_options(prefix, made.link))) as opened:
        thread = threading.Thread(
            target=made.follow, args=(opened,), name=f"nkv mirror {prefix}", daemon=True
        )
        thread.start()
        try:
            yield made
        finally:
            opened.close()
            thread.join(_JOIN)
