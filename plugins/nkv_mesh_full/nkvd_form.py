"""nkvd's form: what its nodes send each other, and what they cannot hold.

Requests are paths with parameters in the query, answers JSON. There are no versions in them.
"""

from typing import Any, Final
from urllib.parse import urlencode

import msgspec

from nkv_core.contracts.keyspace import Clear as ClearAll
from nkv_core.contracts.keyspace import Delete as Remove
from nkv_core.contracts.keyspace import Operation, Put
from nkv_core.errors import BadRequest
from nkv_core.records import Change

from .addresses import format_address, parse_address

#: UTF-16 units: keys and values are shorter.
MAX_KEY: Final = 64
MAX_VALUE: Final = 256
#: The cause of a change that came from an nkvd node: others of these have it from there.
CAUSE: Final = "nkvd"


class Listed(msgspec.Struct, frozen=True):
    """A node in an answer to `/ping`."""

    host: str
    port: int
    isDown: bool = False  # noqa: N815  # as nkvd has it
    source: str = ""


class Pinged(msgspec.Struct, frozen=True):
    """The answer to `/ping`."""

    nodes: list[Listed] = []


def path_of(change: Change) -> tuple[str, str]:
    """The request that tells of a change, and why it cannot be told in full; empty where it can.

    A record that cannot be held is removed there, so that an older one does not stay.
    """
    if change.kind == "clear":
        if change.key:
            return "", "clear of a prefix"
        return "/clear?" + urlencode({"noReplicate": "true"}), ""
    if _length(change.key) >= MAX_KEY:
        return "", "key too long"
    gone = "/rm?" + urlencode({"k": change.key, "noReplicate": "true"})
    if change.kind == "delete" or change.value is None:
        return gone, ""
    if change.expires is not None:
        return gone, "it expires"
    try:
        value = change.value.decode()
    except UnicodeDecodeError:
        return gone, "not text"
    if _length(value) >= MAX_VALUE:
        return gone, "value too long"
    return "/set?" + urlencode({"k": change.key, "v": value, "noReplicate": "true"}), ""


def operation_of(path: str, params: dict[str, str]) -> Operation | None:
    """What a replicated request does; None where it is none. Raises `BadRequest`."""
    if path not in ("/set", "/rm", "/clear"):
        return None
    if params.get("noReplicate") != "true":
        raise BadRequest("Only replicated requests are taken here.")
    if path == "/clear":
        return ClearAll("", CAUSE)
    key = params.get("k")
    if not key:
        raise BadRequest("MISSING_KEY_PARAM" if key is None else "EMPTY_KEY")
    if path == "/rm":
        return Remove(key, None, CAUSE)
    if "v" not in params:
        raise BadRequest("MISSING_VALUE_PARAM")
    return Put(key, params["v"].encode(), None, None, CAUSE)


def ping_path(addresses: list[str]) -> str:
    """The request that asks who is there, telling these nodes."""
    return "/ping?" + urlencode({"nodes": "|".join(addresses)})


def ping_answer(own: str, others: list[tuple[str, bool]]) -> dict[str, Any]:
    """The answer to it: this node, and the others with whether they are down."""
    nodes = []
    for address, down in [(own, False), *others]:
        host, port = parse_address(address)
        source = "init" if address == own else own
        nodes.append({"host": host, "port": port, "isDown": down, "source": source})
    return {"nodes": nodes}


def addresses_of(answer: bytes) -> list[str]:
    """The nodes in an answer. Raises `BadRequest`."""
    try:
        pinged = msgspec.json.decode(answer, type=Pinged)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadRequest(f"The answer to a ping cannot be read: {error}.") from None
    return [format_address(one.host, one.port) for one in pinged.nodes[:256]]


def _length(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2
