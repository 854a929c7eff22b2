"""The clients and `nkv watch` against a node that is killed and started again."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import anyio
import pytest

from nkv_core.client import AsyncClient, Changed, Client
from nkv_core.errors import NkvError
from nkv_core.node import DEFAULT_PLUGINS

SSE = Path(__file__).parents[2] / "plugins" / "nkv_notifier_sse"
DEADLINE = 60
COUNT = 300
KILLS = 3
PASSING = frozenset({"unreachable", "outcome_unknown", "deadline_exceeded", "stopping"})


class Restarting:
    """A node that can be killed and started again, at the same address."""

    def __init__(self, serve):
        self._serve = serve
        plugin = () if SSE.name in DEFAULT_PLUGINS else ("--plugin", str(SSE))
        self._arguments = plugin
        self.node = serve(*self._arguments)
        self.url = self.node.url

    def restart(self):
        self.node.kill()
        self.node = self._serve(*self._arguments, "--port", str(self.node.port))
        assert self.node.url == self.url


@pytest.fixture
def restarting(serve):
    return Restarting(serve)


def put_surely(client, key, value):
    """Put until it is acknowledged; a value may be told twice then."""
    end = time.monotonic() + DEADLINE
    while True:
        try:
            client.put(key, value)
        except NkvError as error:
            if error.code not in PASSING or time.monotonic() > end:
                raise
            time.sleep(0.02)
        else:
            return


def writes(url, count, reached):
    """Writes on and on; `reached` is released at some numbers on the way."""
    with Client(url) as client:
        put_surely(client, "a", b"the root of the subtree")
        for number in range(count):
            if number % (count // (KILLS + 1)) == 1:
                reached.release()
            put_surely(client, f"a.{number % 7}", b"%d" % number)
        put_surely(client, "a.end", b"")


def without_repeats_of_one_write(numbers):
    """A write whose answer was lost is made again: the same number twice in a row."""
    return [one for one, before in zip(numbers, [None, *numbers], strict=False) if one != before]


@pytest.mark.parametrize("kind", ["sync", "asyncio", "trio"])
def test_a_watch_and_a_mirror_go_on_over_kills_without_hole_or_repeat(restarting, kind):
    url = restarting.url
    follow = follow_in_thread if kind == "sync" else follow_in_loop
    started, result = threading.Event(), []
    follower = threading.Thread(target=lambda: result.append(follow(url, started, kind)))
    follower.start()
    assert started.wait(DEADLINE)
    reached = threading.Semaphore(0)
    writer = threading.Thread(target=writes, args=(url, COUNT, reached))
    writer.start()
    for _ in range(KILLS):
        assert reached.acquire(timeout=DEADLINE)
        restarting.restart()
    writer.join(DEADLINE)
    follower.join(DEADLINE)
    assert not follower.is_alive()
    [(items, mirrored)] = result
    assert all(isinstance(item, Changed) for item in items), "a gap was told"
    tokens = [item.token for item in items]
    assert len(tokens) == len(set(tokens))
    numbers = [int(item.value) for item in items if item.value]
    assert without_repeats_of_one_write(numbers) == list(range(COUNT))
    with Client(url) as client:
        below = {item.key: item.value for item in client.scan("a.*")}
    assert mirrored == {"a": b"the root of the subtree", **below}


def follow_in_thread(url, started, _):
    items = []
    with Client(url) as client, client.mirror("a") as mirror, client.watch("a.*") as watch:
        started.set()
        for item in watch:
            items.append(item)
            if isinstance(item, Changed) and item.key == "a.end":
                break
        mirror.wait_for(lambda found: "a.end" in found and found.synced, DEADLINE)
        return items, dict(mirror)


def follow_in_loop(url, started, kind):
    async def follow():
        items = []
        with anyio.fail_after(DEADLINE):
            async with (
                AsyncClient(url) as client,
                client.mirror("a") as mirror,
                client.watch("a.*") as watch,
            ):
                started.set()
                async for item in watch:
                    items.append(item)
                    if isinstance(item, Changed) and item.key == "a.end":
                        break
                await mirror.wait_for(lambda found: "a.end" in found and found.synced, DEADLINE)
                return items, dict(mirror)

    return anyio.run(follow, backend=kind)


@pytest.mark.parametrize("kind", ["sync", "asyncio", "trio"])
def test_a_lock_is_kept_over_a_restart(restarting, kind):
    def check(held):
        first = held._current
        restarting.restart()
        end = time.monotonic() + DEADLINE
        while held._current == first or held.left < 10:
            assert time.monotonic() < end
            held.check()
            time.sleep(0.02)

    async def hold():
        async with AsyncClient(restarting.url) as client:
            async with client.lock("l", 15) as held:
                await anyio.to_thread.run_sync(check, held)
            assert await client.get("l") is None

    if kind != "sync":
        anyio.run(hold, backend=kind)
        return
    with Client(restarting.url) as client:
        with client.lock("l", 15) as held:
            check(held)
        assert client.get("l") is None


def test_nkv_watch_survives_a_kill_and_ends_with_a_token(restarting, clean_env):
    process = subprocess.Popen(
        [sys.executable, "-m", "nkv_core", "watch", "a.*", "--snapshot"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**clean_env, "NKV_URL": restarting.url},
    )
    timer = threading.Timer(DEADLINE, process.kill)
    timer.start()
    try:
        lines = (json.loads(line) for line in process.stdout)
        assert next(lines) == {"event": "snapshot-start", "token": None}
        assert next(lines)["event"] == "snapshot-end"
        with Client(restarting.url) as client:
            put_surely(client, "a.1", b"1")
            assert next(lines)["key"] == "a.1"
            restarting.restart()
            put_surely(client, "a.2", b"\xff")
            last = next(lines)
            assert (last["event"], last["key"], last["value_base64"]) == ("put", "a.2", "/w==")
            process.send_signal(signal.SIGINT)
            assert process.wait(DEADLINE) == 130
            said = process.stderr.read().decode()
            assert "Trying again." in said
            assert "watching again" in said
            assert said.rstrip().endswith(f"--since {last['token']}")
            client.put("a.3", b"")
        done = subprocess.Popen(
            [sys.executable, "-m", "nkv_core", "watch", "--since", last["token"]],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**clean_env, "NKV_URL": restarting.url},
        )
        assert json.loads(done.stdout.readline())["key"] == "a.3"
        done.kill()
        done.wait()
        done.stdout.close()
    finally:
        timer.cancel()
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()
        process.stderr.close()


def test_a_watch_of_a_node_that_is_not_there_is_unreachable(nkv, free_url):
    done = nkv("watch", "--url", free_url, "--timeout", "0.3")
    assert done.returncode == 3
    assert "(unreachable)" in done.stderr


@pytest.fixture
def free_url():
    """An address where nobody listens."""
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"
