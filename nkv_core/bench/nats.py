"""Speakers over a NATS server: to a node behind it, and to its own key-value buckets.

The client protocol is https://docs.nats.io/reference/reference-protocols/nats-protocol, that of the
buckets https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-8.md.
"""

import asyncio
import re
import secrets
from typing import Final

import msgspec

from nkv_core.bench.refused import Refused
from nkv_core.errors import BadRequest

_CONNECT: Final = (
    b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true}\r\n'
)
_STATUS: Final = re.compile(rb'"status":\s*(\d+)')
_BUCKET: Final = "bench"
_encode: Final = msgspec.json.Encoder().encode


class _Nats:
    """The client protocol: requests with an inbox of their own for the replies."""

    port = 4222

    def __init__(self) -> None:
        self._inbox = b"_INBOX." + secrets.token_hex(8).encode()
        self._writer: asyncio.StreamWriter

    async def greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """As `Speaker.greet`."""
        self._writer = writer
        writer.write(_CONNECT + b"SUB %b 1\r\nPING\r\n" % self._inbox)
        while (line := await reader.readuntil(b"\r\n")) != b"PONG\r\n":
            self._look_at(line)

    async def prepare(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """As `Speaker.prepare`."""

    def request(self, subject: str, payload: bytes) -> bytes:
        """A message that asks for a reply."""
        head = b"PUB %b %b %d\r\n" % (subject.encode(), self._inbox, len(payload))
        return head + payload + b"\r\n"

    async def reply(self, reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
        """The header, if any, and the payload of the next message."""
        while True:
            line = await reader.readuntil(b"\r\n")
            words = line.split()
            if words[0] == b"MSG":
                return b"", (await reader.readexactly(int(words[-1]) + 2))[:-2]
            if words[0] == b"HMSG":
                head = int(words[-2])
                whole = (await reader.readexactly(int(words[-1]) + 2))[:-2]
                return whole[:head], whole[head:]
            self._look_at(line)

    def _look_at(self, line: bytes) -> None:
        """What the server says besides."""
        if line == b"PING\r\n":
            self._writer.write(b"PONG\r\n")
        elif line.startswith(b"-ERR"):
            raise _refused(line)


class Node(_Nats):
    """The dialect of the NATS transport, of whatever node answers at that server."""

    def get(self, key: str) -> bytes:
        """As `Speaker.get`."""
        return self.request("pubsub.get", _encode({"type": "Get", "id": 1, "key": key}))

    def set(self, key: str, value: bytes) -> bytes:
        """As `Speaker.set`."""
        request = {"type": "Put", "id": 1, "key": key, "value": list(value)}
        return self.request("pubsub.put", _encode(request))

    async def answer(self, reader: asyncio.StreamReader) -> None:
        """As `Speaker.answer`."""
        head, payload = await self.reply(reader)
        status = _STATUS.search(payload)
        if status is None or status[1] not in (b"200", b"404"):
            raise _refused(head + payload)

    def watch(self, _: str) -> bytes:
        """As `Speaker.watch`."""
        raise BadRequest("Notifications are not measured over nats://.")

    def tells(self, _: bytes) -> bool:
        """As `Speaker.tells`."""
        return False


class Bucket(_Nats):
    """A key-value bucket of the server's own. It is made, in memory, unless it is there."""

    async def prepare(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """As `Speaker.prepare`: the bucket."""
        stream = {
            "name": f"KV_{_BUCKET}",
            "subjects": [f"$KV.{_BUCKET}.>"],
            "max_msgs_per_subject": 1,
            "discard": "new",
            "storage": "memory",
            "allow_direct": True,
            "allow_rollup_hdr": True,
            "deny_delete": True,
        }
        writer.write(self.request(f"$JS.API.STREAM.INFO.KV_{_BUCKET}", b""))
        head, payload = await self.reply(reader)
        if b'"error"' in payload:
            writer.write(self.request(f"$JS.API.STREAM.CREATE.KV_{_BUCKET}", _encode(stream)))
            await self.answer(reader)
        elif head:
            raise _refused(head)  # nobody answers: the server has no JetStream

    def get(self, key: str) -> bytes:
        """As `Speaker.get`."""
        return self.request(f"$JS.API.DIRECT.GET.KV_{_BUCKET}.$KV.{_BUCKET}.{key}", b"")

    def set(self, key: str, value: bytes) -> bytes:
        """As `Speaker.set`."""
        return self.request(f"$KV.{_BUCKET}.{key}", value)

    async def answer(self, reader: asyncio.StreamReader) -> None:
        """As `Speaker.answer`."""
        head, payload = await self.reply(reader)
        status = head[9:12]
        if (status.isdigit() and status != b"404") or (not head and b'"error"' in payload):
            raise _refused(head + payload)

    def watch(self, key: str) -> bytes:
        """As `Speaker.watch`."""
        return b"SUB $KV.%b.%b 2\r\nPING\r\n" % (_BUCKET.encode(), key.encode())

    def tells(self, data: bytes) -> bool:
        """As `Speaker.tells`."""
        return b"MSG $KV." in data


def _refused(said: bytes) -> Refused:
    return Refused(f"The server answers {said[:200].decode(errors='replace').strip()}.")
