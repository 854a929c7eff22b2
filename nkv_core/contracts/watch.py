"""Watch: how all who tell of changes follow the one change stream.

A hub reads the changes of a keyspace once and knows which watcher is concerned. A watcher is
pulled: the hub calls its `wake`, a plain function, and whoever owns it then calls `take` until that
gives nothing. There is no task and no queue of its own behind a watcher that waits.

Every item has a `token`: where to resume once it has been dealt with. It is None where resuming is
not possible there, which is inside a snapshot; the last token before it is the one to keep.
`docs/watching.md` has the promises in full.
"""

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeVar

import msgspec

from nkv_core.contracts.settings import Count, Seconds
from nkv_core.errors import InvalidToken
from nkv_core.keys import Pattern
from nkv_core.records import Change, Record, Token

if TYPE_CHECKING:
    from nkv_core.contracts.context import State

Mode = Literal["every", "latest"]
#: Called by the hub on the event loop, within the commit of a change: it may set a flag, schedule a
#: callback, `take`, or close a watcher, and must return at once. One that raises is logged.
Wake = Callable[[], None]

Form = TypeVar("Form", bytes, str)

DEFAULT_TAKE: Final = 256


# --- items ----------------------------------------------------------------------------------------


class Changed(msgspec.Struct, eq=False):
    """A committed change. One object is shared by all the watchers that are told of it."""

    change: Change
    history: str | None  #: of its revision; None inside a snapshot
    _forms: dict[str, bytes | str] | None = None

    @property
    def token(self) -> Token | None:
        """Where to resume behind this change."""
        return None if self.history is None else Token(self.history, self.change.revision)

    def form(self, name: str, make: Callable[["Changed"], Form]) -> Form:
        """This change as `make` encodes it, made once and kept under `name` for all who ask.

        The name is that of a format, with whatever else the result depends on. It outlives the
        generation of a plugin, so a format that changes needs a new one.
        """
        if self._forms is None:
            self._forms = {}
        form = self._forms.get(name)
        if form is None:
            form = self._forms[name] = make(self)
        return form  # type: ignore[return-value]  # a name stands for one type


class SnapshotRecord(msgspec.Struct, frozen=True):
    """A record as it is now, of a snapshot that is being sent."""

    record: Record

    @property
    def token(self) -> None:
        """None: a snapshot is resumed from its beginning."""
        return None


class SnapshotEnd(msgspec.Struct, frozen=True):
    """The end of a snapshot: all that was sent since it began is the store as of `token`."""

    token: Token


class Gap(msgspec.Struct, frozen=True):
    """Changes behind `after`, up to and with `upto`, cannot be told any more.

    With `resync` a snapshot follows, which replaces all that was told before; otherwise the changes
    behind `upto` do. Where the tokens differ in their histories, there is no counting what is lost.
    """

    after: Token
    upto: Token
    resync: bool

    @property
    def token(self) -> Token | None:
        """Where to resume: `upto`, or None where a snapshot follows."""
        return None if self.resync else self.upto


class Ended(msgspec.Struct, frozen=True):
    """The last item of a watcher that the hub has ended. `code` is that of an error.

    `token` is where another watcher can go on; None where this one had not come so far.
    """

    token: Token | None
    code: str
    detail: str


Item = Changed | SnapshotRecord | SnapshotEnd | Gap | Ended


# --- hub and watchers -----------------------------------------------------------------------------


class WatcherInfo(msgspec.Struct, frozen=True):
    """One watcher, as `/v1/status` shows it."""

    id: int
    label: str
    pattern: str
    subtree: bool
    mode: Mode
    state: Literal["live", "behind", "snapshot", "ended"]
    token: Token | None  #: where it would resume
    behind: int  #: changes not taken: exact while live, else at most so many
    bytes: int  #: of these, as far as the hub still has them in memory
    age: float  #: seconds for which it has had something to take


class Watcher(Protocol):
    """Follows the changes of the keys that match a pattern. To be used on the event loop only."""

    @property
    def id(self) -> int:
        """Its number, unique in the life of the hub."""

    @property
    def label(self) -> str:
        """Who watches, for people."""

    @property
    def token(self) -> Token | None:
        """Where another watcher could go on behind what was taken here.

        None inside a snapshot, and once the watcher is closed.
        """

    @property
    def closed(self) -> bool:
        """Whether nothing will come any more: it was closed, or `Ended` has been taken."""

    def take(self, limit: int = DEFAULT_TAKE) -> list[Item]:
        """At most `limit` items that are ready, without waiting.

        Only after an empty list will `wake` be called for what comes next.
        """

    async def read(self, limit: int = DEFAULT_TAKE) -> list[Item]:
        """As `take`, but waits for the first item; an empty list says that it is closed."""

    async def next(self) -> Item | None:
        """Wait for one item; None says that the watcher is closed."""

    def __aiter__(self) -> AsyncIterator[Item]:
        """The items one by one, until the watcher is closed."""

    def close(self) -> None:
        """Stop watching, without `Ended`. Closing twice does nothing."""

    def info(self) -> WatcherInfo:
        """How it is doing."""


class Hub(Protocol):
    """Where watchers come from."""

    @property
    def token(self) -> Token:
        """The place behind the last change that was told."""

    def watch(
        self,
        pattern: Pattern | str,
        *,
        subtree: bool = False,
        mode: Mode = "every",
        since: Token | None = None,
        snapshot: bool = False,
        resync: bool | None = None,
        wake: Wake | None = None,
        label: str = "",
        pending: int | None = None,
    ) -> Watcher:
        """Watch the keys that match `pattern`; with `subtree` also all that lies below these.

        `every` tells each change in order; `latest` may skip values of a key that has a newer one.
        `since` resumes behind a token, and where that cannot be, tells a gap and sends a snapshot.
        `snapshot` sends the current records first, unless `since` can be resumed.
        `resync` says whether a gap is followed by a snapshot; by default it is in mode `latest`,
        with `snapshot`, and where `since` could not be resumed.
        `wake` is called when there is something to take after there was nothing.
        `pending` is how many changes (or keys) to note before the watcher counts as behind.

        Raises `InvalidPattern`; `InvalidToken` where `since` lies ahead of this history;
        `Overloaded` where there are too many watchers; `Stopping` once the hub is closed.
        """

    def watchers(self, limit: int = 1000) -> list[WatcherInfo]:
        """At most `limit` watchers, those that are farthest behind first."""


class WatchSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Section `watch`."""

    ring_bytes: Count = 8 * 1024 * 1024  #: of recent changes kept in memory for all watchers
    pending: Count = 256  #: changes (or keys) noted for one watcher before it is behind
    page_bytes: Count = 256 * 1024  #: read at once, for one watcher, from the log or the store
    max_watchers: Count = 200_000
    readers: Count = 4  #: watchers that are read for at the same time
    read_deadline: Seconds = 30.0  #: of one page
    give_up: Seconds = 60.0  #: how long reading for a watcher may fail before it is ended


# --- durable cursors ------------------------------------------------------------------------------


class Cursor:
    """The place of one named consumer, kept in a plugin's durable state: at least once.

    Save a token after what it stands behind has been delivered. What was delivered but not saved is
    delivered again after a crash, with the same token.
    """

    __slots__ = ("_key", "_saved", "_state")

    def __init__(self, state: "State", name: str) -> None:
        """`name` tells the consumers of one plugin apart."""
        self._state = state
        self._key = f"cursor.{name}"
        self._saved: Token | None = None

    @property
    def saved(self) -> Token | None:
        """What was loaded or saved last."""
        return self._saved

    async def load(self) -> Token | None:
        """The token saved last, or None. Raises `InvalidToken` where what is stored is none."""
        stored = await self._state.get(self._key)
        try:
            self._saved = None if stored is None else Token.parse(stored.decode())
        except (InvalidToken, UnicodeDecodeError):
            raise InvalidToken(f"The stored {self._key!r} is not a watch token.") from None
        return self._saved

    async def begin(self, now: Token) -> Token:
        """The token saved last; without one, `now`, which is saved first.

        So a consumer that dies before its first delivery still begins here the next time.
        """
        saved = await self.load()
        if saved is None:
            await self.save(now)
            return now
        return saved

    async def save(self, token: Token | None) -> None:
        """Keep this token. None (an item inside a snapshot) and one already saved cost nothing."""
        if token is None or token == self._saved:
            return
        await self._state.put(self._key, str(token).encode())
        self._saved = token

    async def forget(self) -> None:
        """Have the consumer begin anew the next time."""
        await self._state.delete(self._key)
        self._saved = None
