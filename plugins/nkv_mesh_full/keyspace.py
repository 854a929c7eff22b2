"""The keyspace of a mesh: that of this node, with writes that can wait for other nodes.

Reads, writes, conditions and watching are those of the node's own keyspace. What the mesh adds is
how far a write has come when its caller is answered.
"""

from collections.abc import Awaitable, Sequence
from time import monotonic
from typing import Any, Final, TypeVar, cast

import msgspec

from nkv_core.around import Around
from nkv_core.contracts.keyspace import (
    DEFAULT_OPTIONS,
    Acknowledged,
    Capabilities,
    Check,
    Expect,
    Operation,
    Options,
    Prompt,
    Transaction,
    View,
    Written,
)
from nkv_core.errors import NotAcknowledged
from nkv_core.prompt import prompt_of
from nkv_core.records import Record

from .core import Core
from .settings import FullSettings

T = TypeVar("T")


class MeshKeyspace(Around):
    """Implements `contracts.keyspace.Keyspace` and `Prompt`."""

    _prompt: Prompt  # set before anybody can ask

    def __init__(self, settings: FullSettings) -> None:
        self._settings: Final = settings
        self._core: Core | None = None

    def _begin(self, core: Core) -> None:
        self._core, self.within = core, core.keyspace
        self._prompt = prompt_of(core.keyspace)

    # --- what it is ---------------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        """As the keyspace within, but that conditions hold on this node alone."""
        return msgspec.structs.replace(self.within.capabilities, compare_and_set="local")

    # --- writing ------------------------------------------------------------------------------

    async def put(
        self,
        key: str,
        value: bytes,
        *,
        expires: int | None = None,
        expect: Expect = None,
        cause: str = "put",
        options: Options = DEFAULT_OPTIONS,
    ) -> Written:
        """Set a value."""
        until = self._until(options)
        written = await self.within.put(
            key, value, expires=expires, expect=expect, cause=cause, options=options
        )
        return await self._acknowledged(written, options, until)

    async def delete(
        self,
        key: str,
        *,
        expect: Expect = None,
        cause: str = "delete",
        options: Options = DEFAULT_OPTIONS,
    ) -> Written:
        """Delete a record."""
        until = self._until(options)
        written = await self.within.delete(key, expect=expect, cause=cause, options=options)
        return await self._acknowledged(written, options, until)

    async def touch(
        self,
        key: str,
        expires: int | None,
        *,
        expect: Expect = None,
        cause: str = "touch",
        options: Options = DEFAULT_OPTIONS,
    ) -> Written:
        """Change a record's expiry."""
        until = self._until(options)
        written = await self.within.touch(key, expires, expect=expect, cause=cause, options=options)
        return await self._acknowledged(written, options, until)

    async def clear(
        self, prefix: str = "", *, cause: str = "clear", options: Options = DEFAULT_OPTIONS
    ) -> Written:
        """Delete every record whose key begins with `prefix`, as one change."""
        until = self._until(options)
        written = await self.within.clear(prefix, cause=cause, options=options)
        return await self._acknowledged(written, options, until)

    async def batch(
        self,
        operations: Sequence[Operation],
        checks: Sequence[Check] = (),
        options: Options = DEFAULT_OPTIONS,
    ) -> list[Written]:
        """Carry out all operations if every condition holds; other nodes see them one by one."""
        until = self._until(options)
        results = await self.within.batch(operations, checks, options)
        last = max((one.revision or 0 for one in results), default=0)
        found = await self._await_nodes(last, options, until) if last else None
        if found is None:
            return results
        return [msgspec.structs.replace(one, acknowledged=found) for one in results]

    # --- without waiting ----------------------------------------------------------------------

    def get_now(self, key: str) -> Record | Awaitable[Record | None] | None:
        """The record of a key, or None; to be awaited where it is not there at once."""
        return self._prompt.get_now(key)

    def write_now(self, operation: Operation) -> Written | Awaitable[Written]:
        """Carry out one operation; to be awaited where that takes its time."""
        written = self._prompt.write_now(operation)
        if self._settings.acknowledge == "local":
            return written
        return self._write(written)

    def transact_now(
        self, transaction: Transaction[T], keys: Sequence[str], size: int = 0
    ) -> T | Awaitable[T]:
        """Carry out a transaction; to be awaited where that takes its time."""
        if self._settings.acknowledge == "local":
            return self._prompt.transact_now(transaction, keys, size)
        until = self._until(DEFAULT_OPTIONS)
        noted: list[_Noting] = []

        def noting(view: View) -> T:
            noted[:] = [_Noting(view)]
            return transaction(noted[0])

        return self._transact(self._prompt.transact_now(noting, keys, size), noted, until)

    async def _write(self, written: Written | Awaitable[Written]) -> Written:
        until = self._until(DEFAULT_OPTIONS)
        done = written if isinstance(written, Written) else await written
        return await self._acknowledged(done, DEFAULT_OPTIONS, until)

    async def _transact(self, result: T | Awaitable[T], noted: "list[_Noting]", until: float) -> T:
        done: Any = await result if isinstance(result, Awaitable) else result
        if noted and noted[0].revision:
            await self._await_nodes(noted[0].revision, DEFAULT_OPTIONS, until)
        return cast("T", done)

    # --- how far it has come ------------------------------------------------------------------

    def _until(self, options: Options) -> float:
        """When a write is answered at the latest, by the monotonic clock."""
        return monotonic() + (options.deadline or self._settings.acknowledge_deadline)

    async def _acknowledged(self, written: Written, options: Options, until: float) -> Written:
        if written.revision is None:
            return written
        found = await self._await_nodes(written.revision, options, until)
        return written if found is None else msgspec.structs.replace(written, acknowledged=found)

    async def _await_nodes(
        self, revision: int, options: Options, until: float
    ) -> Acknowledged | None:
        """Wait until as many nodes have it as are asked for. Raises `NotAcknowledged`."""
        level = options.acknowledge or self._settings.acknowledge
        core = self._core
        if level == "local" or core is None:
            return None
        count = len(core.members)
        wanted = count if level == "all" else count // 2 + 1
        found = await core.acks.wait(revision, wanted, max(until - monotonic(), 0.0))
        if not found.reached:
            raise NotAcknowledged(
                f"The write stands, but {found.nodes} of {count} nodes have it so far, and"
                f" {wanted} were asked for."
            )
        return found


class _Noting:
    """Implements `contracts.keyspace.View`, and notes the last revision that was made."""

    def __init__(self, view: View) -> None:
        self._view: Final = view
        self.history: Final = view.history
        self.now: Final = view.now
        self.revision = 0

    def get(self, key: str) -> Record | None:
        return self._view.get(key)

    def put(
        self, key: str, value: bytes, *, expires: int | None = None, cause: str = "put"
    ) -> Written:
        return self._noted(self._view.put(key, value, expires=expires, cause=cause))

    def delete(self, key: str, *, cause: str = "delete") -> Written:
        return self._noted(self._view.delete(key, cause=cause))

    def touch(self, key: str, expires: int | None, *, cause: str = "touch") -> Written:
        return self._noted(self._view.touch(key, expires, cause=cause))

    def clear(self, prefix: str = "", *, cause: str = "clear") -> Written:
        return self._noted(self._view.clear(prefix, cause=cause))

    def _noted(self, written: Written) -> Written:
        self.revision = max(self.revision, written.revision or 0)
        return written
