"""The node's end of the admin socket.

Sockets are used directly here: closing and cancelling anyio's streams over Unix sockets while data
arrives makes asyncio report errors that are none.
"""

import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import anyio
import msgspec
from anyio.abc import TaskGroup, TaskStatus

from nkv_core.admin.address import listen, remove
from nkv_core.errors import BadRequest, DeadlineExceeded, Forbidden, NkvError, NotSupportedHere

MAX_LINE: Final = 256 * 1024  #: bytes of a request
MAX_CONNECTIONS: Final = 16  #: more wait to be accepted
IDLE_DEADLINE: Final = 30.0  #: seconds between two requests, and for each to arrive whole
SEND_DEADLINE: Final = 10.0  #: seconds for a peer to take a line
_ACCEPT_PAUSE: Final = 0.2  #: seconds after a failed accept: too many open files, say
_CREDENTIALS: Final = struct.Struct("3i")  #: pid, uid, gid
_FAILED: Final = "The node could not do this; its log has the reason."

_log = logging.getLogger("nkv.admin")


class _Request(msgspec.Struct):
    verb: str
    id: int | str | None = None
    params: dict[str, Any] = {}


_decode_request: Final = msgspec.json.Decoder(_Request).decode


class Caller(msgspec.Struct, frozen=True):
    """The process at the other end, as the kernel names it."""

    pid: int
    uid: int

    def __str__(self) -> str:
        return f"process {self.pid} of user {self.uid}"


class Call:
    """What a verb is called with."""

    __slots__ = ("_progress", "caller", "params", "verb")

    def __init__(
        self,
        verb: str,
        params: dict[str, Any],
        caller: Caller,
        progress: Callable[[Any], Awaitable[None]],
    ) -> None:
        self.verb: Final = verb
        self.params: Final = params
        self.caller: Final = caller
        self._progress = progress

    async def progress(self, value: Any) -> None:
        """Tell the one who asked how far it is; nothing happens where they have gone."""
        await self._progress(value)


#: Is told who was turned away, and why.
Refused = Callable[[Caller, NkvError], None]

#: Answers a call with something that JSON can hold. An `NkvError` goes to the one who asked.
Verb = Callable[[Call], Awaitable[Any]]


def verbs(table: Mapping[str, Verb]) -> Verb:
    """One function of all verbs in the table. An unknown one raises `NotSupportedHere`."""

    async def handle(call: Call) -> Any:
        verb = table.get(call.verb)
        if verb is None:
            raise NotSupportedHere(
                f"This node has no verb {call.verb!r}. It has: {', '.join(sorted(table))}."
            )
        return await verb(call)

    return handle


async def serve_admin(
    path: Path,
    handle: Verb,
    refused: Refused | None = None,
    *,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the socket until cancelled; then it is removed.

    `refused` is told of whoever is turned away. A verb that is under way when its client goes is
    finished. Raises `DataDirError` where the socket cannot be made, `AddressInUse` where a node
    serves it.
    """
    listener, made = listen(path, MAX_CONNECTIONS)
    with listener:
        try:
            async with anyio.create_task_group() as tasks:
                task_status.started()
                await _accept(listener, handle, refused, tasks)
        finally:
            remove(path, made)


async def _accept(
    listener: socket.socket, handle: Verb, refused: Refused | None, tasks: TaskGroup
) -> None:
    slots = anyio.Semaphore(MAX_CONNECTIONS)

    async def serve(connection: socket.socket) -> None:
        with connection:
            try:
                await _converse(_Peer(connection), handle, refused)
            finally:
                slots.release()

    while True:
        await slots.acquire()
        await anyio.wait_readable(listener)
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # who came has gone
            slots.release()
        except OSError as error:
            _log.warning("a connection could not be accepted: %s", error)
            slots.release()
            await anyio.sleep(_ACCEPT_PAUSE)
        else:
            connection.setblocking(False)
            tasks.start_soon(serve, connection)


class _Peer:
    """One connection: lines in, lines out, both with deadlines."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = bytearray()
        self._gone = False
        packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(packed)
        self.caller: Final = Caller(pid, uid)

    async def line(self) -> bytes | None:
        """The next line, or None once there is none: a part of one is no line.

        Raises `BadRequest` for one too long, `DeadlineExceeded`.
        """
        try:
            with anyio.fail_after(IDLE_DEADLINE):
                return await self._line()
        except TimeoutError:
            raise DeadlineExceeded(f"No whole request came in {IDLE_DEADLINE:g} s.") from None

    async def _line(self) -> bytes | None:
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > MAX_LINE:
                raise BadRequest(f"The request is longer than {MAX_LINE} bytes.")
            if self._gone:
                return None
            await anyio.wait_readable(self._socket)
            try:
                piece = self._socket.recv(65536)
            except BlockingIOError:
                continue
            except OSError:
                piece = b""
            if not piece:
                return None
            self._buffer += piece
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    async def send(self, line: bytes) -> None:
        """Send a line. A peer that has gone, or does not read, is not sent anything any more."""
        if self._gone:
            return
        left = memoryview(line + b"\n")
        try:
            with anyio.fail_after(SEND_DEADLINE):
                while left:
                    await anyio.wait_writable(self._socket)
                    try:
                        left = left[self._socket.send(left) :]
                    except BlockingIOError:
                        continue
        except TimeoutError:
            self._gone = True
            _log.warning("%s does not read: it gets no answer", self.caller)
        except OSError:
            self._gone = True
            _log.info("%s went before the answer", self.caller)


async def _converse(peer: _Peer, handle: Verb, refused: Refused | None) -> None:
    try:
        if peer.caller.uid not in (0, os.geteuid()):
            _log.warning("refused %s", peer.caller)
            error = Forbidden("Only the node's own user and root may do this.")
            if refused is not None:
                refused(peer.caller, error)
            raise error
        while (line := await peer.line()) is not None:
            await _answer(peer, line, handle)
    except NkvError as error:
        await peer.send(msgspec.json.encode({"id": None, "error": _fields(error)}))


async def _answer(peer: _Peer, line: bytes, handle: Verb) -> None:
    request = _Request("")
    try:
        try:
            request = _decode_request(line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise BadRequest(f"The request cannot be understood: {error}.") from None

        async def progress(value: Any) -> None:
            await peer.send(msgspec.json.encode({"id": request.id, "progress": value}))

        result = await handle(Call(request.verb, request.params, peer.caller, progress))
        answer = msgspec.json.encode({"id": request.id, "result": result})
        outcome = "done"
    except NkvError as error:
        answer = msgspec.json.encode({"id": request.id, "error": _fields(error)})
        outcome = f"refused: {error.code}"
    except Exception:  # noqa: BLE001  # whatever a verb raises, the socket serves on
        _log.exception("%s failed", request.verb)
        answer = msgspec.json.encode({"id": request.id, "error": _fields(NkvError(_FAILED))})
        outcome = "failed"
    _log.info("%s by %s: %s", request.verb or "a malformed request", peer.caller, outcome)
    await peer.send(answer)


def _fields(error: NkvError) -> dict[str, str]:
    return {"code": error.code, "detail": error.detail}
