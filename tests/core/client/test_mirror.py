"""A mirror: of a node, by both clients, and of what a watch tells."""

import threading

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nkv_core.client import AsyncClient, Changed, Clear, Client, Gap, SnapshotEnd, SnapshotStart
from nkv_core.client.mirroring import Copy
from nkv_core.errors import DeadlineExceeded, Forbidden, NkvError, Unreachable


def change(kind, key, value=None, modified=1):
    return Changed(kind, key, value, None, None, modified, None, None, None)


def test_a_snapshot_is_seen_as_a_whole_or_not_at_all():
    copy = Copy()
    assert not copy.synced
    assert copy.stale_for >= 0
    for item in (SnapshotStart(), change("put", "a", b"1")):
        copy.take(item)
        assert dict(copy) == {}
    copy.take(SnapshotEnd("T"))
    assert dict(copy) == {"a": b"1"}
    assert copy.synced
    assert copy.stale_for == 0
    copy.take(Gap("T", "T2", resync=True))
    assert not copy.synced
    for item in (SnapshotStart(), change("put", "b", b"2"), change("delete", "c")):
        copy.take(item)
        assert dict(copy) == {"a": b"1"}
    copy.take(SnapshotEnd("T2"))
    assert dict(copy) == {"b": b"2"}


def test_a_lost_connection_is_seen_and_what_is_there_is_read_on():
    copy = Copy()
    for item in (SnapshotStart(), change("put", "a", b"1"), SnapshotEnd("T")):
        copy.take(item)
    copy.link(Unreachable())
    assert not copy.synced
    assert copy["a"] == b"1"
    assert "stale" in repr(copy)
    copy.link(None)
    assert copy.synced


def test_a_mirror_that_cannot_follow_says_why_to_every_reader():
    copy = Copy()
    copy.fail(Forbidden("no"))
    for read in (lambda: copy.get("a"), lambda: len(copy), lambda: list(copy), lambda: "a" in copy):
        with pytest.raises(Forbidden):
            read()
    assert isinstance(copy.failure, Forbidden)


def test_what_is_held_has_a_bound():
    copy = Copy(max_bytes=10_000)
    copy.take(SnapshotStart())
    copy.take(SnapshotEnd("T"))
    for _ in range(100):
        copy.take(change("put", "a", b"x" * 4000))
        copy.take(change("delete", "a"))
    copy.take(change("put", "a", b"x" * 4000))
    copy.take(change("put", "b", b"x" * 4000))
    with pytest.raises(NkvError) as raised:
        copy.take(change("put", "c", b"x" * 4000))
    assert raised.value.code == "mirror_too_large"


keys = st.sampled_from(["a", "a.b", "a.c", "ab", "b.a"])
steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["put", "touch"]), keys, st.binary(max_size=3)),
        st.tuples(st.sampled_from(["delete", "expire"]), keys, st.none()),
        st.tuples(st.just("clear"), st.sampled_from(["", "a", "a.", "b"]), st.none()),
    )
)


@given(steps, steps)
def test_it_is_what_a_plain_dictionary_is(first, then):
    copy, model = Copy(), {}
    copy.take(SnapshotStart())
    size = 0
    for place, batch in enumerate((first, then)):
        for kind, key, value in batch:
            size += 1
            copy.take(change(kind, key, value, modified=size))
            if kind in ("put", "touch"):
                model[key] = value
            elif kind == "clear":
                model = {one: value for one, value in model.items() if not one.startswith(key)}
            else:
                model.pop(key, None)
        if place == 0:
            copy.take(SnapshotEnd("T"))
    assert dict(copy) == model
    assert len(copy) == len(model)
    assert copy._size == sum(len(key) + len(value) + 200 for key, value in model.items())


def test_a_clear_leaves_what_is_newer():
    copy = Copy()
    for item in (SnapshotStart(), change("put", "a", b"1", 5), SnapshotEnd("T")):
        copy.take(item)
    copy.take(change("clear", "", modified=4))
    assert dict(copy) == {"a": b"1"}
    copy.take(change("clear", "", modified=5))
    assert dict(copy) == {}


# --- of a node ------------------------------------------------------------------------------------


def write(url):
    with Client(url) as client:
        client.put("a", b"root")
        client.put("a.b", b"2")
        client.put("ab", b"not below")
        client.put("a.gone", b"", ttl=0.05)
        client.put("a.c.d", b"\xff")
        client.delete("a.b")
        client.batch([Clear("a.c")])
        client.put("a.c.e", b"3")
        client.put("a.end", b"")


AFTER = {"a": b"root", "a.c.e": b"3", "a.end": b""}


def test_a_thread_keeps_it_equal_to_the_subtree(node_url):
    with Client(node_url) as client:
        client.put("a.old", b"1")
        with client.mirror("a") as mirror:
            mirror.wait_synced(10)
            assert dict(mirror) == {"a.old": b"1"}
            client.delete("a.old")
            write(node_url)
            mirror.wait_for(lambda found: found == AFTER, 10)
            assert mirror.record("a.c.e").kind == "put"
            assert mirror.record("nothing") is None
            with pytest.raises(DeadlineExceeded):
                mirror.wait_for(lambda found: "nothing" in found, 0.05)
        assert not [one for one in threading.enumerate() if one.name.startswith("nkv mirror")]


@pytest.mark.anyio
async def test_a_task_keeps_it_equal_to_the_subtree(node_url):
    async with AsyncClient(node_url) as client:
        await client.put("a.old", b"1")
        async with client.mirror("a") as mirror, client.mirror("*") as all_of_it:
            await mirror.wait_synced(10)
            await all_of_it.wait_synced(10)
            assert dict(mirror) == {"a.old": b"1"}
            await client.delete("a.old")
            await anyio.to_thread.run_sync(write, node_url)
            await mirror.wait_for(lambda found: found == AFTER, 10)
            await all_of_it.wait_for(lambda found: found == {**AFTER, "ab": b"not below"}, 10)
            with pytest.raises(DeadlineExceeded):
                await mirror.wait_for(lambda found: "nothing" in found, 0.05)


@pytest.mark.anyio
async def test_what_the_block_raises_comes_out_as_it_is(node_url):
    async with AsyncClient(node_url) as client:
        with pytest.raises(KeyError):  # noqa: PT012  # the block is what is tested
            async with client.mirror("a") as mirror:
                await mirror.wait_synced(10)
                mirror["missing"]


@pytest.mark.anyio
async def test_a_refusal_is_told_to_whoever_waits_or_reads(canned, canned_reply):
    canned.answer = lambda _: canned_reply(403, b'{"code":"forbidden"}')
    async with AsyncClient(canned.url) as client, client.mirror("a") as mirror:
        with pytest.raises(Forbidden):
            await mirror.wait_synced(10)
        with pytest.raises(Forbidden):
            mirror.get("a")
    await anyio.to_thread.run_sync(refused_in_thread, canned.url)


def refused_in_thread(url):
    with Client(url) as client, client.mirror("a") as mirror:
        with pytest.raises(Forbidden):
            mirror.wait_synced(10)
        with pytest.raises(Forbidden):
            mirror.get("a")


def test_a_node_that_is_not_there_yet_is_waited_for(closed_url):
    with Client(closed_url, timeout=0.1) as client, client.mirror("a") as mirror:
        with pytest.raises(DeadlineExceeded):
            mirror.wait_synced(0.3)
        assert not mirror.synced
        assert mirror.failure is None
        assert mirror.stale_for > 0.2
