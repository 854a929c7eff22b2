"""Whatever is sent: the fast lane and Hypercorn answer alike, and tell of the same events."""

import re
from contextlib import AsyncExitStack

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nkv_core.events import RequestComplete, RequestEnd, RequestStart

pytestmark = pytest.mark.anyio

HOST = b"Host: localhost\r\n"
GET = b"GET /v1/kv/a HTTP/1.1\r\n"
#: What differs from one answer to the next.
VOLATILE = re.compile(rb"(?m)^(date|etag|nkv-modified|nkv-expires): .*?\r$")


def put(body, fields=b"", target=b"/v1/kv/a"):
    length = b"Content-Length: %d\r\n" % len(body)
    return b"PUT " + target + b" HTTP/1.1\r\n" + HOST + length + fields + b"\r\n" + body


REQUESTS = {
    "a get": GET + HOST + b"\r\n",
    "a get of nothing": b"GET /v1/kv/nothing HTTP/1.1\r\n" + HOST + b"\r\n",
    "a put": put(b"value"),
    "a put of nothing": put(b""),
    "a put that has to be the first": put(b"v", b"If-None-Match: *\r\n"),
    "a put with a time to live": put(b"v", target=b"/v1/kv/t?ttl=60"),
    "a put with a bad time to live": put(b"v", target=b"/v1/kv/t?ttl=soon"),
    "a put with a deadline": put(b"v", target=b"/v1/kv/t?deadline=5"),
    "a put too large": put(b"x" * 2_000_000),
    "a put of some size": put(b"x" * 100_000),
    "a delete": b"DELETE /v1/kv/a HTTP/1.1\r\n" + HOST + b"\r\n",
    "a delete of nothing": b"DELETE /v1/kv/nothing HTTP/1.1\r\n" + HOST + b"\r\n",
    "nkvd set": b"GET /set?k=b&v=1+2%20%C3%A9 HTTP/1.1\r\n" + HOST + b"\r\n",
    "nkvd get": b"GET /get?k=a HTTP/1.1\r\n" + HOST + b"\r\n",
    "nkvd get by post": b"POST /get?k=a HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\n\r\n",
    "nkvd is": b"GET /is?k=nothing HTTP/1.1\r\n" + HOST + b"\r\n",
    "nkvd rm": b"GET /rm?k=a HTTP/1.1\r\n" + HOST + b"\r\n",
    "nkvd without a key": b"GET /get HTTP/1.1\r\n" + HOST + b"\r\n",
    "nkvd with an empty key": b"GET /get?k= HTTP/1.1\r\n" + HOST + b"\r\n",
    "several of a parameter": b"GET /get?k=a&k=b HTTP/1.1\r\n" + HOST + b"\r\n",
    "an unknown path": b"GET /v1/nothing HTTP/1.1\r\n" + HOST + b"\r\n",
    "another method": b"PATCH /v1/kv/a HTTP/1.1\r\n" + HOST + b"\r\n",
    "a method in small letters": b"get /v1/kv/a HTTP/1.1\r\n" + HOST + b"\r\n",
    "HEAD": b"HEAD /v1/kv/a HTTP/1.1\r\n" + HOST + b"\r\n",
    "OPTIONS": b"OPTIONS /v1/kv/a HTTP/1.1\r\n" + HOST + b"\r\n",
    "pipelined": GET + HOST + b"\r\n" + put(b"new") + GET + HOST + b"\r\n",
    "pipelined, one of them slow": GET + HOST + b"\r\nGET /v1/status HTTP/1.1\r\n\r\n",
    "many pipelined": (GET + HOST + b"\r\n") * 200,
    "kept alive by word": GET + HOST + b"Connection: keep-alive\r\n\r\n",
    "to be closed": GET + HOST + b"Connection: close\r\n\r\n",
    "HTTP/1.0": b"GET /v1/kv/a HTTP/1.0\r\n" + HOST + b"\r\n",
    "HTTP/3.7": b"GET /v1/kv/a HTTP/3.7\r\n" + HOST + b"\r\n",
    "no version": b"GET /v1/kv/a\r\n\r\n",
    "absolute form": b"GET http://localhost/v1/kv/a HTTP/1.1\r\n" + HOST + b"\r\n",
    "absolute form of another": b"GET http://evil/v1/kv/a HTTP/1.1\r\n" + HOST + b"\r\n",
    "a fragment": b"GET /v1/kv/a#b HTTP/1.1\r\n" + HOST + b"\r\n",
    "percent-encoded": b"GET /v1/kv/%61 HTTP/1.1\r\n" + HOST + b"\r\n",
    "percent-encoded slash": b"GET /v1%2Fkv/a HTTP/1.1\r\n" + HOST + b"\r\n",
    "no UTF-8": b"GET /v1/kv/%ff HTTP/1.1\r\n" + HOST + b"\r\n",
    "no UTF-8 in a query": b"GET /get?k=%ff HTTP/1.1\r\n" + HOST + b"\r\n",
    "an empty key": b"GET /v1/kv/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "a key of dots": b"GET /v1/kv/.. HTTP/1.1\r\n" + HOST + b"\r\n",
    "a long key": b"GET /v1/kv/" + b"k" * 600 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "no Host": GET + b"\r\n",
    "two Hosts": GET + HOST + HOST + b"\r\n",
    "another Host": GET + b"Host: evil\r\n\r\n",
    "a field twice": GET + HOST + b"X-A: 1\r\nX-A: 2\r\n\r\n",
    "a foreign page": put(b"v", b"Origin: http://evil\r\n"),
    "a foreign page sets": b"GET /set?k=b&v=1 HTTP/1.1\r\nOrigin: http://evil\r\n" + HOST + b"\r\n",
    "a token": GET + HOST + b"Authorization: Bearer abc\r\n\r\n",
    "unchanged": GET + HOST + b"If-None-Match: *\r\n\r\n",
    "a get with a body": GET + HOST + b"Content-Length: 3\r\n\r\nabc",
    "length and chunks": put(b"5\r\nvalue\r\n0\r\n\r\n", b"Transfer-Encoding: chunked\r\n"),
    "chunks": b"PUT /v1/kv/a HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: chunked\r\n\r\n5\r\nvalue\r\n0\r\n\r\n",
    "two lengths": put(b"v", b"Content-Length: 1\r\n"),
    "two lengths that differ": put(b"v", b"Content-Length: 2\r\n"),
    "a length with a sign": GET + HOST + b"Content-Length: +0\r\n\r\n",
    "a negative length": GET + HOST + b"Content-Length: -1\r\n\r\n",
    "a length of words": GET + HOST + b"Content-Length: three\r\n\r\n",
    "half a body": put(b"value")[:-2],
    "half a head": GET + HOST,
    "nothing": b"",
    "an empty line first": b"\r\n" + GET + HOST + b"\r\n",
    "bare line feeds": b"GET /v1/kv/a HTTP/1.1\nHost: localhost\n\n",
    "a folded field": GET + HOST + b"X-A: 1\r\n 2\r\n\r\n",
    "a space before the colon": GET + HOST + b"X-A : 1\r\n\r\n",
    "a field without a name": GET + HOST + b": 1\r\n\r\n",
    "a field without a colon": GET + HOST + b"X-A\r\n\r\n",
    "a zero byte": GET + HOST + b"X-A: a\0b\r\n\r\n",
    "bytes beyond ASCII": GET + HOST + "X-A: é\r\n\r\n".encode(),
    "tabs": GET + HOST + b"X-A:\t1\t\r\n\r\n",
    "two spaces": b"GET  /v1/kv/a HTTP/1.1\r\n" + HOST + b"\r\n",
    "a space in the target": b"GET /v1/kv/a b HTTP/1.1\r\n" + HOST + b"\r\n",
    "expecting": put(b"v", b"Expect: 100-continue\r\n"),
    "an upgrade": GET + HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "HTTP/2 by upgrade": GET
    + HOST
    + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
    "a long head": GET + HOST + b"X-A: " + b"a" * 20_000 + b"\r\n\r\n",
    "no HTTP at all": b"\x16\x03\x01\x02\x00\x01\x00",
}


@pytest.fixture(params=["asyncio"])
def served_by(request):
    return request.param


async def answered(served, data, parts=1):
    """All that is answered, without what differs from one answer to the next, and the events."""
    await served.keyspace.clear()
    await served.keyspace.put("a", b"1")
    seen = []
    offs = [
        served.dispatcher.on(kind, lambda event, kind=kind: seen.append(told(kind, event)))
        for kind in (RequestStart, RequestComplete, RequestEnd)
    ]
    peer = await served.connect()
    async with peer.stream:
        size = -(-len(data) // parts) or 1
        try:
            for begin in range(0, len(data), size):
                await peer.stream.send(data[begin : begin + size])
                if parts > 1:
                    await anyio.lowlevel.checkpoint()
            await peer.stream.send_eof()
        except anyio.BrokenResourceError:
            pass  # it was refused before it was sent
        with anyio.fail_after(30):
            answer = await peer.rest()
    for off in offs:
        off()
    answer, _, frames = answer.partition(b"upgrade: h2c\r\n\r\n")
    # Of HTTP/2 the kinds of frames: in their compressed heads there is the time.
    kinds = [frames[at + 3] for at in frame_places(frames)]
    return VOLATILE.sub(rb"\1\r", answer), kinds, seen


def frame_places(frames):
    at = 0
    while at < len(frames):
        yield at
        at += 9 + int.from_bytes(frames[at : at + 3], "big")


def told(kind, event):
    error = getattr(event, "error", None)
    about = kind.__name__, event.command, event.path, dict(event.params)
    return (*about, None if error is None else error.code)


async def both(serving, stack):
    return [
        await stack.enter_async_context(serving(server=server)) for server in ("fast", "hypercorn")
    ]


async def test_all_kinds_of_requests_are_answered_alike(serving):
    differ = {}
    async with AsyncExitStack() as stack:
        fast, other = await both(serving, stack)
        for name, data in REQUESTS.items():
            for parts in (1, 3):
                one, two = await answered(fast, data, parts), await answered(other, data, parts)
                if one != two:
                    differ[name, parts] = one, two
    assert differ == {}


PIECES = st.sampled_from(
    [
        *(b"GET ", b"PUT ", b"POST ", b"/v1/kv/a", b"/get?k=a", b"/set?k=a&v=%31", b"/is?k=b"),
        *(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", HOST, b"\r\n", b"\n", b" ", b"X-A: b\r\n", b"1"),
        *(b"Content-Length: 1\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n"),
        *(GET + HOST + b"\r\n", put(b"xy"), put(b"")),
    ]
)


async def test_anything_is_answered_alike(serving):
    async with AsyncExitStack() as stack:
        fast, other = await both(serving, stack)
        made = []

        # What hypothesis makes is gathered first: it knows nothing of event loops.
        @settings(max_examples=300, database=None)
        @given(st.lists(PIECES, max_size=12).map(b"".join))
        def gather(data):
            made.append(data)

        gather()
        for data in dict.fromkeys(made):
            assert await answered(fast, data) == await answered(other, data), data
