"""The asynchronous client. It runs on asyncio and on trio."""

# ruff: noqa: ASYNC109  # its methods take the same arguments as those of the synchronous client

from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import anyio
import httpx2

from nkv_core.client import calls, procedures
from nkv_core.client.calls import Call, Reply
from nkv_core.client.changes import Mode
from nkv_core.client.connection import (
    DEFAULT_MAX_REPLY,
    DEFAULT_TIMEOUT,
    DEFAULT_URL,
    NO_LIMITS,
    Endpoint,
    Verify,
)
from nkv_core.client.failures import connection_failed, pause_before_retry, reply_too_long
from nkv_core.client.following import DEFAULT_SILENCE, Following, OnLink
from nkv_core.client.locking import DEFAULT_WAIT, Held, OnLost, lock
from nkv_core.client.mirroring import DEFAULT_MAX_MIRROR, AsyncMirror, mirror
from nkv_core.client.procedures import Compute, Pages, Pause, Procedure
from nkv_core.client.values import Check, Item, Operation, Written
from nkv_core.client.watching import AsyncWatch
from nkv_core.errors import NkvError

T = TypeVar("T")


class AsyncClient:
    """Reads and writes the records of a node. Use it as `async with AsyncClient(url) as client`.

    Every method takes `timeout`, the seconds that the whole of it may take, and raises
    `DeadlineExceeded` behind them; without one the client's own holds, for each request. All raise
    `Unreachable` where the node does not answer, `OutcomeUnknown` where it does not answer a write
    that it may have got, and the error that the node gave where it refused.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        token: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        max_reply: int = DEFAULT_MAX_REPLY,
        verify: Verify = True,
    ) -> None:
        """`max_reply`: bytes of one reply. Raises `SettingsError` where URL or token are none."""
        self._endpoint: Final = Endpoint(url, token)
        self._timeout: Final = timeout
        self._max_reply: Final = max_reply
        options = self._endpoint.options(verify)
        self._http: Final = httpx2.AsyncClient(**options, timeout=None)
        # Watches stay open: they have connections of their own, as many as there are watches.
        self._streams: Final = httpx2.AsyncClient(**{**options, "limits": NO_LIMITS}, timeout=None)
        self._watches: Final[set[AsyncWatch]] = set()

    @property
    def url(self) -> str:
        """The node's address."""
        return self._endpoint.url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections, and end all watches. Closing twice does nothing."""
        with anyio.CancelScope(shield=True):
            for watch in list(self._watches):
                await watch.aclose()
            await self._streams.aclose()
            await self._http.aclose()

    # --- records ----------------------------------------------------------------------------------

    async def get(self, key: str, *, timeout: float | None = None) -> Item | None:
        """The record of a key, or None."""
        return await self._perform(calls.get(key), timeout)

    async def put(
        self,
        key: str,
        value: bytes,
        *,
        ttl: float | None = None,
        expires: int | None = None,
        if_version: str | None = None,
        if_absent: bool = False,
        timeout: float | None = None,
    ) -> Written:
        """Set a value, for `ttl` seconds or until `expires` (milliseconds since 1970).

        Raises `ConditionFailed` or `OtherHistory` where the condition does not hold.
        """
        call = calls.put(
            key, value, ttl=ttl, expires=expires, if_version=if_version, if_absent=if_absent
        )
        return await self._perform(call, timeout)

    async def delete(
        self, key: str, *, if_version: str | None = None, timeout: float | None = None
    ) -> bool:
        """Delete a record; says whether there was one. Raises as `put`."""
        return await self._perform(calls.delete(key, if_version=if_version), timeout)

    async def batch(
        self,
        operations: Iterable[Operation],
        checks: Iterable[Check] = (),
        *,
        timeout: float | None = None,
    ) -> list[Written]:
        """Carry out all operations, in order, if every condition holds; otherwise none."""
        return await self._perform(calls.batch(operations, checks), timeout)

    async def update(
        self,
        key: str,
        compute: Compute,
        *,
        ttl: float | None = None,
        expires: int | None = None,
        attempts: int = 10,
        timeout: float | None = None,
    ) -> Written | None:
        """Set a value to what `compute` makes of the present one, with nobody's write lost.

        `compute` is called with None where there is no record, and again each time that somebody
        else was faster; None as its result deletes. Raises `ConditionFailed` after `attempts`.
        """
        steps = procedures.update(key, compute, ttl=ttl, expires=expires, attempts=attempts)
        return await self._within(steps, timeout)

    async def scan(
        self, pattern: str = "*", *, after: str | None = None, timeout: float | None = None
    ) -> AsyncIterator[Item]:
        """Records that match, in key order, beginning behind the key `after`.

        Pages are read as the iteration goes on, each with `timeout`; they are not one snapshot.
        """
        pages = Pages(pattern, after)
        while not pages.done:
            try:
                page = await self._perform(pages.next(), timeout)
            except NkvError as error:
                pages.failed(error)
                continue
            for item in pages.take(page):
                yield item

    async def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """What the node says about itself."""
        return await self._perform(calls.status(), timeout)

    # --- watching ---------------------------------------------------------------------------------

    def watch(
        self,
        pattern: str = "*",
        *,
        since: str | None = None,
        mode: Mode = "every",
        snapshot: bool = False,
        subtree: bool = False,
        timeout: float | None = None,
        silence: float = DEFAULT_SILENCE,
        patience: float | None = None,
        on_link: OnLink | None = None,
    ) -> AsyncWatch:
        """Follow the changes of the keys that match; with `subtree` also of all below these.

        `since` resumes behind a token; `snapshot` tells the present records first, unless it can.
        Mode `latest` may skip values of a key that has a newer one; `every` tells each change.

        The first connection is to come about within `timeout`, by default the client's. From then
        on a connection is lost where nothing comes for `silence` seconds, and made again for as
        long as it takes, or for `patience` seconds. `on_link` is told of both: of the error, and of
        None once there is a connection again.

        It connects as the block of `async with` is entered, or else as the iteration begins.

        Raises `InvalidPattern`; connecting raises `Unreachable`, and what the node refuses with.
        """
        seconds = self._timeout if timeout is None else timeout
        following = Following(
            pattern,
            since=since,
            mode=mode,
            snapshot=snapshot,
            subtree=subtree,
            timeout=seconds,
            patience=patience,
            on_link=on_link,
        )
        watch = AsyncWatch(
            self._streams,
            self.url,
            following,
            timeout=seconds,
            silence=silence,
            max_item=self._max_reply,
            ended=self._watches.discard,
        )
        self._watches.add(watch)
        return watch

    def mirror(
        self,
        prefix: str,
        *,
        silence: float = DEFAULT_SILENCE,
        max_bytes: int = DEFAULT_MAX_MIRROR,
    ) -> AbstractAsyncContextManager[AsyncMirror]:
        """A read-only mapping that stays equal to what the node has at `prefix` and below it.

        `async with client.mirror("service.a") as mirror: await mirror.wait_synced(10)`. It follows
        in the background until the block is left, over restarts of the node too. `*` mirrors all.
        """
        return mirror(partial(self.watch, silence=silence), prefix, max_bytes)

    def lock(
        self, name: str, ttl: float, *, wait: float = DEFAULT_WAIT, on_lost: OnLost | None = None
    ) -> AbstractAsyncContextManager[Held]:
        """Hold the lock that is the key `name`: `async with client.lock("jobs.daily", 30) as held`.

        Others get it when the block is left, or `ttl` seconds after this program has died. It is
        renewed in the background. If that fails for too long, the lock is lost: the block is
        cancelled, and `LockLost` raised where it ends. `held.version` is the fencing version.

        Raises `LockHeld` where others hold it for `wait` seconds.
        """
        return lock(self._within, name, ttl, wait, on_lost)

    # --- the shell --------------------------------------------------------------------------------

    async def _within(self, steps: Procedure[T], timeout: float | None) -> T:
        if timeout is None:
            return await self._drive(steps)
        with anyio.move_on_after(timeout) as scope:
            return await self._drive(steps)
        assert scope.cancelled_caught  # noqa: S101  # the block returns otherwise
        raise self._late(reads=False)

    async def _drive(self, steps: Procedure[T]) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    result = await self._step(step)
                except NkvError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    async def _step(self, step: Call[Any] | Pause) -> Any:
        if isinstance(step, Pause):
            return await anyio.sleep(step.seconds)
        return await self._perform(step, None)

    async def _perform(self, call: Call[T], timeout: float | None) -> T:
        seconds = self._timeout if timeout is None else timeout
        with anyio.move_on_after(seconds):
            return call.read(await self._exchange(call))
        raise self._late(reads=call.reads)

    async def _exchange(self, call: Call[Any]) -> Reply:
        attempt = 0
        while True:
            try:
                return await self._send(call)
            except httpx2.TransportError as error:
                pause = pause_before_retry(error, attempt, reads=call.reads)
                if pause is None:
                    raise connection_failed(error, reads=call.reads, url=self.url) from error
            attempt += 1
            await anyio.sleep(pause)

    async def _send(self, call: Call[Any]) -> Reply:
        body = bytearray()
        async with self._http.stream(
            call.method, self.url + call.target, headers=call.headers, content=call.body
        ) as response:
            # Reading is ended by cancelling it: leaving the loop would leave what it runs over
            # unfinished, and trio, rightly, complains of that.
            with anyio.CancelScope() as reading:
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > self._max_reply:
                        reading.cancel()
        if len(body) > self._max_reply:
            raise reply_too_long(self._max_reply, reads=call.reads)
        return Reply(response.status_code, response.headers, bytes(body))

    def _late(self, *, reads: bool) -> NkvError:
        return connection_failed(TimeoutError(), reads=reads, url=self.url)
