"""The synchronous client. It may be used by several threads at once."""

import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar

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
from nkv_core.client.locking import DEFAULT_WAIT, Held, OnLost, lock_in_thread
from nkv_core.client.mirroring import DEFAULT_MAX_MIRROR, Mirror, mirror_in_thread
from nkv_core.client.procedures import Compute, Pages, Pause, Procedure
from nkv_core.client.values import Check, Item, Operation, Written
from nkv_core.client.watching import Watch
from nkv_core.errors import DeadlineExceeded, NkvError

T = TypeVar("T")


class Client:
    """Reads and writes the records of a node. Use it as `with Client(url) as client`.

    Every method takes `timeout`, in seconds, and raises `DeadlineExceeded` behind it; without one
    the client's own holds, for each request. A plain program cannot be interrupted while it reads:
    a node that sends its reply in drops may hold a call up to about twice as long. All raise
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
        self._http: Final = httpx2.Client(**options)
        # Watches stay open: they have connections of their own, as many as there are watches.
        self._streams: Final = httpx2.Client(**{**options, "limits": NO_LIMITS})
        self._watches: Final[set[Watch]] = set()

    @property
    def url(self) -> str:
        """The node's address."""
        return self._endpoint.url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, and end all watches. Closing twice does nothing."""
        for watch in list(self._watches):
            watch.close()
        self._streams.close()
        self._http.close()

    # --- records ----------------------------------------------------------------------------------

    def get(self, key: str, *, timeout: float | None = None) -> Item | None:
        """The record of a key, or None."""
        return self._perform(calls.get(key), timeout)

    def put(
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
        return self._perform(call, timeout)

    def delete(
        self, key: str, *, if_version: str | None = None, timeout: float | None = None
    ) -> bool:
        """Delete a record; says whether there was one. Raises as `put`."""
        return self._perform(calls.delete(key, if_version=if_version), timeout)

    def batch(
        self,
        operations: Iterable[Operation],
        checks: Iterable[Check] = (),
        *,
        timeout: float | None = None,
    ) -> list[Written]:
        """Carry out all operations, in order, if every condition holds; otherwise none."""
        return self._perform(calls.batch(operations, checks), timeout)

    def update(
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
        return self._drive(steps, timeout)

    def scan(
        self, pattern: str = "*", *, after: str | None = None, timeout: float | None = None
    ) -> Iterator[Item]:
        """Records that match, in key order, beginning behind the key `after`.

        Pages are read as the iteration goes on, each with `timeout`; they are not one snapshot.
        """
        pages = Pages(pattern, after)
        while not pages.done:
            try:
                page = self._perform(pages.next(), timeout)
            except NkvError as error:
                pages.failed(error)
                continue
            yield from pages.take(page)

    def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """What the node says about itself."""
        return self._perform(calls.status(), timeout)

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
    ) -> Watch:
        """Follow the changes of the keys that match; with `subtree` also of all below these.

        `since` resumes behind a token; `snapshot` tells the present records first, unless it can.
        Mode `latest` may skip values of a key that has a newer one; `every` tells each change.

        The first connection is to come about within `timeout`, by default the client's. From then
        on a connection is lost where nothing comes for `silence` seconds, and made again for as
        long as it takes, or for `patience` seconds. `on_link` is told of both: of the error, and of
        None once there is a connection again.

        It connects as the block of `with` is entered, or else as the iteration begins.

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
        watch = Watch(
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
    ) -> AbstractContextManager[Mirror]:
        """A read-only mapping that stays equal to what the node has at `prefix` and below it.

        `with client.mirror("service.a") as mirror: mirror.wait_synced(10)`. A thread follows until
        the block is left, over restarts of the node too. `*` mirrors all.
        """
        return mirror_in_thread(partial(self.watch, silence=silence), prefix, max_bytes)

    def lock(
        self, name: str, ttl: float, *, wait: float = DEFAULT_WAIT, on_lost: OnLost | None = None
    ) -> AbstractContextManager[Held]:
        """Hold the lock that is the key `name`: `with client.lock("jobs.daily", 30) as held`.

        Others get it when the block is left, or `ttl` seconds after this program has died. A
        thread renews it. If that fails for too long, the lock is lost: `held.lost` says so,
        `held.check()` raises `LockLost`, and so does the end of the block; a plain program cannot
        be interrupted. `on_lost` is called in that thread. `held.version` is the fencing version.

        Raises `LockHeld` where others hold it for `wait` seconds.
        """
        return lock_in_thread(self._drive, name, ttl, wait, on_lost)

    # --- the shell --------------------------------------------------------------------------------

    def _drive(self, steps: Procedure[T], timeout: float | None) -> T:
        end = None if timeout is None else time.monotonic() + timeout
        try:
            step = next(steps)
            while True:
                try:
                    result = self._step(step, end)
                except NkvError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]

    def _step(self, step: Call[Any] | Pause, end: float | None) -> Any:
        left = None if end is None else max(end - time.monotonic(), 0)
        if isinstance(step, Pause):
            return time.sleep(step.seconds if left is None else min(step.seconds, left))
        return self._perform(step, left)

    def _perform(self, call: Call[T], timeout: float | None) -> T:
        end = time.monotonic() + (self._timeout if timeout is None else timeout)
        return call.read(self._exchange(call, end))

    def _exchange(self, call: Call[Any], end: float) -> Reply:
        attempt = 0
        while True:
            error: Exception
            try:
                return self._send(call, end)
            except (httpx2.TransportError, TimeoutError) as failed:
                error = failed
            pause = pause_before_retry(error, attempt, reads=call.reads)
            if pause is None or time.monotonic() + pause >= end:
                raise connection_failed(error, reads=call.reads, url=self.url) from error
            attempt += 1
            time.sleep(pause)

    def _send(self, call: Call[Any], end: float) -> Reply:
        left = end - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("No time was left to send the request; nothing was done.")
        body = bytearray()
        with self._http.stream(
            call.method,
            self.url + call.target,
            headers=call.headers,
            content=call.body,
            timeout=left,
        ) as response:
            for chunk in response.iter_raw():
                body += chunk
                if len(body) > self._max_reply:
                    raise reply_too_long(self._max_reply, reads=call.reads)
                if time.monotonic() > end:
                    raise TimeoutError
            return Reply(response.status_code, response.headers, bytes(body))
