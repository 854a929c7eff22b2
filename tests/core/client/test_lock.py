"""Locks, against a node: taken by one at a time, renewed, lost, let go."""

import threading

import anyio
import pytest

from nkv_core.client import AsyncClient, Client
from nkv_core.errors import InvalidExpiry, LockHeld, LockLost, Unreachable


def number_of(version):
    return int(version.rpartition("-")[2])


class Slow(Exception):
    pass


@pytest.mark.anyio
async def test_one_holds_it_at_a_time_and_fencing_versions_grow(node_url):
    holders, versions = 0, []

    async def work():
        nonlocal holders
        async with AsyncClient(node_url) as client:
            for _ in range(5):
                async with client.lock("jobs", 5) as held:
                    holders += 1
                    assert holders == 1
                    versions.append(number_of(held.version))
                    await anyio.sleep(0.001)
                    held.check()
                    holders -= 1

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(work)
    assert len(versions) == 20
    assert versions == sorted(set(versions))


def test_threads_hold_it_one_at_a_time(node_url):
    holders, versions, failed = [], [], []

    def work():
        try:
            with Client(node_url) as client:
                for _ in range(5):
                    with client.lock("jobs", 5) as held:
                        holders.append(1)
                        assert len(holders) == 1
                        versions.append(number_of(held.version))
                        holders.pop()
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failed
    assert len(versions) == 15
    assert versions == sorted(set(versions))
    assert not [one for one in threading.enumerate() if one.name.startswith("nkv lock")]


@pytest.mark.anyio
async def test_it_is_renewed_for_as_long_as_it_is_held_and_then_gone(node_url):
    async with AsyncClient(node_url) as client:
        async with client.lock("l", 3.0) as held:
            first = (await client.get("l")).expires
            with anyio.fail_after(60):
                while (await client.get("l")).expires < first + 1000:
                    await anyio.sleep(0.05)
            held.check()
            assert held.version != (await client.get("l")).version
        assert await client.get("l") is None
        assert not held._lost


@pytest.mark.anyio
async def test_others_are_told_that_it_is_held(node_url):
    async with AsyncClient(node_url) as client, client.lock("l", 5):
        for wait in (0, 0.1):
            with pytest.raises(LockHeld):
                await client.lock("l", 5, wait=wait).__aenter__()
        with Client(node_url) as other, pytest.raises(LockHeld):
            await anyio.to_thread.run_sync(other.lock("l", 5, wait=0).__enter__)


@pytest.mark.anyio
async def test_a_lock_that_is_lost_cancels_the_block_and_is_told(node_url):
    lost = []
    async with AsyncClient(node_url) as client:
        with anyio.fail_after(60), pytest.raises(LockLost):  # noqa: PT012
            async with client.lock("l", 0.3, on_lost=lost.append) as held:
                await client.delete("l")
                await client.put("l", b"somebody else's")
                await anyio.sleep_forever()
        assert held.lost
        assert held.left == 0
        assert lost == ["l"]
        assert (await client.get("l")).value == b"somebody else's"


def test_a_lost_lock_is_told_in_a_plain_program(node_url):
    lost = threading.Event()
    with Client(node_url) as client:
        with (  # noqa: PT012  # the block is what is tested
            pytest.raises(LockLost),
            client.lock("l", 0.3, on_lost=lambda _: lost.set()) as held,
        ):
            client.delete("l")
            assert lost.wait(20)
            with pytest.raises(LockLost):
                held.check()
        assert client.get("l") is None


@pytest.mark.anyio
async def test_what_the_block_raises_comes_out_as_it_is_and_lets_go(node_url):
    async with AsyncClient(node_url) as client:
        with pytest.raises(Slow):
            async with client.lock("l", 5):
                raise Slow
        assert await client.get("l") is None
        with pytest.raises(Slow):
            await anyio.to_thread.run_sync(raise_in_thread, node_url)
        assert await client.get("l") is None


def raise_in_thread(url):
    with Client(url) as client, client.lock("l", 5):
        raise Slow


@pytest.mark.anyio
async def test_a_block_that_is_cancelled_lets_go(node_url):
    async with AsyncClient(node_url) as client:
        with anyio.CancelScope() as scope:
            async with client.lock("l", 5):
                scope.cancel()
                await anyio.sleep_forever()
        assert await client.get("l") is None


def test_a_lock_whose_answer_was_lost_is_recognised(plain_node):
    answer, lost = plain_node.server.answer, []

    def lose_some(asked):
        done = answer(asked)
        if asked.method in ("PUT", "POST") and asked.method not in lost:
            lost.append(asked.method)
            return None
        return done

    plain_node.server.answer = lose_some
    with Client(plain_node.url) as client, client.lock("l", 3.0) as held:
        assert lost == ["PUT"]
        first, waiting = held._current, threading.Event()
        while "POST" not in lost or held._current == first:
            waiting.wait(0.02)
        held.check()
    plain_node.server.answer = answer
    with Client(plain_node.url) as client:
        assert client.get("l") is None


def test_a_lock_that_cannot_be_had_is_refused(node_url, closed_url):
    with Client(closed_url) as client, pytest.raises(Unreachable):
        client.lock("l", 5, wait=0.2).__enter__()
    with Client(node_url) as client:
        for ttl in (0, -1, 0.01, float("nan")):
            with pytest.raises(InvalidExpiry):
                client.lock("l", ttl).__enter__()
