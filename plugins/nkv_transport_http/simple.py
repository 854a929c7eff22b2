"""Simple requests: those that are recognised at a glance, and the bytes that answer them.

A request is simple if it is whole, is one of those that read or change one record, and has nothing
about its form that there are two ways to see: one space here and there, header fields that are
printable and each there once, a body that has a length. Nothing is refused here. What is not simple
is left to the server, which knows HTTP in full, and so both give the same answers.
"""

import re
from itertools import chain
from time import time
from types import MappingProxyType
from typing import Any, Final
from wsgiref.handlers import format_date_time

from nkv_core.contracts.handlers import Reply, Request, Route
from nkv_core.errors import NkvError

from .app import TRANSPORT, App, credential, params, path_of
from .browsers import check_origin
from .nkvd import CHANGING
from .replies import Answer, answer, error_answer

_END: Final = b"\r\n\r\n"
_IN_PATH: Final = rb"!$%&'()*+,\-./0-9:;=@A-Z_a-z~"
_LINE: Final = re.compile(
    rb"(GET|PUT|DELETE|POST) (/[%b]*)(?:\?([?%b]*))? HTTP/1\.1\r\n" % (_IN_PATH, _IN_PATH)
)
_FIELD: Final = re.compile(rb"([0-9A-Za-z-]+): ?([!-~](?:[ -~]*[!-~])?)?")
_RECORDS: Final = b"/v1/kv/"
_RECORD_METHODS: Final = {b"GET": "GET", b"PUT": "PUT", b"DELETE": "DELETE"}
_NKVD: Final = frozenset((b"/get", b"/set", b"/is", b"/rm"))
_NKVD_METHODS: Final = {b"GET": "GET", b"POST": "POST"}
#: Fields that say how the message, or the connection, goes on.
_OTHERWISE: Final = frozenset(
    (
        "connection",
        "expect",
        "http2-settings",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
#: Bytes of the longest body that is taken at a glance.
_BODY: Final = 64 * 1024
#: Clients send the same header fields again and again: so many of these blocks are remembered, of
#: so many bytes at most.
_REMEMBERED: Final = 512
_BLOCK: Final = 1024


class Head:
    """Header fields, and what was found out about them: they come again with every request."""

    __slots__ = ("credential", "guarded", "headers", "length", "local")

    def __init__(self, headers: dict[str, str], length: int) -> None:
        self.headers: Final = headers
        self.length: Final = length  #: of the body
        self.credential: Final = credential(headers)
        #: Whether they say which page a request is from.
        self.guarded: Final = "origin" in headers or "sec-fetch-site" in headers
        self.local = ""  #: the address of this machine at which their host was found to be ours


class Simple:
    """Recognises the simple requests of one application."""

    def __init__(self, app: App) -> None:
        self._app: Final = app
        self._most: Final = app.settings.max_header_bytes
        self._blocks: dict[bytes, Head | None] = {}
        self._second = 0
        self._date = b""
        self._same: object = self  # the constant that was sent last, and what it is as bytes
        self._same_parts = (0, b"", b"")

    def request(self, data: bytes, begin: int, peer: str, local: str) -> tuple[Request, int] | None:
        """The request that begins there, and where it ends; None where it is not simple, or not
        whole. `local` is the address of the machine at which it came in.
        """
        line = _LINE.match(data, begin)
        if line is None:
            return None
        fields = line.end()
        end = data.find(_END, fields - 2)
        if end < 0 or end - begin > self._most:
            return None
        method_name, raw_path, query = line.groups()
        if raw_path.startswith(_RECORDS):
            method = _RECORD_METHODS.get(method_name)
        else:
            method = _NKVD_METHODS.get(method_name) if raw_path in _NKVD else None
        block = data[fields : end + 2]
        head = self._blocks.get(block) or self._read(block)
        if method is None or head is None:
            return None
        headers, length = head.headers, head.length
        end += len(_END)
        if end + length > len(data) or (length and method == "GET"):
            return None
        try:
            path = path_of(raw_path)
            if head.local != local:
                self._app.hosts.check(headers.get("host"), local)
                head.local = local
            if head.guarded:
                check_origin(method, path, headers, CHANGING)
            request = Request(
                transport=TRANSPORT, method=method, path=path, headers=headers, peer=peer
            )
            if query:
                request.params = params(query)
        except NkvError:
            return None  # and refused there
        request.credential = head.credential
        request.body = data[end : end + length]
        return request, end + length

    def _read(self, block: bytes) -> Head | None:
        """The header fields of a block; None where it is not simple."""
        head = _fields(block)
        if len(block) <= _BLOCK:
            if len(self._blocks) >= _REMEMBERED:
                self._blocks.clear()
            self._blocks[block] = head
        return head

    def response(
        self, request: Request, outcome: Any, error: NkvError | None, route: Route | None
    ) -> bytes:
        """The bytes of an answer. Raises `TypeError` or `ValueError` where it cannot be sent."""
        if error is not None:
            whole = error_answer(request, error, route)
            return self._message(whole.status, _lines(whole), whole.body)
        if outcome is self._same:
            return self._message(*self._same_parts)
        whole = answer(outcome)
        lines = _lines(whole)
        if _is_constant(outcome):
            self._same, self._same_parts = outcome, (whole.status, lines, whole.body)
        return self._message(whole.status, lines, whole.body)

    def _message(self, status: int, lines: bytes, body: bytes) -> bytes:
        """A response, as the server would write it."""
        second = int(time())
        if second != self._second:
            self._second = second
            self._date = b"date: %b\r\n" % format_date_time(second).encode()
        closing = b"connection: close\r\n" if self._app.streams.ending else b""
        return b"HTTP/1.1 %d \r\n%b%b%b\r\n%b" % (status, lines, closing, self._date, body)


def _lines(whole: Answer) -> bytes:
    return b"%b: %b\r\n" * len(whole.headers) % (*chain.from_iterable(whole.headers),)


def _is_constant(outcome: Any) -> bool:
    """Whether an outcome that is the same object is the same answer: nothing of it can change."""
    return (
        type(outcome) is Reply
        and type(outcome.headers) is MappingProxyType
        and type(outcome.body) is bytes
    )


def _fields(block: bytes) -> Head | None:
    headers: dict[str, str] = {}
    for line in block.split(b"\r\n")[:-1]:
        field = _FIELD.fullmatch(line)
        if field is None:
            return None
        name, value = field[1].decode().lower(), (field[2] or b"").decode()
        if name in headers or (name in _OTHERWISE and value.lower() != "keep-alive"):
            return None
        headers[name] = value
    length = headers.get("content-length", "0")
    if "host" not in headers or not (length.isdigit() and len(length) < 6):
        return None
    return Head(headers, int(length)) if int(length) <= _BODY else None
