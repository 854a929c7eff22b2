"""Speakers: how operations are said in each protocol, and when an answer is whole.

A load generator wants little of a protocol: these say `get` and `set`, and read past the answers.
"""

import asyncio
import base64
from collections.abc import Callable
from typing import Final, Protocol
from urllib.parse import quote, urlsplit

from nkv_core.bench.nats import Bucket, Node
from nkv_core.bench.refused import Refused
from nkv_core.errors import BadRequest

#: Bytes of the longest line, or head, of an answer.
_LIMIT: Final = 4 * 1024 * 1024
#: Seconds that connecting, an answer, or a notification may take.
PATIENCE: Final = 30.0


class Speaker(Protocol):
    """One protocol, as it is spoken on one connection."""

    port: int  #: where it is spoken, unless it is said

    async def greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Say what has to be said first. Raises as `answer`."""

    async def prepare(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """After `greet`, on the first connection only: make what the requests need."""

    def get(self, key: str) -> bytes:
        """A request for a value."""

    def set(self, key: str, value: bytes) -> bytes:
        """A request that sets a value."""

    async def answer(self, reader: asyncio.StreamReader) -> None:
        """Read past one answer. Raises `Refused`, and `EOFError` where the other side is gone."""

    def watch(self, key: str) -> bytes:
        """What has one told of changes of a key. It is answered at once. Raises `BadRequest` where
        that is not measured.
        """

    def tells(self, data: bytes) -> bool:
        """Whether what was read after `watch` has a notification in it."""


class Plain:
    """What is so for protocols that begin at once."""

    async def greet(self, _reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        """As `Speaker.greet`."""

    async def prepare(self, _reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        """As `Speaker.prepare`."""


class Http(Plain):
    """The paths `/v1/kv` of a node."""

    port = 8080

    def __init__(self, place: str) -> None:
        self._head = f"HTTP/1.1\r\nHost: {place}\r\n".encode()

    def get(self, key: str) -> bytes:
        """As `Speaker.get`."""
        return b"GET /v1/kv/%b %b\r\n" % (quote(key).encode(), self._head)

    def set(self, key: str, value: bytes) -> bytes:
        """As `Speaker.set`."""
        head = b"PUT /v1/kv/%b %bContent-Length: %d\r\n\r\n"
        return head % (quote(key).encode(), self._head, len(value)) + value

    async def answer(self, reader: asyncio.StreamReader) -> None:
        """As `Speaker.answer`."""
        head = await reader.readuntil(b"\r\n\r\n")
        status = head[9:12]
        if status[:1] != b"2" and status != b"404":
            line = head.partition(b"\r\n")[0].decode("latin-1")
            raise Refused(f"The node answers {line}.")
        at = head.lower().find(b"\r\ncontent-length:")
        if at >= 0:
            await reader.readexactly(int(head[at + 17 :].partition(b"\r\n")[0]))

    def watch(self, key: str) -> bytes:
        """As `Speaker.watch`: by Server-Sent Events."""
        return b"GET /v1/watch?pattern=%b %b\r\n" % (quote(key).encode(), self._head)

    def tells(self, data: bytes) -> bool:
        """As `Speaker.tells`."""
        return b"event: put" in data


class Resp(Plain):
    """Redis' protocol: a node, or redis-server."""

    port = 6379

    def get(self, key: str) -> bytes:
        """As `Speaker.get`."""
        return b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(key), key.encode())

    def set(self, key: str, value: bytes) -> bytes:
        """As `Speaker.set`."""
        return b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
            len(key),
            key.encode(),
            len(value),
            value,
        )

    async def answer(self, reader: asyncio.StreamReader) -> None:
        """As `Speaker.answer`."""
        line = await reader.readuntil(b"\r\n")
        if line[:1] == b"-":
            raise Refused(f"The server answers {line[1:].decode(errors='replace').strip()}.")
        if line[:1] == b"$" and line[1:2] != b"-":
            await reader.readexactly(int(line[1:]) + 2)

    def watch(self, key: str) -> bytes:
        """As `Speaker.watch`: by keyspace notifications."""
        channel = f"__keyspace@0__:{key}".encode()
        return b"*2\r\n$9\r\nSUBSCRIBE\r\n$%d\r\n%b\r\n" % (len(channel), channel)

    def tells(self, data: bytes) -> bool:
        """As `Speaker.tells`."""
        return b"set\r\n" in data


class Lines(Plain):
    """The line dialect of the socket transport."""

    port = 4222

    def get(self, key: str) -> bytes:
        """As `Speaker.get`."""
        return b"GET 1 bench %b\n" % key.encode()

    def set(self, key: str, value: bytes) -> bytes:
        """As `Speaker.set`."""
        return b"PUT 1 bench %b %b\n" % (key.encode(), base64.b64encode(value))

    async def answer(self, reader: asyncio.StreamReader) -> None:
        """As `Speaker.answer`."""
        line = await reader.readuntil(b"\n")
        if line.startswith(b"- "):
            raise Refused(f"The node answers {line.decode(errors='replace').strip()}.")

    def watch(self, _: str) -> bytes:
        """As `Speaker.watch`."""
        raise BadRequest("Notifications are not measured over nkv://.")

    def tells(self, _: bytes) -> bool:
        """As `Speaker.tells`."""
        return False


class Target:
    """Who is asked: an address and its protocol."""

    def __init__(self, url: str) -> None:
        """A URL of one of the schemes below, with a host. Raises `BadRequest`."""
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        makes: dict[str, Callable[[], Speaker]] = {
            "http": lambda: Http(parts.netloc),
            "redis": Resp,
            "nkv": Lines,
            "nats": Node,
            "nats-kv": Bucket,
        }
        if parts.scheme not in makes or not parts.hostname or port == -1:
            schemes = ", ".join(f"{scheme}://" for scheme in makes)
            raise BadRequest(f"{url!r} is none of {schemes} with host and port.")
        self.url: Final = url
        self._make: Final = makes[parts.scheme]
        self._host: Final = parts.hostname
        self._port: Final = port or self._make().port

    async def prepare(self) -> None:
        """Make what the requests need, before connections are made. Raises as `connect`."""
        speaker, reader, writer = await self.connect()
        try:
            async with asyncio.timeout(PATIENCE):
                await speaker.prepare(reader, writer)
        finally:
            writer.close()

    async def connect(self) -> tuple[Speaker, asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection, and what speaks on it. Raises `OSError`, and as `Speaker.answer`."""
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(self._host, self._port, limit=_LIMIT)
            speaker = self._make()
            try:
                await speaker.greet(reader, writer)
            except BaseException:
                writer.close()
                raise
        return speaker, reader, writer
