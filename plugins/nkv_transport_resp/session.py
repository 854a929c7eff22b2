"""Session: one client, from the accepted connection to its end.

What has come is parsed, each command goes through dispatch, and the replies leave in one write for
each read. A command that is not done at once keeps its place in the order of replies. Writes that
wait for their commit do not hold up the commands behind them as long as these find their own place
in the order of writes; all other commands wait until what came before them is answered.
"""

import asyncio
from collections import deque
from collections.abc import Coroutine
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, cast

from nkv_core.contracts.handlers import NO_PARAMS, Request, Route
from nkv_core.contracts.identity import Identity
from nkv_core.errors import NkvError, NoHandler, Stopping, Unauthenticated

from .arguments import unknown_command
from .connection import credential_of
from .parser import Command, Parser
from .replies import NO_AUTH, Refusal, encode, encode_error
from .tracking import Tracking
from .transactions import Multi

if TYPE_CHECKING:
    from .server import Shared

LISTENER: Final = "resp"
METHOD: Final = "CALL"

#: Commands of one client carried out before others have their turn.
_TURN: Final = 256
#: Commands that wait before nothing more is read from the client.
_BACKLOG: Final = 1024
#: Seconds for which a client may take the last of what it is sent.
_FAREWELL: Final = 5.0
_WITH_TOKEN: Final = frozenset(("AUTH", "HELLO"))
#: How an HTTP request begins. Redis closes the connection too, for the sake of those whose browser
#: was made to send it.
_HTTP: Final = frozenset((b"POST", b"HOST:"))


class Call(Request):
    """A command on its way through dispatch, and its place in the order of replies."""

    __slots__ = ("data", "queued", "session", "words")
    #: Calls of one form can be carried out by handlers of another generation. To be raised whenever
    #: handlers need something else of a call or its session, or give other types of outcomes.
    form = 1

    def __init__(self, session: "Session", path: str, words: Command, keyed: bool) -> None:
        # In the place of the base's own, which takes twice as long.
        self.transport = LISTENER
        self.method = METHOD
        self.path = path
        self.headers = NO_PARAMS
        self.body = b""
        self.peer = session.peer
        self.credential = session.credential
        self.receive_body = None
        self.id = 0
        self.command = ""
        self.identity = None
        self.params = (
            {"key": words[1].decode(errors="replace")} if keyed and len(words) > 1 else NO_PARAMS
        )
        self.session = session
        self.words = words
        self.data: bytes | None = None  #: the reply, once it is there
        self.queued = False  #: whether it waits for its place

    def reply(self, outcome: Any, error: NkvError | None, _: Route | None) -> None:
        """Take the outcome."""
        session = self.session
        if error is None:
            self.data = encode(outcome, session.protocol)
        else:
            self.data = session.refuse(self, error)
        if self.queued:
            session.advance()


class Session(asyncio.Protocol):
    """Serves one client."""

    def __init__(self, shared: "Shared") -> None:
        self.shared: Final = shared
        settings = shared.settings
        self._parser: Final = Parser(
            settings.max_arguments, settings.max_bulk_bytes, settings.max_query_bytes
        )
        self._loop: Final = shared.loop
        self._out: list[bytes] = []
        self._slots: deque[Call] = deque()
        self._backlog: deque[Command] = deque()
        self._orderly = True  # whether all that is under way are writes that have their place
        self._running = False
        self._flush_due = False
        self._paused = False
        self._farewell: bytes | None = None  # to be sent when all is answered, before the end
        self._ending = False
        self.gone = False
        self.heard = False  #: whether the client has said anything yet
        self.tasks: set[asyncio.Task[None]] = set()
        # What commands see and change:
        self.id: Final = shared.next_id()
        self.began: Final = self._loop.time()
        self.last = self.began
        self.command = ""
        self.peer = ""
        self.local = ""
        self.name = b""
        self.library = b""
        self.library_version = b""
        self.protocol = 2
        self.credential: str | None = None
        self.identity: Identity | None = None
        self.channels: dict[bytes, None] = {}
        self.patterns: dict[bytes, None] = {}
        self.multi: Multi | None = None
        self.watched: dict[str, int | None] = {}
        self.tracking: Tracking | None = None

    # --- what asyncio calls -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = transport = cast(
            "asyncio.Transport", transport
        )  # uvloop's is no subclass
        transport.set_write_buffer_limits(high=self.shared.settings.max_output_bytes)
        self.peer = _address(transport.get_extra_info("peername"))
        self.local = _address(transport.get_extra_info("sockname"))
        if not self.shared.enter(self):
            transport.write(b"-ERR max number of clients reached\r\n")
            self.gone = True
            transport.close()

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        if self.gone or self._ending:
            return
        self.last = self._loop.time()
        self.heard = True
        commands, hostile = self._parser.feed(data)
        if hostile is not None:
            self._farewell = f"-ERR {hostile}\r\n".encode()
            self._stop_reading()
        if self._backlog or self._running:
            self._backlog.extend(commands)
            self._hold_back()
        elif commands:
            self._run(commands)
        if self._farewell is not None:
            self._end_if_done()

    def pause_writing(self) -> None:
        """The client has not taken what it was sent, for too long."""
        self.shared.log.warning(
            "client %d (%s) does not read its replies: closing the connection", self.id, self.peer
        )
        self.shared.figures.cut_for_output += 1
        self.cut()

    def eof_received(self) -> bool:
        """The client sends no more. What it has sent is still answered."""
        self.finish()
        return True

    def connection_lost(self, _: Exception | None) -> None:
        """Forget everything that was kept for the client."""
        self.gone = True
        self._backlog.clear()
        self._out.clear()
        self.shared.leave(self)
        for task in self.tasks:
            task.cancel()

    # --- commands ---------------------------------------------------------------------------------

    def _run(self, commands: "list[Command] | deque[Command]") -> None:
        """Carry out commands until one has to wait, or others are to have their turn."""
        self._running = True
        done = 0
        try:
            for words in islice(commands, _TURN):
                if self.gone or self._ending or not self._execute(words):
                    break
                done += 1
        finally:
            self._running = False
        if commands is self._backlog:
            for _ in range(done):
                if self._backlog:
                    self._backlog.popleft()
        elif done < len(commands) and not self.gone and not self._ending:
            self._backlog.extend(islice(commands, done, None))
        if self._out:
            self._flush_soon()
        if self._backlog:
            self._hold_back()
            if done == _TURN:
                self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        """Carry out what had to wait."""
        if self._backlog and not self.gone and not self._running:
            self._run(self._backlog)
        if not self._backlog and self._paused and not self._ending and not self.gone:
            self._paused = False
            self._transport.resume_reading()
        if self._farewell is not None:
            self._end_if_done()

    def _execute(self, words: Command) -> bool:
        """Carry out one command; whether it could be begun."""
        found = self.shared.table.find(words[0])
        if found is None:
            if words[0].upper() in _HTTP:
                self.shared.log.warning("client %d (%s) speaks HTTP: closing", self.id, self.peer)
                self.cut()
                return False
            path = words[0][:128].decode(errors="replace").upper()
            keyed = orderly = False
        else:
            path, keyed, orderly = found
        slots = self._slots
        if slots and not (orderly and self._orderly):
            return False
        self.command = path
        call = Call(self, path, words, keyed)
        if path in _WITH_TOKEN and (token := credential_of(path, words)) is not None:
            call.credential = token
        if slots:
            call.queued = True
            slots.append(call)
        rest = self.shared.dispatch_now(call, call.reply)
        if not call.queued:
            if call.data is not None:
                self._out.append(call.data)
                return True
            call.queued = True
            slots.append(call)
        if rest is not None:
            self._orderly = False
            self._begin(rest)
        return True

    def _begin(self, rest: Coroutine[Any, Any, None]) -> None:
        # It ends with the session, and is begun by what cannot wait.
        task = self._loop.create_task(rest)  # nkv: allow unowned_task
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.shared.log.error("a command of client %d failed", self.id, exc_info=error)
            self.cut()

    @property
    def waiting(self) -> bool:
        """Whether commands before this one are not answered yet."""
        return bool(self._slots)

    def advance(self) -> None:
        """Send the replies whose turn has come, and go on with what waits for them."""
        slots = self._slots
        while slots and (data := slots[0].data) is not None:
            slots.popleft()
            self._out.append(data)
        self._flush_soon()
        if not slots:
            self._orderly = True
            if self._running:
                return
            if self._backlog or self._paused or self._farewell is not None:
                self._loop.call_soon(self._go_on)

    def refuse(self, call: Call, error: NkvError) -> bytes:
        """The reply to a command that was refused."""
        if isinstance(error, NoHandler):
            error = Stopping() if self.shared.owner.draining else unknown_command(call.words)
        elif isinstance(error, Unauthenticated):
            error = _unauthenticated(call)
        if self.multi is not None and call.path not in ("MULTI", "WATCH", "EXEC"):
            self.multi.refused = True
        return encode_error(error)

    # --- what is sent -----------------------------------------------------------------------------

    def push(self, data: bytes) -> None:
        """Send something that is no reply."""
        if not self.gone:
            self._out.append(data)
            self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self.shared.together.call(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        out = self._out
        if out and not self.gone:
            data = out[0] if len(out) == 1 else b"".join(out)
            out.clear()
            self._transport.write(data)

    # --- the end ----------------------------------------------------------------------------------

    def finish(self) -> None:
        """Answer what has come, take no more, and close the connection."""
        if self.gone or self._ending or self._farewell is not None:
            return
        self._farewell = b""
        self._stop_reading()
        self._end_if_done()

    def quit(self) -> None:
        """Close the connection behind the reply to this command; what came after it is dropped."""
        self._backlog.clear()
        self._ending = True
        self._farewell = b""
        self._stop_reading()
        self._loop.call_soon(self._end_if_done)

    def cut(self) -> None:
        """Close the connection at once."""
        if not self.gone:
            self.gone = True
            self._transport.abort()

    def _stop_reading(self) -> None:
        if not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def _hold_back(self) -> None:
        if len(self._backlog) >= _BACKLOG:
            self._stop_reading()

    def _end_if_done(self) -> None:
        if self._slots or self._backlog or self._running or self.gone:
            return
        self._ending = True
        if self._farewell:
            self._out.append(self._farewell)
        self._flush()
        self.gone = True
        self._transport.close()
        self._loop.call_later(_FAREWELL, self._transport.abort)

    # --- what commands ask ------------------------------------------------------------------------

    @property
    def special(self) -> bool:
        """Whether a command may be something else than itself: kept for later, refused, noted."""
        return (
            self.multi is not None
            or self.tracking is not None
            or bool(self.channels or self.patterns)
        )

    def remember(self, keys: list[str]) -> None:
        """Take note that the client is about to read these keys, where it keeps what it reads."""
        tracking = self.tracking
        if tracking is not None:
            if tracking.keeps:
                self.shared.tracker.remember(self, keys)
            tracking.caching = None  # it was said of one command

    def own(self, revisions: list[int]) -> None:
        """Take note that these changes are the client's own."""
        for revision in revisions:
            self.shared.tracker.own(self, revision)

    def new_multi(self) -> Multi:
        """A transaction to be put together."""
        settings = self.shared.settings
        return Multi(settings.max_queued, settings.max_query_bytes)

    def may_read(self, key: str) -> bool:
        """Whether the client may be told of this key."""
        return self.identity is None or self.identity.may_read(key)

    @property
    def output_bytes(self) -> int:
        """Bytes that wait to be taken by the client."""
        return self._transport.get_write_buffer_size()

    @property
    def query_bytes(self) -> int:
        """Bytes of a command that is not whole."""
        return self._parser.waiting


def _unauthenticated(call: Call) -> NkvError:
    if credential_of(call.path, call.words) is not None:
        return Refusal("WRONGPASS invalid username-password pair or user is disabled.")
    if call.path == "HELLO":
        return Refusal(
            "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO"
            " <proto> AUTH <user> <pass> option can be used to authenticate the client and select"
            " the RESP protocol version at the same time"
        )
    return Refusal(NO_AUTH)


def _address(name: Any) -> str:
    if not isinstance(name, tuple):
        return ""
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"{host}:{name[1]}"
