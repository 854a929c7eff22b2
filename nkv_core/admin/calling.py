"""The command line's end of the admin socket."""

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from nkv_core.admin.address import address_of
from nkv_core.errors import DeadlineExceeded, Forbidden, NkvError, Rejected, Unreachable

MAX_ANSWER: Final = 16 * 1024 * 1024  #: bytes of all lines of an answer


def call_admin(
    path: Path,
    verb: str,
    params: Mapping[str, Any] | None = None,
    timeout: float = 60.0,
    progress: Callable[[Any], None] | None = None,
) -> Any:
    """Ask the node that serves the socket, and wait for the answer. It blocks: for command lines.

    Raises what the node answers with, as an error of the same code; `Unreachable` where no node
    serves the path or it goes away, `Forbidden` where it is another user's, `DeadlineExceeded`.
    """
    deadline = time.monotonic() + timeout
    request = msgspec.json.encode({"id": 1, "verb": verb, "params": params or {}})
    with _connect(path, timeout) as connection:
        try:
            with suppress(BrokenPipeError):  # it may have said why, and closed
                connection.sendall(request + b"\n")
            for line in _lines(connection, deadline):
                if "progress" not in line:
                    return _outcome(line)
                if progress is not None:
                    progress(line["progress"])
        except TimeoutError:
            raise DeadlineExceeded(
                f"The node did not answer in {timeout:g} s; it may still do what was asked."
            ) from None
        except ConnectionError:
            pass  # as where it ended in good order: the node has gone
    raise Unreachable(f"The node at {path} went away before it answered.")


def _connect(path: Path, timeout: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    try:
        with address_of(path) as address:
            connection.connect(address)
    except PermissionError:
        connection.close()
        raise Forbidden(f"{path} is another user's: ask as the node's own user or root.") from None
    except OSError:
        connection.close()
        raise Unreachable(
            f"No node serves {path}: is one running, with this data directory?"
        ) from None
    return connection


def _lines(connection: socket.socket, deadline: float) -> Iterator[dict[str, Any]]:
    buffer = bytearray()
    total = 0
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        piece = connection.recv(65536)
        total += len(piece)
        if not piece or total > MAX_ANSWER:
            return
        searched = len(buffer)
        buffer += piece
        while (end := buffer.find(b"\n", searched)) >= 0:
            line = bytes(buffer[:end])
            del buffer[: end + 1]
            searched = 0
            yield _decoded(line)


def _decoded(line: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise Unreachable("What answers at the admin socket is no node of nkv.") from None


def _outcome(line: dict[str, Any]) -> Any:
    error = line.get("error")
    if error is None:
        return line.get("result")
    fields = error if isinstance(error, dict) else {}
    code, detail = str(fields.get("code")), str(fields.get("detail", error))
    kind = _by_code(NkvError, code)
    if kind is not None:
        raise kind(detail)
    unknown = NkvError(detail)
    unknown.code = code  # type: ignore[misc]  # of a node of another release
    raise unknown


def _by_code(kind: type[NkvError], code: str) -> type[NkvError] | None:
    if kind.code == code and kind is not Rejected:
        return kind
    return next((found for sub in kind.__subclasses__() if (found := _by_code(sub, code))), None)
