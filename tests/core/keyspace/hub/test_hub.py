"""What watchers may rely on."""

import gc
import logging

import anyio
import pytest
from anyio.lowlevel import checkpoint

from nkv_core.contracts.watch import Changed, Cursor, Ended, Gap, SnapshotEnd, WatchSettings
from nkv_core.errors import (
    InvalidPattern,
    InvalidToken,
    NotSupportedHere,
    Overloaded,
    Stopping,
    StorageFailed,
)
from nkv_core.keys import Pattern
from nkv_core.keyspace.hub import WatchHub
from nkv_core.records import Token, new_history


@pytest.fixture
def keyspace(fake_keyspace):
    return fake_keyspace()


@pytest.fixture
def hub(keyspace):
    return WatchHub(keyspace, WatchSettings(ring_bytes=100_000))


def keys(items):
    return [item.change.key for item in items]


# --- every and latest -----------------------------------------------------------------------------


def test_every_change_of_the_watched_keys_is_told_in_order_with_its_token(keyspace, hub):
    watcher = hub.watch("a.*")
    keyspace.put("a.1", b"x")
    keyspace.put("b.1")
    keyspace.put("a.1", b"y")
    keyspace.delete("a.1", cause="expire")
    first, second, third = watcher.take()
    assert [item.change.value for item in (first, second)] == [b"x", b"y"]
    assert (third.change.kind, third.change.cause) == ("delete", "expire")
    assert third.token == keyspace.token == watcher.token
    assert watcher.take() == []


def test_latest_tells_the_last_change_of_each_key(keyspace, hub):
    watcher = hub.watch("*", mode="latest")
    keyspace.put("a", b"1")
    keyspace.put("b", b"1")
    keyspace.put("a", b"2")
    keyspace.delete("b")
    keyspace.put("c", b"1")
    assert [(i.change.key, i.change.kind) for i in watcher.take()] == [
        ("a", "put"),
        ("b", "delete"),
        ("c", "put"),
    ]


def test_latest_keeps_one_place_for_a_key_however_often_it_changes(keyspace, hub):
    watcher = hub.watch("*", mode="latest", pending=2)
    for number in range(90):
        keyspace.put("ab"[number % 2], b"%d" % number)
    assert watcher.info().state == "live"
    assert [item.change.value for item in watcher.take()] == [b"88", b"89"]


def test_tokens_of_latest_lose_no_last_value_when_resumed_midway(keyspace, hub):
    watcher = hub.watch("*", mode="latest")
    for key in ("a", "b", "a", "c", "b"):
        keyspace.put(key)
    (first,) = watcher.take(1)
    assert first.change.key == "a"
    again = hub.watch("*", mode="latest", since=first.token)
    assert keys(again.take()) == keys(watcher.take()) == ["c", "b"]


def test_a_clear_reaches_all_whose_keys_it_may_concern_and_nobody_else(keyspace, hub):
    concerned = [("a", True), ("a.b.c", False), ("a.*", False), ("*", False), ("*.b", False)]
    others = [("b", True), ("a", False), ("b.*", False), ("b.*.a", False)]
    told = [hub.watch(text, subtree=subtree) for text, subtree in concerned]
    spared = [hub.watch(text, subtree=subtree) for text, subtree in others]
    keyspace.put("x")
    for watcher in told:
        watcher.take()
    keyspace.clear("a.b")
    assert [[i.change.kind for i in w.take()] for w in told] == [["clear"]] * len(told)
    assert [w.take() for w in spared] == [[]] * len(spared)


def test_one_commit_wakes_a_watcher_once_and_only_after_it_took_everything(keyspace, hub):
    wakes = []
    watcher = hub.watch("*", wake=lambda: wakes.append(1))
    keyspace.auto = False
    for key in "abc":
        keyspace.put(key)
    keyspace.tell()
    keyspace.put("d")
    keyspace.tell()
    assert len(wakes) == 1
    assert keys(watcher.take(3)) == ["a", "b", "c"]
    assert keys(watcher.take(3)) == ["d"]
    assert watcher.take() == []
    keyspace.put("e")
    keyspace.tell()
    assert len(wakes) == 2


def test_watching_a_missing_key_is_allowed_and_bad_patterns_are_refused(hub):
    assert hub.watch("missing").take() == []
    with pytest.raises(InvalidPattern):
        hub.watch("")


def test_a_change_is_encoded_once_for_all(keyspace, hub):
    watchers = [hub.watch("*") for _ in range(3)]
    keyspace.put("a", b"x")
    calls = []

    def encode(item):
        calls.append(item)
        return item.change.value * 2

    assert [w.take()[0].form("twice", encode) for w in watchers] == [b"xx"] * 3
    assert len(calls) == 1


# --- falling behind -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["every", "latest"])
def test_one_that_falls_behind_reads_on_from_memory_without_a_hole(keyspace, hub, follower, mode):
    told = follower(keyspace, Pattern("a.*"), mode)
    told.begin(snapshot=False)
    watcher = hub.watch("a.*", mode=mode, pending=3)
    for number in range(40):
        keyspace.put(f"a.{number % 10}", b"%d" % number)
        keyspace.put("b")
    info = watcher.info()
    assert (info.state, info.behind) == ("behind", 80)
    told.drain(watcher)
    assert watcher.info().state == "live"
    assert watcher.info().behind == 0
    keyspace.put("a.new")
    told.drain(watcher)
    assert len(told.changes) == (41 if mode == "every" else 11)


def test_one_that_is_behind_costs_a_write_nothing(keyspace, hub):
    watcher = hub.watch("*", pending=3)
    for _ in range(5):
        keyspace.put("a")
    assert hub._feed.routes.matching("a") == []
    for _ in range(100):
        keyspace.put("a")
    assert watcher.pending is None


@pytest.mark.anyio
async def test_behind_the_memory_the_log_is_read(keyspace, follower, running):
    told = follower(keyspace, Pattern("*"))
    told.begin(snapshot=False)
    with anyio.fail_after(60):
        async with running(keyspace, ring_bytes=1, page_bytes=2000) as hub:
            watcher = hub.watch("*", pending=2)
            for number in range(200):
                keyspace.put(f"k.{number}")
            while len(told.changes) < 200:
                for item in await watcher.read():
                    told.item(item)
            assert told.gaps == []
            assert await_none(watcher)


def await_none(watcher):
    return watcher.take() == []


@pytest.mark.anyio
async def test_behind_the_log_too_a_gap_names_what_is_lost_and_it_goes_on(fake_keyspace, running):
    keyspace = fake_keyspace(keep=5)
    with anyio.fail_after(60):
        async with running(keyspace, ring_bytes=1) as hub:
            watcher = hub.watch("*", pending=2)
            for number in range(20):
                keyspace.put(f"k.{number}")
            gap, *rest = await watcher.read()
            assert isinstance(gap, Gap)
            assert not gap.resync
            assert gap.after.revision < keyspace.log[0].revision
            assert gap.token == gap.upto
            while len(rest) < 5:
                rest += await watcher.read()
            assert keys(rest) == [f"k.{number}" for number in range(15, 20)]


@pytest.mark.anyio
async def test_where_memory_reaches_back_further_than_the_log_nothing_is_lost(
    fake_keyspace, running
):
    keyspace = fake_keyspace(keep=1)
    with anyio.fail_after(60):
        async with running(keyspace, ring_bytes=600 * 10) as hub:
            watcher = hub.watch("*", pending=2)
            for number in range(20):
                keyspace.put(f"k.{number}")
            gap, *rest = await watcher.read()
            assert gap.upto.revision < keyspace.forgotten
            while watcher.token != hub.token:
                rest += await watcher.read()
            assert len(rest) >= 8
            assert keys(rest) == [f"k.{number}" for number in range(20 - len(rest), 20)]


@pytest.mark.anyio
async def test_a_keyspace_without_a_log_tells_a_gap(keyspace, running):
    with anyio.fail_after(60):
        async with running(keyspace, ring_bytes=1) as hub:
            keyspace.error = NotSupportedHere("It keeps no log.")
            watcher = hub.watch("*", pending=1)
            for _ in range(9):
                keyspace.put("a")
            gap, *rest = await watcher.read()
            assert isinstance(gap, Gap)
            while not rest:
                rest += await watcher.read()
            assert rest[0].change.revision == keyspace.revision


def test_lag_is_shown_with_those_farthest_behind_first(fake_keyspace):
    keyspace = fake_keyspace()
    now = [100.0]
    hub = WatchHub(keyspace, clock=lambda: now[0])
    level = hub.watch("a", label="level")
    late = hub.watch("a", label="late")
    quiet = hub.watch("b", label="quiet")
    keyspace.put("a", b"x" * 1000)
    level.take()
    now[0] += 5
    keyspace.put("a", b"x" * 1000)
    now[0] += 5
    infos = hub.watchers()
    assert [info.label for info in infos] == ["late", "level", "quiet"]
    assert [info.behind for info in infos] == [2, 1, 0]
    assert [info.age for info in infos] == [10.0, 5.0, 0.0]
    assert infos[0].bytes > infos[1].bytes > 1000
    assert [info.label for info in hub.watchers(1)] == ["late"]
    late.take(1)
    assert late.info().age == 5.0
    assert late.info().token.revision < hub.token.revision == quiet.info().token.revision
    by_name = {each.name: each.samples for each in hub.measurements()}
    assert by_name["nkv_watchers"] == [({"mode": "every", "state": "live"}, 3)]
    assert by_name["nkv_watch_oldest_seconds"] == [({}, 5.0)]


# --- tokens ---------------------------------------------------------------------------------------


def test_resuming_tells_what_came_behind_the_token(keyspace, hub):
    keyspace.put("a")
    token = keyspace.token
    for key in "bcd":
        keyspace.put(key)
    watcher = hub.watch("*", since=Token.parse(str(token)))
    assert keys(watcher.take()) == ["b", "c", "d"]
    assert watcher.info().state == "live"


@pytest.mark.anyio
async def test_one_that_resumes_is_woken_without_taking_first(keyspace, running):
    token = keyspace.token
    woken = anyio.Event()
    with anyio.fail_after(60):
        async with running(keyspace) as hub:
            keyspace.put("a")
            watcher = hub.watch("*", since=token, wake=woken.set)
            await woken.wait()
            assert keys(watcher.take()) == ["a"]


@pytest.mark.anyio
async def test_many_that_resume_together_share_the_pages_of_the_log(keyspace, running):
    token = keyspace.token
    for number in range(100):
        keyspace.put(f"k.{number}")
    with anyio.fail_after(60):
        async with running(keyspace, readers=1) as hub:
            watchers = [hub.watch("*", since=token) for _ in range(50)]
            for watcher in watchers:
                items = []
                while len(items) < 100:
                    items += await watcher.read()
                assert len(items) == 100
            assert keyspace.reads < 5


def test_a_token_ahead_of_the_history_is_refused(keyspace, hub):
    keyspace.put("a")
    ahead = Token(keyspace.history, keyspace.revision + 1)
    with pytest.raises(InvalidToken):
        hub.watch("*", since=ahead)


@pytest.mark.anyio
@pytest.mark.parametrize("old", ["history", "log"])
async def test_a_token_that_cannot_be_resumed_tells_a_gap_then_a_snapshot(
    fake_keyspace, running, old
):
    keyspace = fake_keyspace(keep=2)
    token = Token(new_history(), 99) if old == "history" else keyspace.token
    for number in range(20):
        keyspace.put(f"k.{number % 3}")
    with anyio.fail_after(60):
        async with running(keyspace, ring_bytes=1) as hub:
            watcher = hub.watch("*", since=token)
            items = []
            while not items or not isinstance(items[-1], SnapshotEnd):
                items += await watcher.read()
            assert items[0] == Gap(token, keyspace.token, resync=True)
            assert items[0].token is None
            assert len(items) == 5
            # From here on it is one that follows, and goes on behind a gap.
            keyspace.put("k.0")
            assert len(await watcher.read()) == 1


@pytest.mark.anyio
async def test_who_wants_no_snapshot_goes_on_behind_the_gap(fake_keyspace, running):
    keyspace = fake_keyspace()
    token = Token(new_history(), 3)
    keyspace.put("a")
    with anyio.fail_after(60):
        async with running(keyspace) as hub:
            watcher = hub.watch("*", since=token, resync=False)
            assert await watcher.read() == [Gap(token, keyspace.token, resync=False)]
            keyspace.put("b")
            assert keys(await watcher.read()) == ["b"]
            assert keyspace.scans == 0


# --- another keyspace -----------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_keyspace_of_the_same_history_is_gone_on_with_without_a_gap(
    fake_keyspace, running, follower
):
    old = fake_keyspace()
    new = fake_keyspace(history=old.history)
    for keyspace in (old, new):
        for key in "abc":
            keyspace.put(key)
    told = follower(new, Pattern("*"))
    told.begin(snapshot=False)
    with anyio.fail_after(60):
        async with running(old) as hub:
            idle, pending = hub.watch("*"), hub.watch("*")
            for keyspace in (old, new):
                keyspace.put("d", b"1")
            assert keys(idle.take()) == ["d"]
            for key in "efg":
                new.put(key)  # the last of which the old one never told
            hub.attach(new)
            new.put("h")
            old.put("z")
            items = []
            while len(items) < 4:
                items += await idle.read()
            assert keys(items) == ["e", "f", "g", "h"]
            while len(told.changes) < 5:
                for item in await pending.read():
                    told.item(item)


@pytest.mark.anyio
async def test_a_keyspace_of_another_history_tells_all_a_gap_and_a_snapshot(
    fake_keyspace, running, follower
):
    old, new = fake_keyspace(), fake_keyspace()
    old.put("a")
    new.put("b")
    with anyio.fail_after(60):
        async with running(old) as hub:
            watchers = [hub.watch("*", mode=mode) for mode in ("every", "latest", "every")]
            stubborn = hub.watch("*", resync=False)
            old.put("c")
            watchers[0].take()
            hub.attach(new)
            for watcher in watchers:
                told = follower(new, Pattern("*"))
                told.begin(snapshot=False)
                while not told.complete:
                    for item in await watcher.read():
                        told.item(item)
                told.check_equal()
                assert told.gaps[0][0].history == old.history
            (gap,) = await stubborn.read()
            assert gap.upto == new.token
            new.put("d")
            assert keys(await stubborn.read()) == ["d"]


@pytest.mark.anyio
async def test_a_history_that_changes_in_place_is_noticed(keyspace, running):
    keyspace.put("a")
    with anyio.fail_after(60):
        async with running(keyspace) as hub:
            watcher = hub.watch("*")
            keyspace.history = new_history()
            keyspace.put("b")
            items = []
            while not items or not isinstance(items[-1], SnapshotEnd):
                items += await watcher.read()
            assert isinstance(items[0], Gap)
            assert [item.record.key for item in items[1:-1]] == ["a", "b"]


# --- wake-ups, closing, ending --------------------------------------------------------------------


def test_a_wake_up_that_raises_harms_nobody_else(keyspace, hub, caplog):
    wakes = []
    hub.watch("*", wake=lambda: 1 / 0, label="the culprit")
    hub.watch("*", wake=lambda: wakes.append(1))
    with caplog.at_level(logging.ERROR):
        keyspace.put("a")
    assert wakes == [1]
    assert "the culprit" in caplog.text


def test_a_wake_up_may_close_watchers_take_and_watch(keyspace, hub):
    wakes = []

    def close_all():
        wakes.append(1)
        taken.extend(second.take())
        for watcher in (first, second, third):
            watcher.close()
        hub.watch("*")

    taken = []
    first = hub.watch("*", wake=close_all)
    second = hub.watch("*", wake=close_all)
    third = hub.watch("*", wake=close_all)
    keyspace.put("a")
    assert wakes == [1]
    assert keys(taken) == ["a"]
    assert third.closed
    assert third.take() == []
    assert len(hub.watchers()) == 1


@pytest.mark.anyio
async def test_a_wake_up_that_takes_all_is_woken_again(keyspace, running):
    seen = []
    with anyio.fail_after(60):
        async with running(keyspace, ring_bytes=1, page_bytes=1) as hub:
            token = hub.token
            for number in range(50):
                keyspace.put(f"k.{number}")

            def wake():
                while items := watcher.take(3):
                    seen.extend(keys(items))

            watcher = hub.watch("*", since=token, wake=wake)
            while len(seen) < 50:
                await checkpoint()
            assert seen == [f"k.{number}" for number in range(50)]


@pytest.mark.anyio
async def test_a_closed_hub_ends_all_watchers_with_their_tokens(keyspace, running, follower):
    with anyio.fail_after(60):
        async with running(keyspace, ring_bytes=5000) as hub:
            keyspace.put("a")
            idle = hub.watch("b")
            pending = hub.watch("*")
            behind = hub.watch("*", pending=1)
            snapshot = hub.watch("*", snapshot=True)
            place = hub.token
            for _ in range(3):
                keyspace.put("a")
        assert idle.take()[0].token == keyspace.token
        *changes, end = pending.take()
        assert keys(changes) == ["a"] * 3
        assert end == Ended(keyspace.token, "stopping", end.detail)
        assert not behind.closed
        assert behind.take()[0].token == place
        assert [item.token for item in snapshot.take()][-1] is None
        for watcher in (idle, pending, behind, snapshot):
            assert watcher.closed
            assert watcher.take() == await watcher.read() == []
        assert hub.watchers() == []
        with pytest.raises(Stopping):
            hub.watch("*")
        keyspace.put("a")  # told to nobody


@pytest.mark.anyio
async def test_iterating_ends_with_the_watcher(keyspace, running):
    seen = []

    async def follow():
        seen.extend([item async for item in watcher])

    with anyio.fail_after(60):
        async with running(keyspace) as hub, anyio.create_task_group() as tasks:
            watcher = hub.watch("*")
            tasks.start_soon(follow)
            await anyio.wait_all_tasks_blocked()
            keyspace.put("a")
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(RuntimeError, match="Two tasks"):
                await watcher.next()
            hub.close()
    changed, ended = seen
    assert isinstance(changed, Changed)
    assert isinstance(ended, Ended)


@pytest.mark.anyio
async def test_reading_may_be_cancelled_and_loses_nothing(keyspace, running):
    with anyio.fail_after(60):
        async with running(keyspace) as hub:
            watcher = hub.watch("*")
            with anyio.move_on_after(0):
                await watcher.read()
            keyspace.put("a")
            assert keys(await watcher.read()) == ["a"]


@pytest.mark.anyio
async def test_closing_ends_a_reader(keyspace, running):
    async def close():
        watcher.close()

    with anyio.fail_after(60):
        async with running(keyspace) as hub, anyio.create_task_group() as tasks:
            watcher = hub.watch("*")
            tasks.start_soon(close)
            assert await watcher.next() is None


def test_a_closed_watcher_is_freed_without_the_garbage_collector(keyspace, hub):
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(100):
            watcher = hub.watch("some.key", wake=lambda: None)
            watcher.close()
        del watcher
        assert len(gc.get_objects()) - before < 20
    finally:
        gc.enable()


def test_watchers_are_bounded(keyspace):
    hub = WatchHub(keyspace, WatchSettings(max_watchers=2))
    hub.watch("*").close()
    hub.watch("*")
    hub.watch("*")
    with pytest.raises(Overloaded):
        hub.watch("*")


# --- a store that fails ---------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_failure_to_read_is_tried_again(keyspace, running, caplog):
    with anyio.fail_after(60):
        async with running(keyspace) as hub:
            keyspace.error = StorageFailed("The disk is on holiday.")
            watcher = hub.watch("*", snapshot=True)
            while not caplog.text:
                await checkpoint()
            keyspace.error = None
            assert await watcher.read() == [SnapshotEnd(keyspace.token)]
    assert "holiday" in caplog.text


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("error", "code"),
    [(StorageFailed(), "storage_failed"), (NotSupportedHere(), "not_supported_here")],
)
async def test_a_failure_that_lasts_ends_the_watcher(keyspace, running, error, code):
    keyspace.error = error
    with anyio.fail_after(60):
        async with running(keyspace, give_up=0.0) as hub:
            (end,) = await hub.watch("*", snapshot=True).read()
            assert (end.code, end.token) == (code, None)
            assert hub.watchers() == []


@pytest.mark.anyio
async def test_a_fault_ends_one_watcher_and_not_the_hub(keyspace, running, caplog):
    with anyio.fail_after(60):
        async with running(keyspace) as hub:
            keyspace.error = ZeroDivisionError()
            (end,) = await hub.watch("*", snapshot=True).read()
            assert end.code == "internal"
            keyspace.error = None
            assert await hub.watch("*", snapshot=True).read() == [SnapshotEnd(keyspace.token)]


@pytest.mark.anyio
async def test_a_store_that_does_not_answer_is_given_up(keyspace, running, monkeypatch):
    async def hang(*_args, **_kwargs):
        await anyio.sleep_forever()

    monkeypatch.setattr(keyspace, "scan", hang)
    with anyio.fail_after(60):
        async with running(keyspace, read_deadline=0.01, give_up=0.0) as hub:
            (end,) = await hub.watch("*", snapshot=True).read()
            assert end.code == "storage_failed"


# --- durable cursors ------------------------------------------------------------------------------


class DictState:
    def __init__(self):
        self.map = {}
        self.writes = 0

    async def get(self, key):
        return self.map.get(key)

    async def put(self, key, value):
        self.writes += 1
        self.map[key] = value

    async def delete(self, key):
        self.map.pop(key, None)


@pytest.mark.anyio
async def test_a_cursor_goes_on_where_it_was_saved():
    state = DictState()
    start, later = Token(new_history(), 5), Token(new_history(), 9)
    cursor = Cursor(state, "one")
    assert await cursor.load() is None
    assert await cursor.begin(start) == start
    assert await Cursor(state, "one").begin(later) == start
    await cursor.save(later)
    await cursor.save(later)
    await cursor.save(None)
    assert state.writes == 2
    assert await Cursor(state, "one").load() == later == cursor.saved
    assert await Cursor(state, "other").load() is None
    await cursor.forget()
    assert await Cursor(state, "one").load() is None


@pytest.mark.anyio
@pytest.mark.parametrize("stored", [b"rubbish", b"\xff", b"2.0123456789abcdef.1"])
async def test_a_damaged_cursor_is_refused_and_not_taken_for_none(stored):
    state = DictState()
    state.map["cursor.one"] = stored
    with pytest.raises(InvalidToken, match=r"cursor\.one"):
        await Cursor(state, "one").load()
