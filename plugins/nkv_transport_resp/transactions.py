"""Transactions: MULTI, EXEC, DISCARD, WATCH, UNWATCH.

The commands of a transaction are carried out as one transaction of the keyspace. Those that are not
about keys are carried out behind it, in their order, and their replies put into their places.
"""

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Final

from nkv_core.contracts.keyspace import View
from nkv_core.errors import NkvError
from nkv_core.loop import Pending
from nkv_core.prompt import prompt_of
from nkv_core.records import Record

from .arguments import key_of
from .replies import NULL_ARRAY, OK, QUEUED, Refusal
from .views import noting

if TYPE_CHECKING:
    from .session import Call
    from .table import Spec

_LATER: Final = object()
_CHANGED: Final = object()


class Multi:
    """A transaction that is being put together."""

    __slots__ = ("_most_bytes", "_most_commands", "commands", "refused", "size")

    def __init__(self, most_commands: int, most_bytes: int) -> None:
        self._most_commands: Final = most_commands
        self._most_bytes: Final = most_bytes
        self.commands: list[tuple[Spec, list[bytes]]] = []
        self.refused = False  #: whether one of the commands was refused, and so all are
        self.size = 0

    def queue(self, spec: "Spec", words: list[bytes]) -> Any:
        """Take one more command."""
        if spec.kind == "alone":
            raise Refusal(f"ERR {spec.name.upper()} is not possible in a transaction here")
        self.size += sum(map(len, words))
        if len(self.commands) >= self._most_commands or self.size > self._most_bytes:
            self.commands.clear()
            self.size = 0
            raise Refusal("ERR the transaction is too large")
        self.commands.append((spec, words))
        return QUEUED


def multi(call: "Call", _: list[bytes]) -> Any:
    """`MULTI`."""
    session = call.session
    if session.multi is not None:
        raise Refusal("ERR MULTI calls can not be nested")
    session.multi = session.new_multi()
    return OK


def discard(call: "Call", _: list[bytes]) -> Any:
    """`DISCARD`."""
    session = call.session
    if session.multi is None:
        raise Refusal("ERR DISCARD without MULTI")
    session.multi = None
    session.watched.clear()
    return OK


def watch(call: "Call", words: list[bytes]) -> Any:
    """`WATCH key [key ...]`."""
    if call.session.multi is not None:
        raise Refusal("ERR WATCH inside MULTI is not allowed")
    keys = [key_of(word) for word in words[1:]]
    prompt = prompt_of(call.keyspace)
    found = [prompt.get_now(key) for key in keys]
    if any(isinstance(each, Awaitable) for each in found):
        return _watch_later(call, keys, found)
    _note(call, keys, found)  # type: ignore[arg-type]  # none of them is to be awaited
    return OK


async def _watch_later(
    call: "Call", keys: list[str], found: "list[Record | Awaitable[Record | None] | None]"
) -> Any:
    records = [await each if isinstance(each, Awaitable) else each for each in found]
    _note(call, keys, records)
    return OK


def _note(call: "Call", keys: list[str], records: list[Record | None]) -> None:
    watched = call.session.watched
    for key, record in zip(keys, records, strict=True):
        # What is watched already counts from the first time.
        watched.setdefault(key, None if record is None else record.revision)


def unwatch(call: "Call", _: list[bytes]) -> Any:
    """`UNWATCH`."""
    call.session.watched.clear()
    return OK


def execute(call: "Call", _: list[bytes]) -> Any:
    """`EXEC`."""
    session = call.session
    gathered, session.multi = session.multi, None
    if gathered is None:
        raise Refusal("ERR EXEC without MULTI")
    watched, session.watched = session.watched, {}
    if gathered.refused:
        raise Refusal("EXECABORT Transaction discarded because of previous errors.")
    commands = gathered.commands

    def transaction(view: View) -> Any:
        for key, revision in watched.items():
            record = view.get(key)
            if (None if record is None else record.revision) != revision:
                return _CHANGED
        return [_carry_out(spec, words, view) for spec, words in commands]

    keys = [*watched, *(key for spec, words in commands for key in spec.keys(words))]
    if not keys and all(spec.kind == "session" for spec, _ in commands):
        return _complete(call, commands, [_LATER] * len(commands))
    for spec, words in commands:
        if spec.kind == "read":
            session.remember(spec.keys(words))
    outcome = prompt_of(call.keyspace).transact_now(
        noting(session, transaction), list(dict.fromkeys(keys)), gathered.size
    )
    if isinstance(outcome, Pending):
        return outcome.map(lambda results: _complete(call, commands, results))
    if isinstance(outcome, Awaitable):
        return _complete_later(call, commands, outcome)
    return _complete(call, commands, outcome)


async def _complete_later(
    call: "Call", commands: "list[tuple[Spec, list[bytes]]]", outcome: Awaitable[Any]
) -> Any:
    return _complete(call, commands, await outcome)


def _carry_out(spec: "Spec", words: list[bytes], view: View) -> Any:
    if spec.kind == "session":
        return _LATER
    try:
        return spec.run(view, words)
    except Refusal as error:  # the others are carried out all the same, as in Redis
        return error.with_traceback(None)
    except NkvError as error:
        # Half of a command may have been done: there is no such thing here.
        raise Refusal(f"EXECABORT Transaction discarded because of: {error.detail}") from None


def _complete(call: "Call", commands: "list[tuple[Spec, list[bytes]]]", results: Any) -> Any:
    """Carry out what is not about keys, and put the replies together."""
    if results is _CHANGED:
        return NULL_ARRAY
    replies: list[Any] = []
    for (spec, words), result in zip(commands, results, strict=True):
        reply = result
        if result is _LATER:
            try:
                reply = spec.run(call, words)
            except NkvError as error:
                reply = error.with_traceback(None)
        replies.append(reply)
    return replies
