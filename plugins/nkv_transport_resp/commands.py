"""Commands as handlers of the listener `resp`: what is the same for all of them."""

from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from nkv_core.contracts.handlers import Handlers, Request
from nkv_core.contracts.keyspace import Put, Written
from nkv_core.errors import Stopping
from nkv_core.loop import Pending
from nkv_core.prompt import prompt_of
from nkv_core.records import Record

from .arguments import key_of, wrong_arity
from .replies import OK, Refusal
from .session import LISTENER, METHOD, Call, Session
from .table import Spec, Table
from .views import ReadView, Waits, give_up, noting


def register(handlers: Handlers, table: Table) -> None:
    """Register one handler for each command."""
    special = {"get": _get, "set": _set}
    for spec in table.specs.values():
        handlers.add(
            spec.name.upper(),
            special.get(spec.name, _of_kind)(spec),
            (METHOD,),
            LISTENER,
            command=spec.event or spec.name,
            timeout=None,
            public=spec.public,
        )


def _of_kind(spec: Spec) -> Callable[[Request], Any]:
    if spec.kind == "read":
        return _reading(spec)
    if spec.kind == "write":
        return _writing(spec)

    def handle(request: Request) -> Any:
        call = _call_of(request, spec)
        queued = _admit(call, call.session, spec)
        return spec.run(call, call.words) if queued is None else queued

    return handle


def _admit(call: Call, session: Session, spec: Spec) -> Any:
    """Whether it is carried out now: None, or the reply where it is kept for later.

    Raises `Refusal` where it is not possible here.
    """
    words, arity = call.words, spec.arity
    if len(words) != arity if arity > 0 else len(words) < -arity:
        raise wrong_arity(spec.name)
    if spec.check is not None:
        spec.check(words)
    if session.protocol == 2 and not spec.subscribed and (session.channels or session.patterns):
        raise Refusal(
            f"ERR Can't execute '{spec.name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT"
            " / RESET are allowed in this context"
        )
    if session.multi is not None and not spec.at_once:
        return session.multi.queue(spec, words)
    return None


def _call_of(request: Request, spec: Spec) -> Call:
    """A request as a call. It may come over a connection of the generation before, which is about
    to be closed: what needs no more of it than to be answered is carried out.

    Raises `Stopping` where it is not.
    """
    if type(request) is Call:
        return request
    call = cast("Call", request)
    plain = spec.kind in ("read", "write") or spec.name in _STATELESS
    if plain and getattr(call, "form", None) == Call.form and not call.session.special:
        return call
    raise Stopping("The plugin that serves this connection is being replaced: connect again.")


_STATELESS: Final = frozenset(("auth", "client", "echo", "hello", "ping", "quit", "select"))


# --- about keys -----------------------------------------------------------------------------------


def _reading(spec: Spec) -> Callable[[Request], Any]:
    run = spec.run

    def handle(request: Request) -> Any:
        call = request if type(request) is Call else _call_of(request, spec)
        session = call.session
        queued = _admit(call, session, spec)
        if queued is not None:
            return queued
        words = call.words
        keys = spec.keys(words)
        session.remember(keys)
        prompt = prompt_of(call.keyspace)
        # Of several keys at once: a transaction may be committed between two of them otherwise.
        if len(keys) == 1 and not _waits(session, call):
            try:
                return run(ReadView(prompt), words)
            except Waits:
                pass
        return prompt.transact_now(lambda view: run(view, words), keys)

    return handle


def _waits(session: Session, call: Call) -> bool:
    """Whether writes come before this that are not committed yet."""
    return call.queued and session.waiting


def _writing(spec: Spec) -> Callable[[Request], Any]:
    run = spec.run

    def handle(request: Request) -> Any:
        call = request if type(request) is Call else _call_of(request, spec)
        session = call.session
        queued = _admit(call, session, spec)
        if queued is not None:
            return queued
        words = call.words
        return prompt_of(call.keyspace).transact_now(
            noting(session, lambda view: run(view, words)),
            spec.keys(words),
            sum(map(len, words)),
        )

    return handle


# --- the two that matter most ---------------------------------------------------------------------


def _get(spec: Spec) -> Callable[[Request], Any]:
    usual = _reading(spec)

    def handle(request: Request) -> Any:
        call = request
        if type(call) is not Call or call.queued or call.session.special or len(call.words) != 2:
            return usual(request)
        record = prompt_of(call.keyspace).get_now(key_of(call.words[1]))
        if record is None:
            return None
        if isinstance(record, Record):
            return record.value
        give_up(record)
        return usual(request)

    return handle


def _set(spec: Spec) -> Callable[[Request], Any]:
    usual = _writing(spec)

    def handle(request: Request) -> Any:
        call = request
        if type(call) is not Call or call.session.special or len(call.words) != 3:
            return usual(request)
        _, key, value = call.words
        written = prompt_of(call.keyspace).write_now(Put(key_of(key), value, None, None, "set"))
        if isinstance(written, Written):
            return OK
        return written.map(_done) if isinstance(written, Pending) else _set_later(written)

    return handle


def _done(_: Written) -> Any:
    return OK


async def _set_later(written: Awaitable[Written]) -> Any:
    await written
    return OK
