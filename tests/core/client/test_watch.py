"""A watch by both clients: against scripted streams, and against a node."""

import os
import socket
import threading
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import anyio
import anyio.lowlevel
import pytest

from nkv_core.client import AsyncClient, Changed, Client, Gap, SnapshotEnd, SnapshotStart
from nkv_core.errors import Forbidden, NkvError, NoHandler, Unreachable

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
MODIFIED = '"modified":"2026-01-31T12:00:00.250Z+3"'


def chunk(data):
    return b"%x\r\n%b\r\n" % (len(data), data)


END = b"0\r\n\r\n"


def put(number):
    return (
        f'id: T{number}\nevent: put\ndata: {{"key":"k","value":"{number}",{MODIFIED}}}\n\n'.encode()
    )


def values(items):
    return [int(item.value) for item in items if isinstance(item, Changed)]


def since(asked):
    return parse_qs(urlsplit(asked.target).query).get("since", [None])[0]


@pytest.fixture
def script(canned):
    """Have each connection in turn answered with the next of these; the last one again."""

    def play(*answers):
        left = list(answers)

        def answer(_):
            made = left.pop(0) if len(left) > 1 else left[0]
            return made() if callable(made) else made

        canned.answer = answer

    return play


def test_a_connection_that_ends_is_made_again_and_resumes_behind_the_last_item(
    watched, canned, script
):
    script(
        HEAD + chunk(put(1) + put(2)) + END,
        HEAD + chunk(b": a sign of life\n\nid: T7\n\n") + END,
        HEAD + chunk(put(8)),
    )
    assert values(watched(canned.url, 3)) == [1, 2, 8]
    assert [since(asked) for asked in canned.asked] == [None, "T2", "T7"]


def test_events_may_be_cut_anywhere(watched, canned, script):
    stream = put(1) + b": x\n\n" + put(2) + "data: ü\n\n".encode() + put(3)

    def drops():
        yield HEAD
        for index in range(len(stream)):
            yield chunk(stream[index : index + 1])

    script(drops)
    assert values(watched(canned.url, 3)) == [1, 2, 3]


def test_half_an_event_is_none(watched, canned, script):
    half = put(2)[:-1]
    script(HEAD + chunk(put(1) + half) + END, HEAD + chunk(put(2)))
    assert values(watched(canned.url, 2)) == [1, 2]
    assert since(canned.asked[1]) == "T1"


def test_a_connection_in_which_nothing_comes_is_taken_for_lost(watched, canned, script):
    def silent():
        yield HEAD + chunk(put(1))
        canned.released.wait(30)

    script(silent, HEAD + chunk(put(2)))
    assert values(watched(canned.url, 2, silence=0.2)) == [1, 2]


def test_an_answer_that_never_begins_is_given_up(watched, canned, script):
    def stalled():
        canned.released.wait(30)
        yield b""

    script(stalled, HEAD + chunk(put(1)))
    assert values(watched(canned.url, 1, timeout=5, silence=0.2, client={"timeout": 1})) == [1]


def test_a_node_that_is_not_there_at_first_is_unreachable(watched, closed_url):
    with pytest.raises(Unreachable):
        watched(closed_url, 1, timeout=0.2)


def test_patience_runs_out(watched, canned, script):
    script(HEAD + chunk(put(1)) + END, None)
    with pytest.raises(Unreachable):
        watched(canned.url, 2, patience=0.3)


def test_a_refusal_is_raised(watched, canned, canned_reply):
    canned.answer = lambda _: canned_reply(403, b'{"code":"forbidden","detail":"not you"}')
    with pytest.raises(Forbidden, match="not you"):
        watched(canned.url, 1)
    assert len(canned.asked) == 1
    canned.answer = lambda _: canned_reply(404, b'{"code":"no_handler"}')
    with pytest.raises(NoHandler):
        watched(canned.url, 1)


def test_a_node_that_is_overloaded_is_asked_again(watched, canned, canned_reply, script):
    script(canned_reply(503, b'{"code":"overloaded"}'), HEAD + chunk(put(1)))
    assert values(watched(canned.url, 1)) == [1]


def test_an_answer_that_is_no_stream_of_events_is_told(watched, canned, canned_reply):
    canned.answer = lambda _: canned_reply(200, b"<html>", Content_Type="text/html")
    with pytest.raises(NkvError) as raised:
        watched(canned.url, 1, timeout=0.2)
    assert raised.value.code == "unexpected_reply"


def test_an_event_without_end_is_not_read_to_the_end(watched, canned, script):
    def endless():
        yield HEAD
        while not canned.released.is_set():
            yield chunk(b"data: " + b"x" * 1024)

    script(endless)
    with pytest.raises(NkvError) as raised:
        watched(canned.url, 1, client={"max_reply": 64 * 1024})
    assert raised.value.code == "unexpected_reply"


def test_a_failed_watch_raises_again_and_does_not_end_in_silence(canned, canned_reply):
    canned.answer = lambda _: canned_reply(403, b'{"code":"forbidden"}')
    with Client(canned.url) as client:
        watch = client.watch()
        for _ in range(2):
            with pytest.raises(Forbidden):
                next(watch)


# --- against a node -------------------------------------------------------------------------------


def test_every_kind_of_change_is_told_in_order(watched, node_url):
    def act():
        with Client(node_url) as client:
            first = client.put("a.b", b"\xff").version
            client.put("a.b", b"2", if_version=first)
            client.put("b", b"of nobody's concern")
            client.delete("a.b")
            client.put("a.c", b"", ttl=0.01)

    told = watched(node_url, 5, "a.*", act=act)
    assert [item.kind for item in told] == ["put", "put", "delete", "put", "expire"]
    assert told[0].value == b"\xff"
    assert told[1].previous == told[0].version
    assert told[3].expires is not None
    assert told[4].cause == "expire"
    assert len({item.token for item in told}) == 5


def test_a_snapshot_comes_first_and_a_token_goes_on(watched, node_url):
    with Client(node_url) as client:
        client.put("a.1", b"1")
        client.put("a", b"root")
        told = watched(
            node_url, 5, "a", snapshot=True, subtree=True, act=lambda: client.put("a.2", b"2")
        )
        assert isinstance(told[0], SnapshotStart)
        assert {item.key: item.value for item in told[1:3]} == {"a": b"root", "a.1": b"1"}
        assert isinstance(told[3], SnapshotEnd)
        assert (told[4].key, told[4].value) == ("a.2", b"2")
        [again] = watched(node_url, 1, "a.*", since=told[3].token)
        assert again == told[4]
        [gap, start] = watched(node_url, 2, since="1.0123456789abcdef.7", snapshot=True)
        assert isinstance(gap, Gap)
        assert gap.resync
        assert isinstance(start, SnapshotStart)


@pytest.mark.anyio
async def test_waiting_may_be_cancelled_and_nothing_is_lost(node_url):
    async with AsyncClient(node_url) as client, client.watch("a.*") as watch:
        for number in range(5):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await anext(watch)
            with anyio.move_on_after(0.02):
                await anext(watch)
            await client.put(f"a.{number}", b"")
            with anyio.fail_after(60):
                assert (await anext(watch)).key == f"a.{number}"


@pytest.mark.anyio
async def test_a_reader_that_never_waits_lets_others_run(canned):
    canned.answer = lambda _: HEAD + chunk(b"".join(put(number) for number in range(500))) + END
    others = 0

    async def other():
        nonlocal others
        while True:
            others += 1
            await anyio.lowlevel.checkpoint()

    async with AsyncClient(canned.url) as client, client.watch() as watch:
        with anyio.fail_after(60):
            await anext(watch)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(other)
                for _ in range(400):
                    await anext(watch)
                tasks.cancel_scope.cancel()
    assert others >= 3


@pytest.mark.anyio
async def test_closing_the_client_ends_its_watches(node_url):
    client = AsyncClient(node_url)
    idle = client.watch()
    await idle.__aenter__()
    busy = client.watch()
    told = []

    async def follow():
        async with busy:
            async for item in busy:
                told.append(item)  # noqa: PERF401  # it never ends

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            while not told:
                await client.put("a", b"")
            await client.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(idle)
        await idle.aclose()


def test_another_thread_may_close_a_watch(node_url):
    with Client(node_url) as client, client.watch() as watch:
        items = []
        thread = threading.Thread(target=lambda: items.extend(watch))
        thread.start()
        client.put("a", b"1")
        watch.close()
        thread.join(10)
        assert not thread.is_alive()
        watch.close()


@pytest.mark.parametrize("kind", ["sync", "asyncio", "trio"])
def test_a_watch_that_is_over_leaves_nothing_open(node_url, kind):
    def opened():
        return [one for one in Path("/proc/self/fd").iterdir() if is_socket_to(one.name, port)]

    port = int(node_url.rpartition(":")[2])

    def plain():
        with Client(node_url) as client:
            for _ in range(3):
                with client.watch() as watch:
                    client.put("a", b"")
                    next(watch)
                client.watch().close()
            return len(opened())

    async def on_a_loop():
        async with AsyncClient(node_url) as client:
            for _ in range(3):
                async with client.watch() as watch:
                    await client.put("a", b"")
                    await anext(watch)
                await client.watch().aclose()
            return len(opened())

    assert (plain() if kind == "sync" else anyio.run(on_a_loop, backend=kind)) == 1  # of the puts
    assert not opened()


def is_socket_to(fd, port):
    try:
        with socket.socket(fileno=os.dup(int(fd))) as found:
            return found.getpeername() == ("127.0.0.1", port)
    except OSError:
        return False


def test_many_watches_leave_room_for_requests(node_url):
    with Client(node_url) as client:
        watches = [client.watch(f"a.{number}").__enter__() for number in range(120)]
        client.put("a.119", b"1", timeout=5)
        assert next(watches[119]).value == b"1"
