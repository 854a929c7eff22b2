"""Random lives of watchers, against the log of all that happened."""

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nkv_core.keys import Pattern
from nkv_core.keyspace.routing import selector

from .lives import Client, finish

KEYS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3).map(".".join)
WATCHED = st.sampled_from(
    [
        ("*", False),
        ("a", False),
        ("a", True),
        ("a.b", True),
        ("a.*", False),
        ("a.*.c", False),
        ("*.b", False),
        ("*.b", True),
        ("b", True),
        ("c.a.b", False),
    ]
)
MODES = st.sampled_from(["every", "latest"])
WRITES = st.one_of(
    st.tuples(st.just("put"), KEYS),
    st.tuples(st.just("put"), KEYS),
    st.tuples(st.just("delete"), KEYS),
    st.tuples(st.just("touch"), KEYS),
    st.tuples(st.just("expire"), KEYS),
    st.tuples(st.just("clear"), st.sampled_from(["", "a", "a.", "a.b", "b.c", "c.", "x"])),
)
CLIENTS = st.tuples(WATCHED, MODES, st.booleans(), st.sampled_from([2, 50]))
STEPS = st.one_of(
    WRITES,
    WRITES,
    st.tuples(st.just("burst"), st.integers(1, 40)),
    st.tuples(st.just("tell"), st.none()),
    st.tuples(st.just("watch"), CLIENTS),
    st.tuples(st.just("take"), st.tuples(st.integers(0, 9), st.sampled_from([1, 2, 100]))),
    st.tuples(st.just("take"), st.tuples(st.integers(0, 9), st.sampled_from([1, 2, 100]))),
    st.tuples(st.just("drop"), st.integers(0, 9)),
    st.tuples(st.just("resume"), st.integers(0, 9)),
    st.tuples(st.just("yield"), st.integers(1, 12)),
)


def write(keyspace, kind, key, number):
    match kind:
        case "put":
            keyspace.put(key, b"%d" % number)
        case "delete":
            keyspace.delete(key)
        case "touch":
            keyspace.touch(key, 10_000 + number)
        case "expire":
            keyspace.delete(key, cause="expire")
        case "clear":
            keyspace.clear(key)


@pytest.mark.anyio
@given(
    first=st.lists(CLIENTS, min_size=1, max_size=4),
    steps=st.lists(STEPS, min_size=10, max_size=80),
    keep=st.sampled_from([5, 40, 10**6]),
    ring=st.sampled_from([1, 3000, 20_000]),
    page=st.sampled_from([1, 2000, 10**6]),
    auto=st.booleans(),
)
@settings(
    max_examples=250,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_watchers_agree_with_the_log(  # noqa: PLR0912, PLR0917  # one case for each step
    fake_keyspace, follower, running, first, steps, keep, ring, page, auto
):
    keyspace = fake_keyspace(keep=keep)
    keyspace.auto = auto
    clients = []
    number = 0
    with anyio.fail_after(60):
        async with running(keyspace, ring_bytes=ring, page_bytes=page, readers=2) as hub:
            for kind, detail in [*(("watch", client) for client in first), *steps]:
                number += 1
                match kind:
                    case "tell":
                        keyspace.tell()
                    case "burst":
                        for each in range(detail):
                            keyspace.put("ab"[each % 2] + ".b", b"%d" % each)
                    case "watch":
                        watched, mode, snapshot, pending = detail
                        matcher = selector(Pattern(watched[0]), subtree=watched[1])
                        keyspace.tell()
                        clients.append(
                            Client(
                                hub,
                                follower(keyspace, matcher, mode),
                                watched,
                                mode,
                                snapshot=snapshot,
                                pending=pending,
                            )
                        )
                    case "take":
                        which, limit = detail
                        clients[which % len(clients)].take(limit)
                    case "drop":
                        clients[detail % len(clients)].drop()
                    case "resume":
                        clients[detail % len(clients)].resume()
                    case "yield":
                        for _ in range(detail):
                            await checkpoint()
                    case _:
                        write(keyspace, kind, detail, number)
            keyspace.tell()
            for client in clients:
                client.resume()
            while sum(len(each.take()) for each in clients) or not all(map(Client.live, clients)):
                await checkpoint()
            for client in clients:
                finish(client, keyspace, hub)
