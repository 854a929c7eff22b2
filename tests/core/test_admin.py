"""The admin socket: answers, refusals, peers that misbehave, and the file itself."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from nkv_core.admin import call_admin, calling, serve_admin, server, verbs
from nkv_core.errors import (
    AddressInUse,
    DataDirError,
    DeadlineExceeded,
    Forbidden,
    NkvError,
    NotSupportedHere,
    PluginInUse,
    Rejected,
    SettingsError,
    Unreachable,
)

DEADLINE = 20.0


@pytest.fixture
def path(tmp_path):
    return tmp_path / "admin.sock"


class Verbs:
    """Verbs of a node, and what was done."""

    def __init__(self):
        self.done = []
        self.begun = anyio.Event()
        self.go_on = anyio.Event()
        self.finished = anyio.Event()

    async def echo(self, call):
        self.done.append(call.params)
        return call.params

    async def wait(self, call):
        self.begun.set()
        await self.go_on.wait()
        self.finished.set()
        return "waited"

    async def count(self, call):
        for number in range(call.params["to"]):
            await call.progress(number)
        return "counted"

    async def refuse(self, call):
        raise PluginInUse("nkv_storage_x holds the data.")

    async def reject(self, call):
        raise Rejected(451, "odd_code", "No.")

    async def fail(self, call):
        raise ValueError("secret inside")

    async def unsayable(self, call):
        return object()

    async def much(self, call):
        return "x" * call.params["bytes"]


@asynccontextmanager
async def serving(path, handle=None):
    node = Verbs()
    table = {
        name: getattr(node, name) for name in dir(node) if callable(getattr(Verbs, name, None))
    }
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks:
            await tasks.start(serve_admin, path, handle or verbs(table))
            yield node
            tasks.cancel_scope.cancel()


async def ask(path, verb, params=None, timeout=DEADLINE, progress=None):
    function = partial(call_admin, path, verb, params, timeout, progress)
    return await anyio.to_thread.run_sync(function)


async def raw(path, *sent: bytes, end: bool = False) -> bytes:
    """What comes back, until the node closes, for exactly these bytes."""
    async with await anyio.connect_unix(path) as stream:
        for piece in sent:
            await stream.send(piece)
        if end:
            await stream.send_eof()
        got = b""
        try:
            while True:
                got += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return got


async def refused(path, verb, params=None) -> NkvError:
    with pytest.raises(NkvError) as caught:
        await ask(path, verb, params)
    return caught.value


# --- asking and answering -------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_verb_answers(path):
    params = {"text": "ä\n", "number": 1, "nested": [None, {"a": True}]}
    async with serving(path):
        assert await ask(path, "echo", params) == params
        assert await ask(path, "echo") == {}


@pytest.mark.anyio
async def test_one_connection_asks_several_things(path):
    async with serving(path):
        got = await raw(
            path,
            b'{"id":1,"verb":"echo","params":{"a":1}}\n{"id":"two","ver',
            b'b":"echo"}\n{"verb":"echo"}\n',
            end=True,
        )
    assert [json.loads(line) for line in got.splitlines()] == [
        {"id": 1, "result": {"a": 1}},
        {"id": "two", "result": {}},
        {"id": None, "result": {}},
    ]


@pytest.mark.anyio
async def test_progress_comes_before_the_answer(path):
    told = []
    async with serving(path):
        assert await ask(path, "count", {"to": 3}, progress=told.append) == "counted"
        assert await ask(path, "count", {"to": 3}) == "counted"
    assert told == [0, 1, 2]


@pytest.mark.anyio
async def test_a_refusal_keeps_its_class_code_and_detail(path):
    async with serving(path):
        error = await refused(path, "refuse")
        assert type(error) is PluginInUse
        assert error.detail == "nkv_storage_x holds the data."
        assert (await refused(path, "reject")).code == "odd_code"


@pytest.mark.anyio
async def test_an_unknown_verb_is_told_which_there_are(path):
    async with serving(path):
        error = await refused(path, "ehco")
    assert type(error) is NotSupportedHere
    assert "'ehco'" in error.detail
    assert "echo" in error.detail


@pytest.mark.anyio
@pytest.mark.parametrize("verb", ["fail", "unsayable"])
async def test_a_verb_that_fails_is_logged_and_the_socket_serves_on(path, verb, caplog):
    async with serving(path):
        error = await refused(path, verb)
        assert error.code == "internal"
        assert "secret" not in error.detail
        assert await ask(path, "echo", {"a": 1}) == {"a": 1}
    assert f"{verb} failed" in caplog.text


@pytest.mark.anyio
async def test_who_asked_for_what_is_logged_without_parameters(path, caplog):
    caplog.set_level("INFO", "nkv.admin")
    async with serving(path):
        await ask(path, "echo", {"password": "hunter2"})
        await refused(path, "refuse")
    assert f"echo by process {os.getpid()} of user {os.geteuid()}: done" in caplog.text
    assert "refused: plugin_in_use" in caplog.text
    assert "hunter2" not in caplog.text


@pytest.mark.anyio
async def test_a_long_verb_keeps_nobody_waiting(path):
    async with serving(path) as node, anyio.create_task_group() as tasks:
        tasks.start_soon(ask, path, "wait")
        await node.begun.wait()
        assert await ask(path, "echo", {"a": 1}) == {"a": 1}
        node.go_on.set()


@pytest.mark.anyio
async def test_a_long_answer_comes_whole(path):
    async with serving(path):
        assert len(await ask(path, "much", {"bytes": 1_000_000})) == 1_000_000


@pytest.mark.anyio
async def test_an_answer_beyond_the_bound_is_not_buffered(path, monkeypatch):
    monkeypatch.setattr(calling, "MAX_ANSWER", 10_000)
    async with serving(path):
        assert isinstance(await refused(path, "much", {"bytes": 100_000}), Unreachable)


# --- peers that misbehave -------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize(
    "line", [b"", b"{", b"[]", b"{}", b'{"verb":1}', b'{"verb":"echo","params":[]}', b"\xff\xfe"]
)
async def test_a_malformed_request_is_refused_and_the_connection_goes_on(path, line):
    async with serving(path) as node:
        got = await raw(path, line + b'\n{"id":2,"verb":"echo"}\n', end=True)
    first, second = (json.loads(answer) for answer in got.splitlines())
    assert first["error"]["code"] == "bad_request"
    assert second == {"id": 2, "result": {}}
    assert node.done == [{}]


@pytest.mark.anyio
async def test_a_line_without_end_is_refused_and_cut(path):
    async with serving(path):
        got = await raw(path, *[b"x" * 65536] * (server.MAX_LINE // 65536 + 1))
        assert json.loads(got)["error"]["code"] == "bad_request"
        assert await ask(path, "echo") == {}


@pytest.mark.anyio
async def test_half_a_line_does_nothing(path):
    async with serving(path) as node:
        assert await raw(path, b'{"verb":"echo"}', end=True) == b""
        assert await ask(path, "echo", {"a": 1}) == {"a": 1}
    assert node.done == [{"a": 1}]


@pytest.mark.anyio
async def test_a_peer_that_sends_nothing_is_told_and_left(path, monkeypatch):
    monkeypatch.setattr(server, "IDLE_DEADLINE", 0.05)
    async with serving(path):
        got = await raw(path, b'{"verb":')
    assert json.loads(got)["error"]["code"] == "deadline_exceeded"


@pytest.mark.anyio
async def test_a_peer_that_never_reads_is_left(path, monkeypatch, caplog):
    monkeypatch.setattr(server, "SEND_DEADLINE", 0.05)
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 1)
    async with serving(path), await anyio.connect_unix(path) as stream:
        await stream.send(b'{"verb":"much","params":{"bytes":4000000}}\n')
        # The only slot is free again once the node has given that peer up.
        assert await ask(path, "echo", {"a": 1}) == {"a": 1}
    assert "does not read" in caplog.text


@pytest.mark.anyio
async def test_a_verb_is_finished_though_its_client_has_gone(path):
    async with serving(path) as node:
        stream = await anyio.connect_unix(path)
        await stream.send(b'{"verb":"wait"}\n')
        await node.begun.wait()
        await stream.aclose()
        node.go_on.set()
        await node.finished.wait()
        assert await ask(path, "echo", {"a": 1}) == {"a": 1}


@pytest.mark.anyio
async def test_more_connections_wait_for_their_turn(path, monkeypatch):
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)
    async with serving(path):
        first = await anyio.connect_unix(path)
        second = await anyio.connect_unix(path)
        for stream in (first, second):
            await stream.send(b'{"verb":"echo"}\n')
            await stream.receive()  # both have their places
        third = await anyio.connect_unix(path)
        await third.send(b'{"verb":"echo"}\n')
        with anyio.move_on_after(0.1) as waiting:
            await third.receive()
        assert waiting.cancelled_caught
        await first.aclose()
        assert json.loads(await third.receive()) == {"id": None, "result": {}}
        await second.aclose()
        await third.aclose()


@pytest.mark.anyio
async def test_wrong_uid_denied(monkeypatch, caplog):
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "admin.sock"
        async with serving(path) as node:
            # The modes keep strangers out already. Opened wide, the credentials still do.
            path.parent.chmod(0o755)
            assert await anyio.to_thread.run_sync(_as_stranger, path) == "Forbidden"
            path.chmod(0o666)
            assert await anyio.to_thread.run_sync(_as_stranger, path) == "Forbidden"
            assert node.done == []
    assert "of user 65534" in caplog.text


def _as_stranger(path) -> str:
    child_program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from nkv_core.admin import call_admin\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: call_admin(Path(sys.argv[1]), 'echo', timeout=20)\n"
        "except Exception as error: print(type(error).__name__, end='')\n"
    )
    arguments = [sys.executable, "-c", child_program, str(path)]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.anyio
async def test_root_may_ask_a_node_of_another_user(path, monkeypatch):
    if os.geteuid() != 0:
        pytest.skip("needs root")
    monkeypatch.setattr(server.os, "geteuid", lambda: 12345)
    async with serving(path):
        assert await ask(path, "echo") == {}


# --- the file -------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_the_socket_is_for_its_user_alone_and_goes_with_the_node(path):
    async with serving(path):
        assert path.is_socket()
        assert path.lstat().st_mode & 0o777 == 0o600
    assert not path.exists()


@pytest.mark.anyio
async def test_the_socket_of_a_killed_node_is_replaced(path):
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    async with serving(path):
        assert await ask(path, "echo") == {}


@pytest.mark.anyio
async def test_the_socket_of_a_living_node_is_not_taken(path):
    async with serving(path):
        with pytest.raises(AddressInUse):
            await serve_admin(path, verbs({}))
        assert await ask(path, "echo") == {}


@pytest.mark.anyio
async def test_a_living_node_with_a_full_queue_is_not_mistaken_for_a_dead_one(path):
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))
        with pytest.raises(AddressInUse):
            await serve_admin(path, verbs({}))
    assert path.is_socket()


@pytest.mark.anyio
@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda path: path.symlink_to("target")])
async def test_what_is_no_socket_is_not_removed(path, make):
    make(path)
    with pytest.raises(DataDirError, match="in the way"):
        await serve_admin(path, verbs({}))
    assert os.path.lexists(path)


@pytest.mark.anyio
async def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataDirError, match="cannot be made"):
        await serve_admin(tmp_path / "none" / "admin.sock", verbs({}))


@pytest.mark.anyio
async def test_a_successors_socket_is_left_alone(path):
    async with serving(path):
        path.unlink()
        path.write_bytes(b"the next one's")
    assert path.read_bytes() == b"the next one's"


@pytest.mark.anyio
async def test_a_path_longer_than_an_address_serves_too(tmp_path):
    folder = tmp_path / ("deep" * 30) / ("deeper" * 20)
    folder.mkdir(parents=True)
    path = folder / "admin.sock"
    with pytest.raises(OSError, match="too long"), socket.socket(socket.AF_UNIX) as plain:
        plain.bind(str(path))
    async with serving(path):
        assert path.lstat().st_mode & 0o777 == 0o600
        assert await ask(path, "echo", {"a": 1}) == {"a": 1}
    assert not path.exists()
    with pytest.raises(Unreachable):
        await ask(path, "echo")


@pytest.mark.anyio
async def test_serving_can_be_cancelled_while_a_verb_runs(path):
    outcome = []

    async def asker():
        try:
            await ask(path, "wait")
        except Unreachable as error:
            outcome.append(error.detail)

    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks:
            async with serving(path) as node:
                tasks.start_soon(asker)
                await node.begun.wait()
            assert not path.exists()
    assert "went away" in outcome[0]


# --- asking where nobody answers ------------------------------------------------------------------


def test_without_a_node_the_path_is_named(path):
    with pytest.raises(Unreachable, match=str(path)):
        call_admin(path, "echo")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with pytest.raises(Unreachable, match=str(path)):
        call_admin(path, "echo")


@pytest.fixture
def answering(path):
    """A server that takes one connection and answers with these bytes, or never."""
    threads, sockets = [], []

    def start(answer: bytes | None):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        sockets.append(listener)

        def serve():
            connection, _ = listener.accept()
            sockets.append(connection)
            connection.recv(65536)
            if answer is not None:
                connection.sendall(answer)
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        threads.append(thread)

    yield start
    for thread in threads:
        thread.join(DEADLINE)
    for one in sockets:
        one.close()


def test_a_node_that_does_not_answer_is_not_waited_for_for_ever(path, answering):
    answering(None)
    with pytest.raises(DeadlineExceeded):
        call_admin(path, "echo", timeout=0.05)


@pytest.mark.parametrize(
    "answer", [b"", b'{"id":1,"resu', b"HTTP/1.1 400 Bad\r\n\r\n", b"[]\n", b"\xff\n"]
)
def test_an_answer_that_is_none_is_unreachable(path, answering, answer):
    answering(answer)
    with pytest.raises(Unreachable):
        call_admin(path, "echo", timeout=DEADLINE)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": "invalid_settings", "detail": "x"}, SettingsError),
        ({"code": "forbidden", "detail": "x"}, Forbidden),
        ({"code": "of_tomorrow", "detail": "x"}, NkvError),
        ({}, NkvError),
        ("odd", NkvError),
    ],
)
def test_an_error_of_any_form_is_raised(path, answering, error, kind):
    answering(json.dumps({"id": 1, "error": error}).encode() + b"\n")
    with pytest.raises(NkvError) as caught:
        call_admin(path, "echo", timeout=DEADLINE)
    assert type(caught.value) is kind
