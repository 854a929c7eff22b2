"""Group commit, word for word: what is queued, what is seen, what fails together."""

import logging
import threading

import anyio
import pytest

from nkv_core.contracts.keyspace import Delete, Options, Presence, Put
from nkv_core.errors import (
    ConditionFailed,
    DeadlineExceeded,
    OutcomeUnknown,
    Overloaded,
    Stopping,
    StorageFailed,
    StorageFull,
    ValueTooLarge,
)

pytestmark = pytest.mark.anyio

SHORT = Options(deadline=0.03)


@pytest.fixture
def threaded(kept_storage):
    """In memory, written in a thread."""
    return kept_storage(writes="thread")


class Calls:
    """Calls that run beside the test, and what came of them, in the order in which they ended."""

    def __init__(self, tasks):
        self.tasks = tasks
        self.ended = []
        self.outcomes = {}

    async def start(self, name, call, *args, **options):
        async def run():
            try:
                self.outcomes[name] = await call(*args, **options)
            except Exception as error:  # noqa: BLE001  # the test looks at it
                self.outcomes[name] = error
            self.ended.append(name)

        self.tasks.start_soon(run)
        await anyio.wait_all_tasks_blocked()

    async def end(self, *names):
        with anyio.fail_after(60):
            while not set(names) <= set(self.ended):
                await anyio.sleep(0.001)


@pytest.fixture
async def calls():
    async with anyio.create_task_group() as tasks:
        yield Calls(tasks)
        tasks.cancel_scope.cancel()


async def arrived(held):
    with anyio.fail_after(60):
        while not held.entered.is_set():
            await anyio.sleep(0.001)


async def test_what_arrives_during_a_commit_forms_one_next_group(threaded, open_keyspace, calls):
    async with open_keyspace(threaded) as keyspace:
        before = threaded.written
        with threaded.hold() as held:
            await calls.start("first", keyspace.put, "first", b"v")
            await arrived(held)
            for number in range(20):
                await calls.start(number, keyspace.put, f"k.{number}", b"v")
            assert calls.ended == []
            held.let_go.set()
            await calls.end("first", *range(20))
        assert threaded.written == before + 2
        revisions = [calls.outcomes[name].revision for name in ("first", *range(20))]
        assert revisions == list(range(1, 22))


async def test_a_lone_writer_waits_for_nobody(threaded, open_keyspace):
    async with open_keyspace(threaded) as keyspace:
        for number in range(5):
            before = threaded.written
            with anyio.fail_after(60):
                await keyspace.put(f"k.{number}", b"v")
            assert threaded.written == before + 1


async def test_writers_that_were_woken_together_write_together(threaded, open_keyspace):
    async with open_keyspace(threaded) as keyspace:
        before = threaded.written

        async def write(name):
            for number in range(20):
                await keyspace.put(f"{name}.{number}", b"v")

        async with anyio.create_task_group() as tasks:
            for name in range(16):
                tasks.start_soon(write, name)
        # One group for each round, and a few more until all are in step.
        assert threaded.written - before <= 30


async def test_nobody_sees_what_is_not_committed(threaded, open_keyspace, calls):
    told = []
    async with open_keyspace(threaded) as keyspace:
        keyspace.tail(told.extend)
        start = keyspace.token
        with threaded.hold() as held:
            await calls.start("put", keyspace.put, "a", b"v")
            await arrived(held)
            assert await keyspace.get("a") is None
            assert (await keyspace.scan()).records == []
            assert await keyspace.count() == 0
            assert (await keyspace.changes(start)).changes == []
            assert keyspace.token == start
            assert told == []
            held.let_go.set()
            await calls.end("put")
        assert [change.key for change in told] == ["a"]
        assert await keyspace.get("a") == calls.outcomes["put"].record


async def test_a_writer_goes_on_only_once_the_tails_were_called(storage, open_keyspace):
    told = []
    async with open_keyspace(storage) as keyspace:
        keyspace.tail(told.extend)

        async def write(name):
            for number in range(10):
                written = await keyspace.put(f"{name}.{number}", b"v")
                assert keyspace.token.revision >= written.revision
                assert any(change.revision == written.revision for change in told)

        async with anyio.create_task_group() as tasks:
            for name in "abcdefgh":
                tasks.start_soon(write, name)
    assert [change.revision for change in told] == list(range(1, 81))


async def test_taking_no_foreign_records_waits_for_what_came_before(threaded, open_keyspace, calls):
    async with open_keyspace(threaded) as keyspace:
        with threaded.hold() as held:
            await calls.start("put", keyspace.put, "a", b"v")
            await arrived(held)
            await calls.start("nothing", keyspace.apply_foreign, ())
            assert calls.ended == []
            held.let_go.set()
            await calls.end("put", "nothing")
        assert calls.ended == ["put", "nothing"]


async def test_writes_are_checked_against_what_is_queued_before_them(
    threaded, open_keyspace, calls
):
    async with open_keyspace(threaded) as keyspace:
        with threaded.hold() as held:
            await calls.start("busy", keyspace.put, "busy", b"v")
            await arrived(held)
            await calls.start("one", keyspace.put, "a", b"1", expect=Presence.ABSENT)
            await calls.start("two", keyspace.put, "a", b"2", expect=Presence.ABSENT)
            await calls.start("three", keyspace.delete, "a", expect=Presence.PRESENT)
            await calls.start("four", keyspace.put, "a", b"4", expect=Presence.ABSENT)
            # A reply that depends on a write which is not committed waits for it.
            assert calls.ended == []
            held.let_go.set()
            await calls.end("one", "two", "three", "four")
        assert isinstance(calls.outcomes["two"], ConditionFailed)
        assert calls.outcomes["three"].previous == calls.outcomes["one"].record
        record = await keyspace.get("a")
        assert record == calls.outcomes["four"].record


async def test_a_failed_group_takes_along_all_that_is_queued_behind_it(
    threaded, open_keyspace, calls
):
    told = []
    async with open_keyspace(threaded) as keyspace:
        keyspace.tail(told.extend)
        kept = await keyspace.put("kept", b"v")
        with threaded.hold() as held:
            await calls.start("first", keyspace.put, "first", b"v")
            await arrived(held)
            threaded.fail_next(StorageFull("full, for a test"))
            await calls.start("same", keyspace.put, "first", b"2", expect=Presence.ABSENT)
            await calls.start("behind", keyspace.delete, "kept")
            await calls.start("state", keyspace.state("plugin").put, "k", b"v")
            held.let_go.set()
            await calls.end("first", "same", "behind", "state")
        errors = list(calls.outcomes.values())
        assert all(type(error) is StorageFull for error in errors)
        assert len({id(error) for error in errors}) == 4  # each writer raises one of its own
        assert await keyspace.get("first") is None
        assert await keyspace.get("kept") == kept.record
        assert await keyspace.state("plugin").get("k") is None
        assert [change.key for change in told] == ["kept"]
        again = await keyspace.put("first", b"v")
        assert again.revision > kept.revision + 1  # what was given to the failed is not reused
        assert [change.key for change in told] == ["kept", "first"]
        page = await keyspace.changes(keyspace.token.__class__(keyspace.history, kept.revision))
        assert [change.revision for change in page.changes] == [again.revision]


async def test_revisions_stay_in_order_over_failures_and_restarts(storage, open_keyspace):
    revisions = []
    for _ in range(3):
        async with open_keyspace(storage) as keyspace:
            revisions.append((await keyspace.put("a", b"v")).revision)
            storage.fail_next()
            with pytest.raises(StorageFailed):
                await keyspace.put("a", b"v")
            revisions.append((await keyspace.put("a", b"v")).revision)
            assert keyspace.token.revision == revisions[-1]
    assert revisions == sorted(set(revisions))


async def test_a_storage_that_breaks_its_contract_leaves_the_outcome_unknown(
    storage, open_keyspace, monkeypatch
):
    async with open_keyspace(storage) as keyspace:

        def broken(_):
            raise ZeroDivisionError("broken, for a test")

        monkeypatch.setattr(storage, "apply", broken)
        with pytest.raises(OutcomeUnknown, match="broken, for a test"):
            await keyspace.put("a", b"v")
        monkeypatch.undo()
        await keyspace.put("a", b"v")


async def test_one_write_that_cannot_be_planned_spares_the_others(threaded, open_keyspace, calls):
    def poison(draft):
        draft.next_revision()
        draft.set_row("state", b"poison\0k", b"v")
        raise ZeroDivisionError

    async with open_keyspace(threaded) as keyspace:
        with threaded.hold() as held:
            await calls.start("busy", keyspace.put, "busy", b"v")
            await arrived(held)
            await calls.start("before", keyspace.put, "a", b"v")
            await calls.start("poison", keyspace.write, poison, 1)
            await calls.start("after", keyspace.put, "b", b"v")
            held.let_go.set()
            await calls.end("before", "poison", "after")
        assert isinstance(calls.outcomes["poison"], ZeroDivisionError)
        assert calls.outcomes["before"].revision == 2
        assert calls.outcomes["after"].revision == 3
        assert await keyspace.state("poison").get("k") is None


async def test_a_full_queue_refuses_and_takes_again_once_there_is_room(
    threaded, open_keyspace, calls
):
    async with open_keyspace(threaded, queue_bytes=10_000) as keyspace:
        with threaded.hold() as held:
            await calls.start("busy", keyspace.put, "busy", bytes(4000))
            await arrived(held)
            await calls.start("queued", keyspace.put, "queued", bytes(4000))
            with pytest.raises(Overloaded):
                await keyspace.put("refused", bytes(4000))
            with pytest.raises(ValueTooLarge):
                await keyspace.batch([Put("a", bytes(6000)), Put("b", bytes(6000))])
            held.let_go.set()
            await calls.end("busy", "queued")
        assert keyspace.status()["writes"]["waiting_bytes"] == 0
        await keyspace.put("refused", bytes(4000))
        assert await keyspace.count() == 3


async def test_what_is_overtaken_within_a_group_is_not_written(storage, open_keyspace):
    async with open_keyspace(storage) as keyspace:
        await keyspace.put("a", b"1")
        await keyspace.batch([Delete("a"), Put("a", b"2"), Put("b", b"1"), Delete("b")])
        assert [key for key, _ in storage.scan("tombstones", limit=9)] == [b"kb"]
        assert [key for key, _ in storage.scan("records", limit=9)] == [b"a"]


# --- deadlines and cancelling ---------------------------------------------------------------------


async def test_a_write_past_its_deadline_fails_and_may_still_be_made(
    threaded, open_keyspace, calls
):
    async with open_keyspace(threaded, run=True) as keyspace:
        with threaded.hold() as held:
            await calls.start("under way", keyspace.put, "under.way", b"v", options=SHORT)
            await arrived(held)
            await calls.start("patient", keyspace.put, "patient", b"v")
            await calls.start("queued", keyspace.put, "queued", b"v", options=SHORT)
            await calls.end("under way", "queued")
            assert isinstance(calls.outcomes["under way"], DeadlineExceeded)
            assert isinstance(calls.outcomes["queued"], DeadlineExceeded)
            assert "patient" not in calls.ended
            held.let_go.set()
            await calls.end("patient")
        assert await keyspace.get("under.way") is not None
        assert await keyspace.get("queued") is None  # was never begun, so never is
        assert keyspace.status()["writes"]["overdue"] == 2


async def test_the_deadline_of_the_settings_holds_for_those_who_name_none(
    threaded, open_keyspace, calls
):
    async with open_keyspace(threaded, run=True, write_deadline=0.03) as keyspace:
        with threaded.hold() as held:
            await calls.start("put", keyspace.put, "a", b"v")
            await calls.end("put")
            assert isinstance(calls.outcomes["put"], DeadlineExceeded)
            held.let_go.set()


async def test_a_cancelled_write_that_was_not_begun_never_is(threaded, open_keyspace, calls):
    async with open_keyspace(threaded) as keyspace:
        with threaded.hold() as held:
            await calls.start("busy", keyspace.put, "busy", b"v")
            await arrived(held)
            with anyio.move_on_after(0.01) as scope:
                await keyspace.put("cancelled", b"v")
            assert scope.cancelled_caught
            held.let_go.set()
            await calls.end("busy")
        await keyspace.put("last", b"v")
        assert await keyspace.get("cancelled") is None
        assert keyspace.status()["writes"]["waiting_bytes"] == 0


async def test_a_reader_in_a_thread_has_a_deadline(kept_storage, open_keyspace):
    storage = kept_storage(reads="thread", writes="thread")
    go = threading.Event()

    def stuck(*_, **__):
        go.wait(5)

    async with open_keyspace(storage) as keyspace:
        inside, storage.inside = storage.inside, type("Stuck", (), {"get": stuck, "scan": stuck})()
        try:
            with pytest.raises(DeadlineExceeded):
                await keyspace.get("a", SHORT)
            with pytest.raises(DeadlineExceeded):
                await keyspace.scan(options=SHORT)
        finally:
            storage.inside = inside
            go.set()


# --- the end --------------------------------------------------------------------------------------


async def test_closing_finishes_what_was_accepted_and_refuses_the_rest(
    threaded, open_keyspace, calls
):
    async with open_keyspace(threaded) as keyspace:
        with threaded.hold() as held:
            await calls.start("busy", keyspace.put, "busy", b"v")
            await arrived(held)
            await calls.start("queued", keyspace.put, "queued", b"v")
            await calls.start("close", keyspace.aclose)
            with pytest.raises(Stopping):
                await keyspace.put("late", b"v")
            held.let_go.set()
            await calls.end("busy", "queued", "close")
        assert not threaded.opened
        for call in (keyspace.get("busy"), keyspace.scan(), keyspace.count(), keyspace.delete("k")):
            with pytest.raises(Stopping):
                await call
        await keyspace.aclose()
    async with open_keyspace(threaded) as keyspace:
        assert [record.key for record in (await keyspace.scan()).records] == ["busy", "queued"]


async def test_closing_does_not_wait_for_ever(threaded, open_keyspace, calls, caplog):
    async with open_keyspace(threaded, write_deadline=0.05) as keyspace:
        with threaded.hold() as held:
            await calls.start("busy", keyspace.put, "busy", b"v")
            await arrived(held)
            with anyio.fail_after(60), caplog.at_level(logging.ERROR):
                await keyspace.aclose()
            assert "has not come back" in caplog.text
            held.let_go.set()


async def test_a_tail_that_fails_harms_nobody(storage, open_keyspace, caplog):
    def fail(_):
        raise RuntimeError("a tail that fails, for a test")

    told = []
    async with open_keyspace(storage) as keyspace:
        keyspace.tail(fail)
        keyspace.tail(told.extend)
        written = await keyspace.put("a", b"1")
        assert [change.revision for change in told] == [written.revision]
    assert "a tail that fails, for a test" in caplog.text


async def test_it_counts_what_it_does(storage, open_keyspace):
    async with open_keyspace(storage) as keyspace:
        await keyspace.put("a", b"v")
        storage.fail_next()
        with pytest.raises(StorageFailed):
            await keyspace.put("b", b"v")
        status = keyspace.status()
        assert status["revision"] == 1
        assert status["writes"]["failed_groups"] == 1
        assert status["writes"]["changes"] == 1
        figures = {one.name: one.samples[0][1] for one in keyspace.measurements()}
        assert figures["nkv_keyspace_changes"] == 1
        assert figures["nkv_keyspace_failed_groups"] == 1
        assert figures["nkv_keyspace_log_bytes"] == status["log"]["bytes"] > 0
