"""Parsers: all that read bytes from strangers, each as a function that may raise nkv's errors only.

`seeds` are where the search for inputs begins.
"""

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from nkv_core.errors import NkvError
from nkv_core.keys import Pattern, check_key
from nkv_core.records import Token, Version
from nkv_core.tagged import tagged
from nkv_mesh_full import entries as mesh_entries
from nkv_mesh_full import messages as mesh_messages
from nkv_notifier_websocket import messages as websocket_messages
from nkv_transport_http.app import App, params, path_of
from nkv_transport_http.browsers import Hosts
from nkv_transport_http.settings import HttpSettings
from nkv_transport_http.simple import Simple
from nkv_transport_nats import messages as nats_messages
from nkv_transport_resp.parser import Parser as RespParser
from nkv_transport_socket.parser import Parser as SocketParser


class Target(NamedTuple):
    read: Callable[[bytes], object]
    seeds: Sequence[bytes]


def http(data):
    app = App(None, HttpSettings(), Hosts(("localhost",)), logging.getLogger())
    simple, at = Simple(app), 0
    while found := simple.request(data, at, "127.0.0.1:1", "127.0.0.1"):
        request, end = found
        assert at < end <= len(data)
        assert isinstance(request.body, bytes)
        at = end


def http_parts(data):
    for part in (path_of, params):
        with contextlib.suppress(NkvError):
            part(data)


def socket_lines(data):
    parser = SocketParser(10_000)
    parser.feed(data)
    while parser.next() is not None:
        pass


def resp(data):
    RespParser(100, 10_000, 10_000).feed(data)


def text(function):
    def read(data):
        function(data.decode(errors="surrogateescape"))

    return read


def keys(data):
    found = data.decode(errors="surrogateescape")
    check_key(found)


def tokens(data):
    found = data.decode(errors="surrogateescape")
    for kind in (Token, Version):
        with contextlib.suppress(NkvError):
            kind.parse(found)


def nats(data):
    for verb in ("put", "get", "delete", "subscribe"):
        nats_messages.read_request(verb, data)


_mesh = tagged(msgspec.msgpack, *mesh_messages.MESSAGES)


def mesh(data):
    # What the channel makes a refusal of.
    with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        _mesh(data)
    mesh_entries.unpack(msgspec.Raw(data), 1_800_000_000_000)


GET = b"GET /v1/kv/a HTTP/1.1\r\nHost: localhost\r\n\r\n"
PUT = b"PUT /v1/kv/a?ttl=5 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc"
TARGETS = {
    "http": Target(
        http,
        (GET, PUT, GET + PUT, b"POST /set?k=a&v=%31 HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    ),
    "http_parts": Target(http_parts, (b"/v1/kv/a%20b", b"k=a&v=b+c", b"/%ff")),
    "socket": Target(
        socket_lines,
        (
            b"PUT 1 me a.b YQ==\nGET 2 me a.*\n",
            b"\x0d\x00\x00\x00GET 1 me a.b\n",
            b'{"type":"Put","id":"1","key":"a","client_uuid":"c","value":[1,2]}\n',
            b"GET / HTTP/1.1\r\n\r\n",
        ),
    ),
    "resp": Target(
        resp,
        (b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n", b"PING\r\nSET a 'b c'\r\n", b"*-1\r\n", b"$5\r\n"),
    ),
    "nats": Target(
        nats,
        (
            b'{"type":"Put","id":1,"key":"a","value":[1,2]}',
            b'{"type":"Get","id":1,"key":"a"}',
            b'{"type":"delete","id":-1}',
        ),
    ),
    "websocket": Target(
        text(websocket_messages.parse),
        (
            b'{"op":"put","id":1,"key":"a","value":"b"}',
            b'{"op":"subscribe","subscription":"s","pattern":"a.*"}',
            b'{"op":"get","key":"a"}',
        ),
    ),
    "mesh": Target(
        mesh,
        (
            msgspec.msgpack.encode(["Ping"]),
            msgspec.msgpack.encode([0, "a", 1, 2, b"v", 5]),
            msgspec.msgpack.encode([1, "a", 1, 2]),
        ),
    ),
    "keys": Target(keys, (b"a.b.c", b"..", b"\x00", b"\xff", b"a" * 600)),
    "patterns": Target(text(Pattern), (b"a.*.b", b"*", b"a.**", b"", b"a*")),
    "tokens": Target(tokens, (b"1.f6f6fec602762333.5", b"f6f6fec602762333-1", b"")),
}
