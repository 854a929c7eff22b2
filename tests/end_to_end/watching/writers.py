"""Every way in: how each protocol puts a value, and how it reads one."""

import json
from base64 import b64decode, b64encode
from urllib.parse import quote

from .dialects import DIALECTS, buffered

MAX_KEY = 512
MAX_VALUE = 1024 * 1024


class Refused(Exception):
    """What was asked for is not given, and why."""


def is_text(value):
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def is_key(key):
    controls = any(ord(char) < 32 or 127 <= ord(char) < 160 for char in key)
    return 0 < len(key.encode()) <= MAX_KEY and not controls and key not in (".", "..")


def utf16_length(text):
    return len(text.encode("utf-16-le")) // 2


class Writer:
    """One protocol. A key and value that it cannot carry it refuses, and says so."""

    name: str

    def __init__(self, place, http):
        self.place, self.http = place, http

    def takes(self, key, value):
        """Whether it can put this."""
        return is_key(key) and len(value) <= MAX_VALUE

    def gives(self, key, value):
        """Whether it can read this."""
        return True

    async def put(self, key, value):
        """Whether the put is acknowledged."""
        raise NotImplementedError

    async def get(self, key):
        """The value. Raises `Refused`."""
        raise NotImplementedError


class V1(Writer):
    name = "v1"

    async def put(self, key, value):
        answer = await self.http.put(f"/v1/kv/{quote(key, safe='')}", content=value)
        return answer.status_code in (200, 201)

    async def get(self, key):
        answer = await self.http.get(f"/v1/kv/{quote(key, safe='')}")
        if answer.status_code != 200:
            raise Refused(answer.json()["code"])
        return answer.content


class Nkvd(Writer):
    name = "nkvd"

    def takes(self, key, value):
        return self.gives(key, value) and utf16_length(value.decode()) < 256 and is_key(key)

    def gives(self, key, value):
        return is_text(value) and 0 < utf16_length(key) < 64

    async def put(self, key, value):
        query = f"k={quote(key, safe='')}&v={quote(value, safe='')}"
        answer = await self.http.get(f"/set?{query}")
        return answer.status_code == 200

    async def get(self, key):
        answer = await self.http.get("/get", params={"k": key})
        if answer.status_code != 200:
            raise Refused(answer.json()["error"])
        return answer.json().encode()


class Flask(Writer):
    name = "flask"

    def takes(self, key, value):
        return super().takes(key, value) and is_text(value)

    def gives(self, key, value):
        return is_text(value)

    async def put(self, key, value):
        # Values that are no text are sent as they are, within the quotes.
        text = json.dumps(value.decode()).encode() if is_text(value) else b'"%b"' % value
        body = b'{"key": %b, "value": %b}' % (json.dumps(key).encode(), text)
        headers = {"content-type": "application/json"}
        answer = await self.http.put("/kv", content=body, headers=headers)
        return answer.status_code == 200

    async def get(self, key):
        answer = await self.http.request("GET", "/kv", json={"key": key})
        if answer.status_code != 200:
            raise Refused(answer.status_code)
        return answer.json()["value"].encode()


class WebSocket(Writer):
    name = "websocket"

    async def _ask(self, **request):
        url = self.place.url.replace("http", "ws") + "/v1/ws"
        async with self.http.websocket(url, max_message_size_bytes=2**24) as socket:
            await socket.send_text(json.dumps(request))
            return json.loads(await socket.receive_text())

    async def put(self, key, value):
        answer = await self._ask(op="put", key=key, value_base64=b64encode(value).decode())
        return "result" in answer

    async def get(self, key):
        answer = await self._ask(op="get", key=key)
        if "error" in answer:
            raise Refused(answer["error"]["code"])
        found = answer["result"]
        return found["value"].encode() if "value" in found else b64decode(found["value_base64"])


class Socket(Writer):
    """A dialect of the socket, one request a connection, as its clients do."""

    def __init__(self, place, http, dialect):
        super().__init__(place, http)
        self.name, self.dialect = dialect.name, dialect

    def takes(self, key, value):
        return super().takes(key, value) and self.dialect.carries(key) and "*" not in key

    def gives(self, key, value):
        # Its lines answer with values alone, but the request has the key.
        return self.dialect.carries(key)

    async def _ask(self, *fields):
        async with await self.place.connect() as stream:
            await stream.send(self.dialect.request(*fields))
            return await self.dialect.read(buffered(stream))

    async def put(self, key, value):
        return self.dialect.succeeded(await self._ask("PUT", "1", "me", key, value))

    async def get(self, key):
        values = self.dialect.values(await self._ask("GET", "1", "me", key))
        if values is None:
            raise Refused("FAILED")
        (value,) = values
        return value


def writers(place, http):
    """One of each kind."""
    plain = [kind(place, http) for kind in (Nkvd, V1, Flask, WebSocket)]
    return plain + [Socket(place, http, dialect) for dialect in DIALECTS]
