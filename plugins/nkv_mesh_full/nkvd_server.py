"""What nkvd nodes may ask of this one: to be told who is there, and to take what they replicate.

They prove nothing, so only the machines of those that settings name are answered, and only this is.
It has a port of its own: nkvd's clients use the node's HTTP transport, with its tokens.
"""

import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import anyio
import h11
import msgspec
from anyio.abc import SocketStream, TaskGroup

from nkv_core.errors import Forbidden, NkvError, NotFound

#: Answers a path with its parameters.
Answer = Callable[[str, dict[str, str]], Awaitable[Any]]

_HEADER_BYTES: Final = 16 * 1024
_BODY_BYTES: Final = 64 * 1024
_IDLE: Final = 60.0
_CONNECTIONS: Final = 256


class NkvdServer:
    """Serves nkvd nodes on sockets of the node's."""

    def __init__(self, answer: Answer, may: Callable[[str], bool]) -> None:
        """`may` says of an IP address whether somebody there is answered."""
        self._answer: Final = answer
        self._may: Final = may
        self._connections = 0

    async def serve(self, sockets: Sequence[socket.socket]) -> None:
        """Serve until cancelled. The sockets are this call's to close."""
        async with anyio.create_task_group() as tasks:
            for listening in sockets:
                tasks.start_soon(self._accept, listening, tasks)

    async def _accept(self, listening: socket.socket, tasks: TaskGroup) -> None:
        listening.setblocking(False)
        try:
            while True:
                await anyio.wait_readable(listening)
                try:
                    connected, place = listening.accept()
                except OSError:
                    await anyio.sleep(0.01)
                    continue
                if self._connections >= _CONNECTIONS:
                    connected.close()
                    continue
                self._connections += 1
                tasks.start_soon(self._serve, connected, str(place[0]))
        finally:
            anyio.notify_closing(listening)
            listening.close()

    async def _serve(self, connected: socket.socket, host: str) -> None:
        try:
            async with await SocketStream.from_socket(connected) as stream:
                await self._converse(stream, self._may(host))
        except (OSError, anyio.EndOfStream, anyio.BrokenResourceError, TimeoutError):
            return
        except h11.RemoteProtocolError:
            return
        finally:
            self._connections -= 1

    async def _converse(self, stream: SocketStream, allowed: bool) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEADER_BYTES)
        while True:
            with anyio.fail_after(_IDLE):
                request = await _next_request(connection, stream)
            if request is None:
                return
            status, body = await self._reply(request, allowed)
            packed = msgspec.json.encode(body)
            headers = [("Content-Type", "text/json"), ("Content-Length", str(len(packed)))]
            sent = b""
            for event in (
                h11.Response(status_code=status, headers=headers),
                h11.Data(data=packed),
                h11.EndOfMessage(),
            ):
                sent += connection.send(event) or b""
            with anyio.fail_after(_IDLE):
                await stream.send(sent)
            if connection.our_state is h11.MUST_CLOSE:
                return
            connection.start_next_cycle()

    async def _reply(self, request: h11.Request, allowed: bool) -> tuple[int, Any]:
        try:
            if not allowed:
                raise Forbidden("This machine is none of mesh.full.nkvd.")
            target = urlsplit(request.target.decode("latin-1"))
            params = dict(reversed(parse_qsl(target.query, keep_blank_values=True)))
            return 200, await self._answer(unquote(target.path), params)
        except NotFound as error:
            return error.status, {"error": "MISSING_RECORD"}
        except (NkvError, ValueError) as error:
            status = error.status if isinstance(error, NkvError) else 400
            return status, {"error": str(error)}


async def _next_request(connection: h11.Connection, stream: SocketStream) -> h11.Request | None:
    """A whole request, its body dropped; None where the other side has ended."""
    request: h11.Request | None = None
    size = 0
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            try:
                connection.receive_data(await stream.receive())
            except anyio.EndOfStream:
                connection.receive_data(b"")
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            size += len(event.data)
            if size > _BODY_BYTES:
                return None
        elif isinstance(event, h11.EndOfMessage):
            return request
        else:
            return None
