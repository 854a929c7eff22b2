"""Streams whose pieces are sent without waking a task: nothing else about them is different."""

import anyio
import pytest

from nkv_core.contracts.handlers import Stream
from nkv_core.loop import waiter_maker

pytestmark = pytest.mark.anyio


class Pieces:
    """A `Prompt` iterator over what a test adds to it; counts how it was asked."""

    def __init__(self):
        self.prompt = None
        self.ready = []
        self.over = False
        self.awaited = self.asked = 0  # pieces that were given either way
        self.closed = anyio.Event()
        self._waiter = None

    def add(self, *pieces, last=False):
        self.ready += pieces
        self.over = last
        if self._waiter is not None:
            self._waiter.wake() if self.prompt is None else self.prompt()

    def __aiter__(self):
        return self

    async def __anext__(self):
        while not self.ready and not self.over:
            self._waiter = waiter_maker()()
            try:
                await self._waiter.wait()
            finally:
                self._waiter = None
        if not self.ready:
            raise StopAsyncIteration
        self.awaited += 1
        return self.ready.pop(0)

    def next_now(self):
        if self.ready:
            self.asked += 1
            return self.ready.pop(0)
        if self.over:
            self._waiter.wake()
        return None

    async def aclose(self):
        self.closed.set()


def streaming(pieces, **options):
    return lambda handlers: handlers.add("/pieces", lambda _: Stream(pieces, **options))


async def opened(node, method="GET", version="1.1"):
    peer = await node.connect()
    await peer.send(f"{method} /pieces HTTP/{version}\r\nHost: localhost\r\n\r\n".encode())
    await peer.until(b"\r\n\r\n")
    return peer


async def test_pieces_are_sent_in_order_with_their_lengths_up_to_the_end(serving):
    pieces = Pieces()
    async with serving() as node:
        node.load(streaming(pieces))
        peer = await opened(node)
        async with peer.stream:
            pieces.add(b"one", b"", b"two")
            assert await peer.until(b"two\r\n") == b"3\r\none\r\n3\r\ntwo\r\n"
            # More than go out in one turn.
            pieces.add(*[b"%d" % number for number in range(10)], b"sixteen and more.", last=True)
            rest = await peer.until(b"0\r\n\r\n")
            assert rest == b"".join(
                [b"1\r\n%d\r\n" % number for number in range(10)]
                + [b"11\r\nsixteen and more.\r\n", b"0\r\n\r\n"]
            )
            assert pieces.awaited == 0
            await pieces.closed.wait()
            assert pieces.prompt is None
            await peer.send(b"GET /healthcheck HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await peer.reply())[0] == 200


async def test_what_the_client_does_not_take_at_once_comes_later_whole_and_in_order(serving):
    pieces = Pieces()
    size = 64 * 1024
    async with serving() as node:
        node.load(streaming(pieces))
        peer = await opened(node)
        async with peer.stream:
            sent = b""
            for number in range(300):
                piece = b"%06d" % number * (size // 6)
                sent += b"%x\r\n%b\r\n" % (len(piece), piece)
                pieces.add(piece)
                await anyio.lowlevel.checkpoint()
            assert pieces.ready, "the connection holds all of it: nothing had to wait"
            pieces.add(last=True)
            sent += b"0\r\n\r\n"
            got = bytearray()
            while len(got) < len(sent):
                got += await peer.stream.receive()
            assert got == sent
            assert pieces.awaited > 0 < pieces.asked


@pytest.mark.parametrize(
    ("method", "version", "body"),
    [("GET", "1.0", b"onetwo"), ("HEAD", "1.1", b"")],
)
async def test_where_pieces_have_no_lengths_they_are_awaited(serving, method, version, body):
    pieces = Pieces()
    async with serving() as node:
        node.load(streaming(pieces))
        peer = await opened(node, method, version)
        async with peer.stream:
            pieces.add(b"one", b"two", last=True)
            await pieces.closed.wait()
            assert pieces.asked == 0
            if body:
                assert await peer.rest() == body


async def test_a_goodbye_comes_behind_what_was_sent_at_once(serving):
    pieces = Pieces()
    async with serving() as node:
        node.load(streaming(pieces, goodbye=lambda: b"goodbye"))
        peer = await opened(node)
        async with peer.stream, anyio.create_task_group() as tasks:
            pieces.add(b"one")
            await peer.until(b"one\r\n")
            tasks.start_soon(node.stop)
            assert await peer.rest() == b"7\r\ngoodbye\r\n0\r\n\r\n"
            await pieces.closed.wait()


async def test_one_that_is_prompted_when_its_client_has_gone_is_closed(serving):
    pieces = Pieces()
    async with serving() as node:
        node.load(streaming(pieces))
        peer = await opened(node)
        await peer.stream.aclose()
        pieces.add(b"one")
        await pieces.closed.wait()
        pieces.add(b"two")
        assert pieces.ready[-1] == b"two"
