"""The three dialects of the socket, as their clients speak them."""

import base64
import json
from typing import ClassVar

from anyio.streams.buffered import BufferedByteReceiveStream

JSON_VERBS = {"PUT": "Put", "GET": "Get", "DEL": "Delete", "SUB": "Subscribe"}


def is_text(value):
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


class Line:
    name = "line"
    hello: ClassVar = ["HELLO"]
    invalid = too_large = "FAILED"

    def carries(self, key):
        """Whether a key can be told of: a space would end it."""
        return " " not in key

    def request(self, verb, number, client, key, value=None):
        fields = [verb, number, client, key]
        if value is not None:
            fields.append(base64.b64encode(value).decode())
        return " ".join(fields).encode() + b"\n"

    async def read(self, stream):
        """The next message, as its words."""
        return (await stream.receive_until(b"\n", 64 * 1024 * 1024)).decode().split(" ")

    def succeeded(self, words):
        return words[1] == "OK"

    def code(self, words):
        """What the answer to a request that was not carried out says of the reason."""
        return words[1]

    def values(self, words):
        """What a GET found."""
        return [base64.b64decode(word) for word in words[2:]] if words[1] == "OK" else None

    def event(self, words):
        """What a subscriber is told: the kind, the key, and the value of an update."""
        if words[0] == "UPDATE":
            return "put", words[1], base64.b64decode(words[2])
        assert words[0] == "CLOSE", words
        return "delete", words[1], None


class Framed(Line):
    name = "framed"

    def request(self, *fields):
        message = super().request(*fields)
        return len(message).to_bytes(4, "little") + message

    async def read(self, stream):
        size = int.from_bytes(await stream.receive_exactly(4), "little")
        return (await stream.receive_exactly(size)).decode().removesuffix("\n").split(" ")

    def succeeded(self, words):
        return words[2] == "OK"

    def code(self, words):
        return words[2]

    def values(self, words):
        return [base64.b64decode(word) for word in words[4::2]] if words[2] == "OK" else None


class Json:
    name = "json"
    hello = "Hello"
    invalid = 400
    too_large = 413

    def carries(self, key):
        return True

    def request(self, verb, number, client, key, value=None):
        message = {"type": JSON_VERBS[verb], "id": number, "client_uuid": client, "key": key}
        if value is not None:
            message["value"] = list(value)
        return json.dumps(message).encode() + b"\n"

    async def read(self, stream):
        return json.loads(await stream.receive_until(b"\n", 64 * 1024 * 1024))

    def succeeded(self, answer):
        return answer["Base"]["status"] == 200

    def code(self, answer):
        (fields,) = answer.values()
        return fields["status"]

    def values(self, answer):
        found = answer.get("Get")
        return None if not found or found["status"] != 200 else [bytes(v) for v in found["data"]]

    def event(self, message):
        if "Update" in message:
            told = message["Update"]
            return "put", told["key"], bytes(told["value"])
        return "delete", message["Close"]["key"], None


DIALECTS = (Line(), Framed(), Json())


def buffered(stream):
    return BufferedByteReceiveStream(stream)
