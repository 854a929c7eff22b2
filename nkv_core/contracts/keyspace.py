"""Keyspace: what handlers and transports work on, and the contract that wraps.

A local keyspace over a storage, a shared engine, a full mesh and a hash ring all are keyspaces.
What one cannot do it refuses by name (`NotSupportedHere`). `nkv_core.testing.KeyspaceContract` is
the suite that an implementation passes.
"""

import enum
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Literal, Protocol, TypeVar

import msgspec

from nkv_core.contracts.settings import KeyspaceSettings
from nkv_core.keys import EVERYTHING, Pattern
from nkv_core.records import Change, RangeTombstone, Record, Token, Tombstone, Version


class Capabilities(msgspec.Struct, frozen=True):
    """What a keyspace can do."""

    batch: Literal["any", "same_owner", "none"]
    compare_and_set: Literal["linearizable", "local", "per_owner"]
    history: bool  #: whether `changes` can look back
    expiry: bool
    durable: bool  #: whether an acknowledged write survives the death of the machine


class Presence(enum.Enum):
    """A condition on whether a record is there at all."""

    ABSENT = "absent"
    PRESENT = "present"


#: A condition on a record: that it is absent, present, or just this version; None is no condition.
Expect = Presence | Version | None


class Put(msgspec.Struct, frozen=True):
    """Set a value. `expires`: milliseconds since 1970, or None for never."""

    key: str
    value: bytes
    expires: int | None = None
    expect: Expect = None
    cause: str = "put"


class Delete(msgspec.Struct, frozen=True):
    """Delete a record. Where there is none, nothing happens."""

    key: str
    expect: Expect = None
    cause: str = "delete"


class Touch(msgspec.Struct, frozen=True):
    """Change when a record expires, and nothing else. Where there is none, nothing happens."""

    key: str
    expires: int | None
    expect: Expect = None
    cause: str = "touch"


class Clear(msgspec.Struct, frozen=True):
    """Delete every record whose key begins with `prefix`; the empty one clears everything."""

    prefix: str = ""
    cause: str = "clear"


Operation = Put | Delete | Touch | Clear


class Check(msgspec.Struct, frozen=True):
    """A condition on a record that the batch need not change."""

    key: str
    expect: Presence | Version


class Options(msgspec.Struct, frozen=True):
    """How a call is to be carried out. What a keyspace has no use for it ignores."""

    deadline: float | None = None  #: seconds from the call on; None is the keyspace's own
    acknowledge: Literal["local", "majority", "all"] | None = None
    read_quorum: int | None = None
    write_quorum: int | None = None


DEFAULT_OPTIONS: Final = Options()


class Acknowledged(msgspec.Struct, frozen=True):
    """How far a write had come among the nodes of a mesh when its caller was answered."""

    nodes: int  #: that have made it durable, this one included
    wanted: int  #: how many were asked for

    @property
    def reached(self) -> bool:
        """Whether as many have it as were asked for. The write stands in either case."""
        return self.nodes >= self.wanted


class Written(msgspec.Struct, frozen=True):
    """What an operation did. `revision` is None where it had nothing to do."""

    revision: int | None
    record: Record | None  #: as it is now: of a put and a touch
    previous: Record | None  #: as it was before, None where there was none
    #: By which nodes, where more than this one were asked for.
    acknowledged: Acknowledged | None = None


class Page(msgspec.Struct, frozen=True):
    """Some records in key order; `after` continues behind them and is None at the end."""

    records: list[Record]
    after: str | None


class ChangePage(msgspec.Struct, frozen=True):
    """Some changes in the order of their revisions.

    `token` is the place behind them, to continue from. `gap` says that changes behind the token
    asked for are no longer kept, or that it is of another history: what follows is not complete.
    """

    changes: list[Change]
    token: Token
    gap: bool = False


#: Called on the event loop with the changes of each commit, in order of revision. It must be quick
#: and must not raise.
Tail = Callable[[Sequence[Change]], None]
Foreign = Record | Tombstone | RangeTombstone
#: Makes one record of ours and theirs: see `Replicable.apply_foreign`. It may run in a thread.
Merge = Callable[[Record, Record], Record]
#: What is known of one key: its record, or that it was deleted.
Entry = Record | Tombstone


class EntryPage(msgspec.Struct, frozen=True):
    """Some entries in key order; `after` continues behind them and is None at the end."""

    entries: list[Entry]
    after: str | None


T = TypeVar("T")


class View(Protocol):
    """What a transaction sees and does: committed records, and what it has changed so far.

    Its methods raise `InvalidKey`, `ValueTooLarge` and `InvalidExpiry`.
    """

    @property
    def history(self) -> str:
        """The id of the history that revisions belong to."""

    @property
    def now(self) -> int:
        """Milliseconds since 1970, the same throughout the transaction."""

    def get(self, key: str) -> Record | None:
        """The record of a key, or None."""

    def put(
        self, key: str, value: bytes, *, expires: int | None = None, cause: str = "put"
    ) -> Written:
        """Set a value."""

    def delete(self, key: str, *, cause: str = "delete") -> Written:
        """Delete a record; `previous` is None where there was none."""

    def touch(self, key: str, expires: int | None, *, cause: str = "touch") -> Written:
        """Change a record's expiry; `previous` is None where there was none."""

    def clear(self, prefix: str = "", *, cause: str = "clear") -> Written:
        """Delete every record whose key begins with `prefix`."""


#: Reads and writes through the view that it is given; where it raises, nothing is changed. It must
#: not wait, may be called again, and may be called in another thread.
Transaction = Callable[[View], T]


class Prompt(Protocol):
    """A keyspace as plain functions see it: each gives its result where no waiting is needed for
    it, and else what is to be awaited. `nkv_core.prompt.prompt_of` makes one of any keyspace.

    A write that gives a `nkv_core.loop.Pending` has its place in the order of writes already.
    """

    def get_now(self, key: str) -> Record | Awaitable[Record | None] | None:
        """The record of a key, or None. Raises as `Keyspace.get`."""

    def write_now(self, operation: Operation) -> Written | Awaitable[Written]:
        """Carry out one operation. Raises, now or when awaited, as `Keyspace.put`."""

    def transact_now(
        self, transaction: Transaction[T], keys: Sequence[str], size: int = 0
    ) -> T | Awaitable[T]:
        """Carry out a transaction as one atomic step; gives what it returns, or raises what it
        raises. `keys` are those that it is going to look at, as far as known; `size` is roughly how
        many bytes it is going to write.
        """


class Keyspace(Protocol):
    """A map of keys to records that tells what changes.

    Every method that writes returns once the write is as durable as the keyspace promises, and
    raises `Overloaded`, `StorageFailed` or `StorageFull` where nothing was written,
    `DeadlineExceeded` or `OutcomeUnknown` where that is not known. Keys, values and expiries are
    checked: `InvalidKey`, `ValueTooLarge`, `InvalidExpiry`.
    """

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""

    @property
    def history(self) -> str:
        """The id of the history that its revisions belong to."""

    @property
    def token(self) -> Token:
        """The place behind the last committed change."""

    async def get(self, key: str, options: Options = DEFAULT_OPTIONS) -> Record | None:
        """The record of a key, or None."""

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
        """Set a value. Raises `ConditionFailed` or `OtherHistory` where `expect` does not hold."""

    async def delete(
        self,
        key: str,
        *,
        expect: Expect = None,
        cause: str = "delete",
        options: Options = DEFAULT_OPTIONS,
    ) -> Written:
        """Delete a record; `previous` is None where there was none. Raises as `put`."""

    async def touch(
        self,
        key: str,
        expires: int | None,
        *,
        expect: Expect = None,
        cause: str = "touch",
        options: Options = DEFAULT_OPTIONS,
    ) -> Written:
        """Change a record's expiry; `previous` is None where there was none. Raises as `put`."""

    async def batch(
        self,
        operations: Sequence[Operation],
        checks: Sequence[Check] = (),
        options: Options = DEFAULT_OPTIONS,
    ) -> list[Written]:
        """Carry out all operations, in order, if every condition holds; otherwise none.

        A condition of an operation is checked against what the operations before it leave; `checks`
        against what was there before. Raises as `put`.
        """

    async def clear(
        self, prefix: str = "", *, cause: str = "clear", options: Options = DEFAULT_OPTIONS
    ) -> Written:
        """Delete every record whose key begins with `prefix`, as one change."""

    async def scan(
        self,
        pattern: Pattern = EVERYTHING,
        *,
        after: str | None = None,
        limit: int = 1000,
        options: Options = DEFAULT_OPTIONS,
    ) -> Page:
        """Records that match, in key order, beginning behind the key `after`."""

    async def count(self) -> int:
        """How many records there are."""

    async def changes(
        self, since: Token, pattern: Pattern = EVERYTHING, *, limit: int = 1000
    ) -> ChangePage:
        """Changes behind `since`, read from the log; an empty page where there are none yet.

        Raises `InvalidToken` where the token lies ahead of this history.
        """

    def tail(self, listener: Tail) -> Callable[[], None]:
        """Have `listener` called with every commit from now on; returns what ends that."""

    async def apply_foreign(self, records: Sequence[Foreign]) -> int:
        """Take records and tombstones of other nodes as they are, each only where it is newer than
        what is here; returns how many were. Their changes have the cause `replicated`.
        """


class Replicable(Keyspace, Protocol):
    """A keyspace of one node, as a mesh needs it to keep several of them equal."""

    @property
    def settings(self) -> KeyspaceSettings:
        """Its limits, and how long it remembers what."""

    async def entries(self, after: str | None = None, *, limit: int = 1000) -> EntryPage:
        """What is known of each key, in key order, beginning behind the key `after`.

        A record past its expiry is given until it is swept. What a clear hides is not given: see
        `clears`. Each part of a page is of one moment, the whole is not.
        """

    def clears(self) -> list[RangeTombstone]:
        """The clears that are remembered."""

    async def apply_foreign(self, records: Sequence[Foreign], merge: Merge | None = None) -> int:
        """As `Keyspace.apply_foreign`. Where both sides have a record of a key, `merge` makes one
        of them, in the write itself; it gets the greater timestamp and origin of the two. Nothing
        is taken where that is our own. Where it is neither ours nor theirs, the change has the
        cause `merged`. `merge` must not raise.
        """
