"""Every way in: how each protocol puts a value, how it reads one, and how it refuses."""

import json
from base64 import b64decode, b64encode
from contextlib import asynccontextmanager
from urllib.parse import quote

import httpx2
import nats.errors
from redis import asyncio as redis_asyncio
from redis.exceptions import ResponseError

from .brokers import in_json, nats_client
from .dialects import DIALECTS, buffered, is_text

MAX_KEY = 512
MAX_URL = 60_000  #: a little less than the HTTP client sends


class Refused(Exception):
    """What was asked for is not done. `code` is what the answer says."""

    def __init__(self, code):
        super().__init__(code)
        self.code = code


def is_key(key):
    controls = any(ord(char) < 32 or 127 <= ord(char) < 160 for char in key)
    return 0 < len(key.encode()) <= MAX_KEY and not controls and key not in (".", "..")


def utf16_length(text):
    return len(text.encode("utf-16-le")) // 2


class Writer:
    """One protocol.

    `refuses` is the code that a put is to be refused with, `withholds` the one of a get where
    there is this value; None where it is done.
    """

    name: str
    invalid_key: object = "invalid_key"
    too_large: object = "value_too_large"

    def __init__(self, place):
        self.place = place

    def refuses(self, key, value):
        if len(value) > self.place.max_value:
            return self.too_large
        return None if is_key(key) else self.invalid_key

    def withholds(self, key, value):
        return None

    async def put(self, key, value):
        """Raises `Refused` where it is not acknowledged."""
        raise NotImplementedError

    async def get(self, key):
        """The value. Raises `Refused`."""
        raise NotImplementedError


class Http(Writer):
    """One that speaks HTTP."""

    def __init__(self, place, http):
        super().__init__(place)
        self.http = http


class V1(Http):
    name = "v1"

    @staticmethod
    def path(key):
        return f"/v1/kv/{quote(key, safe='').replace('.', '%2E')}"

    async def put(self, key, value):
        answer = await self.http.put(self.path(key), content=value)
        if answer.status_code not in (200, 201):
            raise Refused(answer.json()["code"])

    async def get(self, key):
        answer = await self.http.get(self.path(key))
        if answer.status_code != 200:
            raise Refused(answer.json()["code"])
        return answer.content


class Nkvd(Http):
    """Its key and value are in the query, which has a bound of its own."""

    name = "nkvd"

    def refuses(self, key, value):
        if len(quote(value)) > MAX_URL:
            return "not sent"
        if utf16_length(key) >= 64:
            return "MAXIMUM_KEY_LENGTH_REACHED"
        if not is_text(value):
            return "BAD_REQUEST"
        if utf16_length(value.decode()) >= 256:
            return "MAXIMUM_VALUE_LENGTH_REACHED"
        if not key:
            return "EMPTY_KEY"
        return None if is_key(key) else "INVALID_KEY"

    def withholds(self, key, value):
        if utf16_length(key) >= 64:
            return "MAXIMUM_KEY_LENGTH_REACHED"
        return None if is_text(value) else "NOT_TEXT"

    async def put(self, key, value):
        query = f"k={quote(key, safe='')}&v={quote(value, safe='')}"
        try:
            answer = await self.http.get(f"/set?{query}")
        except httpx2.InvalidURL:
            raise Refused("not sent") from None
        if answer.status_code != 200:
            raise Refused(answer.json()["error"])

    async def get(self, key):
        answer = await self.http.get("/get", params={"k": key})
        if answer.status_code != 200:
            raise Refused(answer.json()["error"])
        return answer.json().encode()


class Flask(Http):
    """Its errors have words and a status."""

    name = "flask"
    invalid_key = 400
    too_large = 413

    def refuses(self, key, value):
        return super().refuses(key, value) if is_text(value) else 400

    def withholds(self, key, value):
        return None if is_text(value) else 406

    async def put(self, key, value):
        # Values that are no text are sent as they are, within the quotes.
        text = json.dumps(value.decode()).encode() if is_text(value) else b'"%b"' % value
        body = b'{"key": %b, "value": %b}' % (json.dumps(key).encode(), text)
        headers = {"content-type": "application/json"}
        answer = await self.http.put("/kv", content=body, headers=headers)
        if answer.status_code != 200:
            raise Refused(answer.status_code)

    async def get(self, key):
        answer = await self.http.request("GET", "/kv", json={"key": key})
        if answer.status_code != 200:
            raise Refused(answer.status_code)
        return answer.json()["value"].encode()


class WebSocket(Http):
    name = "websocket"

    async def _ask(self, **request):
        url = self.place.url.replace("http", "ws") + "/v1/ws"
        async with self.http.websocket(url, max_message_size_bytes=2**24) as socket:
            await socket.send_text(json.dumps(request))
            answer = json.loads(await socket.receive_text())
        if "error" in answer:
            raise Refused(answer["error"]["code"])
        return answer["result"]

    async def put(self, key, value):
        await self._ask(op="put", key=key, value_base64=b64encode(value).decode())

    async def get(self, key):
        found = await self._ask(op="get", key=key)
        return found["value"].encode() if "value" in found else b64decode(found["value_base64"])


class Socket(Writer):
    """A dialect of the socket, one request a connection, as its clients do."""

    def __init__(self, place, dialect):
        super().__init__(place)
        self.name, self.dialect = dialect.name, dialect
        self.invalid_key, self.too_large = dialect.invalid, dialect.too_large

    def refuses(self, key, value):
        if not self.dialect.carries(key) or "*" in key:
            return self.invalid_key
        return super().refuses(key, value)

    def withholds(self, key, value):
        # Its lines answer with values alone, but the request has the key.
        return None if self.dialect.carries(key) else self.invalid_key

    async def ask(self, *fields):
        async with await self.place.connect() as stream:
            await stream.send(self.dialect.request(*fields))
            return await self.dialect.read(buffered(stream))

    async def put(self, key, value):
        answer = await self.ask("PUT", "1", "me", key, value)
        if not self.dialect.succeeded(answer):
            raise Refused(self.dialect.code(answer))

    async def get(self, key):
        answer = await self.ask("GET", "1", "me", key)
        values = self.dialect.values(answer)
        if values is None:
            raise Refused(self.dialect.code(answer))
        (value,) = values
        return value


class Nats(Writer):
    """The NATS dialect. What is too large its client does not send."""

    name = "nats"
    invalid_key = 400
    too_large = 413

    def __init__(self, place, client):
        super().__init__(place)
        self.client = client

    def refuses(self, key, value):
        if in_json(value) > self.place.broker_payload:
            return "not sent"
        return super().refuses(key, value)

    def withholds(self, key, value):
        return 413 if in_json(value) > self.place.broker_payload else None

    async def _ask(self, kind, form, **fields):
        request = json.dumps({"type": kind, "id": 1, **fields}, separators=(",", ":")).encode()
        try:
            answer = await self.client.request(f"pubsub.{kind.lower()}", request, timeout=30)
        except nats.errors.MaxPayloadError:
            raise Refused("not sent") from None
        fields = json.loads(answer.data)[form]
        if fields["status"] != 200:
            raise Refused(fields["status"])
        return fields

    async def put(self, key, value):
        await self._ask("Put", "Base", key=key, value=list(value))

    async def get(self, key):
        return bytes((await self._ask("Get", "Get", key=key))["data"])


class Redis(Writer):
    name = "redis"

    def __init__(self, place, client):
        super().__init__(place)
        self.client = client

    async def put(self, key, value):
        try:
            assert await self.client.set(key, value)
        except ResponseError as error:
            raise Refused(_code_of(error)) from None

    async def get(self, key):
        try:
            found = await self.client.get(key)
        except ResponseError as error:
            raise Refused(_code_of(error)) from None
        if found is None:
            raise Refused("not_found")
        return found


def _code_of(error):
    """The stable code, which the text of an error ends with."""
    return str(error).rpartition("(")[2].rstrip(")")


@asynccontextmanager
async def open_writers(place):
    """One of each kind."""
    redis = redis_asyncio.Redis(port=place.resp_port, protocol=3, socket_timeout=60)
    async with place.http() as http, nats_client(place) as client, redis:
        yield [
            *(kind(place, http) for kind in (Nkvd, V1, Flask, WebSocket)),
            *(Socket(place, dialect) for dialect in DIALECTS),
            Nats(place, client),
            Redis(place, redis),
        ]
