"""Dialects: what is sent to clients, as bytes. Pure functions of what there is to say.

A dialect is a module's worth of forms in one object without state; `DIALECTS` has them by name.
"""

from base64 import b64encode
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from nkv_core.errors import NkvError
from nkv_core.records import Record

from .messages import Call, DialectName

_encode: Final = msgspec.json.Encoder().encode
_NOT_FOUND: Final = 404


class Dialect(Protocol):
    """How one dialect says things."""

    @property
    def hello(self) -> bytes:
        """The beginning of a stream."""

    def done(self, call: Call) -> bytes:
        """That it was done."""

    def failed(self, verb: str, name: str, error: NkvError) -> bytes:
        """That it was not, and why, where there is room for that. `name` is the request's id."""

    def records(self, call: Call, records: Sequence[Record]) -> bytes:
        """What a GET found."""

    def carries(self, text: str) -> bool:
        """Whether it can carry this key or client id."""

    def update(self, key: str, value: bytes) -> bytes:
        """That a record has this value."""

    def close(self, key: str) -> bytes:
        """That a record is gone, or a subscription at its end."""


class Lines:
    """The line dialect."""

    hello: bytes = b"HELLO\n"

    def done(self, call: Call) -> bytes:
        """`ID OK`."""
        return f"{call.id} OK\n".encode()

    def failed(self, verb: str, name: str, error: NkvError) -> bytes:
        """`ID FAILED`."""
        return f"{name} FAILED\n".encode()

    def records(self, call: Call, records: Sequence[Record]) -> bytes:
        """`ID OK B64 B64 ...`."""
        values = b"".join(b" " + b64encode(record.value) for record in records)
        return b"%b OK%b\n" % (call.id.encode(), values)

    def carries(self, text: str) -> bool:
        """Whatever has no space."""
        return " " not in text

    def update(self, key: str, value: bytes) -> bytes:
        """`UPDATE KEY B64`."""
        return b"UPDATE %b %b\n" % (key.encode(), b64encode(value))

    def close(self, key: str) -> bytes:
        """`CLOSE KEY`."""
        return f"CLOSE {key}\n".encode()


class Frames(Lines):
    """The framed dialect: lines in frames, the answers among them with their type in front."""

    hello: bytes = b"\x06\x00\x00\x00HELLO\n"

    def done(self, call: Call) -> bytes:
        """`base ID OK`."""
        return frame(f"base {call.id} OK\n".encode())

    def failed(self, verb: str, name: str, error: NkvError) -> bytes:
        """`base ID FAILED`, of a GET and a TRACE with their own type."""
        kind = {"GET": "data", "TRACE": "trace"}.get(verb, "base")
        return frame(f"{kind} {name} FAILED\n".encode())

    def records(self, call: Call, records: Sequence[Record]) -> bytes:
        """`data ID OK KEY B64 KEY B64 ...`."""
        pairs = b"".join(
            b" %b %b" % (record.key.encode(), b64encode(record.value)) for record in records
        )
        return frame(b"data %b OK%b\n" % (call.id.encode(), pairs))

    def trace(self, call: Call, clients: Sequence[str]) -> bytes:
        """`trace ID OK CLIENT CLIENT ...`."""
        return frame(f"trace {call.id} OK {' '.join(clients)}\n".encode())

    def version(self, call: Call, version: str) -> bytes:
        """`version ID OK VERSION`."""
        return frame(f"version {call.id} OK {version}\n".encode())

    def update(self, key: str, value: bytes) -> bytes:
        """`UPDATE KEY B64`."""
        return frame(super().update(key, value))

    def close(self, key: str) -> bytes:
        """`CLOSE KEY`."""
        return frame(super().close(key))


class Json:
    """The JSON dialect: one object, or one text, a line."""

    hello: bytes = b'"Hello"\n'

    def done(self, call: Call) -> bytes:
        """A `Base` with status 200."""
        return _line({"Base": _base(call.id, 200, "No Error")})

    def failed(self, verb: str, name: str, error: NkvError) -> bytes:
        """A `Base` with the error's status, or a `Get` without data where nothing was found."""
        if error.status == _NOT_FOUND:
            base = _base(name, error.status, "Not Found")
            return _line({"Get": {**base, "data": []}} if verb == "GET" else {"Base": base})
        return _line({"Base": _base(name, error.status, error.detail)})

    def records(self, call: Call, records: Sequence[Record]) -> bytes:
        """A `Get` with each value as numbers."""
        data = [list(record.value) for record in records]
        return _line({"Get": {**_base(call.id, 200, "No Error"), "data": data}})

    def carries(self, text: str) -> bool:
        """Everything."""
        return True

    def update(self, key: str, value: bytes) -> bytes:
        """An `Update`."""
        return _line({"Update": {"key": key, "value": list(value)}})

    def close(self, key: str) -> bytes:
        """A `Close`."""
        return _line({"Close": {"key": key}})


def frame(message: bytes) -> bytes:
    """The message behind its length."""
    return len(message).to_bytes(4, "little") + message


def _base(name: str, status: int, message: str) -> dict[str, object]:
    return {"id": name, "status": status, "message": message}


def _line(message: object) -> bytes:
    return _encode(message) + b"\n"


FRAMES: Final = Frames()
DIALECTS: Final[dict[DialectName, Dialect]] = {"line": Lines(), "framed": FRAMES, "json": Json()}
