"""Both clients against something that answers as a node does."""

import threading

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nkv_core.client import AsyncClient, Check, Clear, Client, Delete, Put, Touch
from nkv_core.errors import ConditionFailed, InvalidKey, InvalidPattern, OtherHistory
from nkv_core.keys import check_key
from nkv_core.records import milliseconds_of, wall_clock


def is_key(text):
    try:
        check_key(text)
    except InvalidKey:
        return False
    return True


keys = st.text(min_size=1, max_size=60).filter(is_key)


@pytest.fixture
def node(plain_node):
    return plain_node


def test_what_is_put_is_got(call, node):
    before = wall_clock()
    written = call(node.url, "put", "a.b", b"\x00\xff", ttl=60)
    assert not written.existed
    item = call(node.url, "get", "a.b")
    assert (item.key, item.value, item.version) == ("a.b", b"\x00\xff", written.version)
    assert before <= milliseconds_of(item.modified) <= wall_clock()
    assert before + 60_000 <= item.expires <= wall_clock() + 60_000
    assert call(node.url, "put", "a.b", b"2").existed
    assert call(node.url, "get", "a.b").expires is None
    assert call(node.url, "delete", "a.b") is True
    assert call(node.url, "delete", "a.b") is False
    assert call(node.url, "get", "a.b") is None


def test_an_expiry_is_kept_to_the_millisecond(call, node):
    expires = wall_clock() + 123_457
    call(node.url, "put", "a", b"", expires=expires)
    assert call(node.url, "get", "a").expires == expires


def test_conditions_are_kept(call, node):
    first = call(node.url, "put", "a", b"1", if_absent=True).version
    with pytest.raises(ConditionFailed):
        call(node.url, "put", "a", b"2", if_absent=True)
    second = call(node.url, "put", "a", b"2", if_version=first).version
    with pytest.raises(ConditionFailed):
        call(node.url, "put", "a", b"3", if_version=first)
    with pytest.raises(ConditionFailed):
        call(node.url, "delete", "a", if_version=first)
    with pytest.raises(OtherHistory):
        call(node.url, "delete", "a", if_version="0123456789abcdef-1")
    assert call(node.url, "delete", "a", if_version=second)


def test_a_batch_is_all_or_nothing(call, node):
    call(node.url, "put", "old", b"1")
    results = call(
        node.url,
        "batch",
        [
            Put("a", b"\xff", ttl=60),
            Put("b", b"2", if_absent=True),
            Delete("old"),
            Delete("never"),
            Touch("b", expires=wall_clock() + 5000),
            Clear("below."),
        ],
        [Check("never", None)],
    )
    assert [result.existed for result in results] == [False, False, True, False, True, False]
    assert [result.version is None for result in results] == [False, False, True, True, False, True]
    assert call(node.url, "get", "b").version == results[4].version
    with pytest.raises(ConditionFailed):
        call(node.url, "batch", [Put("c", b"3"), Put("b", b"", if_absent=True)])
    with pytest.raises(ConditionFailed):
        call(node.url, "batch", [Put("c", b"3")], [Check("a", None)])
    assert call(node.url, "get", "c") is None
    version = call(node.url, "get", "a").version
    call(node.url, "batch", [Delete("a", if_version=version)], [Check("a", version)])
    assert call(node.url, "get", "a") is None


def test_a_scan_goes_over_all_pages_in_key_order(call, node):
    names = [f"k.{number:04}" for number in range(700)]
    for start in range(0, 700, 350):
        puts = [Put(name, b"v" + name.encode()) for name in names[start : start + 350]]
        call(node.url, "batch", puts)
    call(node.url, "put", "other", b"\xff")
    found = call(node.url, "scan", "k.*")
    assert [item.key for item in found] == names
    assert all(item.value == b"v" + item.key.encode() for item in found)
    assert [item.key for item in call(node.url, "scan", after="k.0698")] == ["k.0699", "other"]
    assert [item.key for item in call(node.url, "scan", "other")] == ["other"]
    assert call(node.url, "scan", "nothing.*") == []
    with pytest.raises(InvalidPattern):
        call(node.url, "scan", "")


def test_pages_of_large_records_are_small(node):
    with Client(node.url) as client:
        for number in range(40):
            client.put(f"k{number:02}", bytes(300_000))
        node.server.asked.clear()
        assert len(list(client.scan())) == 40
    limits = [asked.target for asked in node.server.asked]
    assert "limit=3" in limits[-1]


def test_updates_of_many_lose_nothing(node):
    def add(value):
        return b"%d" % (int(value or b"0") + 1)

    def work():
        with Client(node.url) as client:
            for _ in range(10):
                client.update("counter", add, attempts=1000)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    with Client(node.url) as client:
        assert client.get("counter").value == b"40"


def test_an_update_can_make_and_delete(call, node):
    assert not call(node.url, "update", "a", lambda value: b"new", ttl=60).existed
    assert call(node.url, "get", "a").expires is not None
    gone = call(node.url, "update", "a", lambda value: None)
    assert gone.existed
    assert gone.version is None
    assert call(node.url, "update", "a", lambda value: None) is None


def test_the_status_is_told(call, node):
    assert call(node.url, "status")["name"] == "plain"


@pytest.mark.anyio
async def test_the_asynchronous_client_serves_many_tasks(node):
    async with AsyncClient(node.url) as client:
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                for number in range(50):
                    tasks.start_soon(client.put, f"k{number}", b"1")
        assert [item.key async for item in client.scan()] == sorted(f"k{n}" for n in range(50))


@pytest.mark.anyio
async def test_a_cancelled_request_leaves_a_client_that_works(node):
    answer, node.server.answer = node.server.answer, lambda asked: node.server.released.wait(30)
    async with AsyncClient(node.url) as client:
        with anyio.move_on_after(0.1) as scope:
            await client.get("a")
        assert scope.cancelled_caught
        node.server.answer = answer
        assert await client.get("a") is None


def test_the_synchronous_client_serves_many_threads(node):
    with Client(node.url) as client:
        threads = [
            threading.Thread(target=client.put, args=(f"k{number}", b"1")) for number in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(list(client.scan())) == 20


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(keys, st.binary(max_size=200))
def test_any_key_and_value_make_the_round_trip(node, key, value):
    with Client(node.url) as client:
        client.put(key, value)
        assert client.get(key).value == value
        assert [item.value for item in client.scan(after=None) if item.key == key] == [value]
        client.batch([Put(key, value + b"!")])
        assert client.get(key).value == value + b"!"
        assert client.delete(key)
