"""Bus: order, veto, isolation, budgets, quarantine, and the listeners that nobody waits for."""

import functools
import gc
import logging
import threading
import time
import weakref

import anyio
import pytest

from nkv_core.bus import FORGIVEN_AFTER, Bus, Ears, Listener, ears_of, measure
from nkv_core.contracts.owner import Owner
from nkv_core.contracts.settings import BusSettings
from nkv_core.errors import PluginInvalid, Rejected
from nkv_core.events import Connect, PluginLoaded, RequestComplete, RequestEnd, RequestStart
from nkv_core.records import Change

EVENT = Connect("127.0.0.1", 8080, "http")


class Rig:
    """A bus with listeners of `Connect`."""

    def __init__(self, budget=60, **settings):
        self.bus = Bus(BusSettings(budget=budget, **settings), self.changed)
        self.ears = []
        self.changes = 0

    def changed(self):
        self.changes += 1
        self.bus.watch(any(ear.plain and not ear.quarantined for ear in self.ears))

    def listen(self, call, owner=None, event=Connect, **place):
        (ear,) = ears_of([Listener(event, call, owner or Owner("nkv_example"), **place)])
        self.ears.append(ear)
        self.bus.watch(any(ear.plain for ear in self.ears))
        return ear

    def now(self, event=EVENT):
        return Ears(self.ears).others.get(type(event), ())

    async def ask(self, event=EVENT, veto=False):
        waiting = self.bus.tell(self.now(event), event, veto, False)
        if waiting is not None:
            await waiting

    def emit(self, event=EVENT):
        assert self.bus.tell(self.now(event), event, False, True) is None


@pytest.fixture
def rig():
    return Rig()


def overrunning(event):
    """A plain listener that takes longer than a budget of 10 ms."""
    time.sleep(0.02)


# --- order and form -------------------------------------------------------------------------------


def test_order_is_priority_then_load_order_then_order_of_registration(rig):
    heard = []
    for name, place in {
        "late": {"priority": 10, "order": 0},
        "second plugin": {"order": 2},
        "first plugin": {"order": 1},
        "first plugin again": {"order": 1},
        "early": {"priority": -1, "order": 9},
    }.items():
        rig.listen(lambda event, name=name: heard.append(name), **place)
    rig.emit()
    assert heard == ["early", "first plugin", "first plugin again", "second plugin", "late"]


@pytest.mark.anyio
async def test_plain_and_async_listeners_keep_their_order(rig):
    heard = []

    async def waits(event):
        await anyio.lowlevel.checkpoint()
        heard.append("async")

    rig.listen(lambda event: heard.append("before"), order=1)
    rig.listen(waits, order=2)
    rig.listen(lambda event: heard.append("after"), order=3)
    await rig.ask()
    assert heard == ["before", "async", "after"]


@pytest.mark.anyio
async def test_a_listener_may_take_nothing_or_have_defaults(rig):
    heard = []

    async def nothing_async():
        heard.append("nothing, async")

    def default(event=None):
        heard.append(event)

    rig.listen(lambda: heard.append("nothing"))
    rig.listen(nothing_async)
    rig.listen(default)
    rig.listen(lambda *events: heard.append(events))
    await rig.ask()
    assert heard == ["nothing", "nothing, async", EVENT, (EVENT,)]


@pytest.mark.parametrize("call", [lambda event, more: None, lambda *, event: None, None, 3])
def test_what_cannot_be_called_with_one_event_is_refused(rig, call):
    with pytest.raises(PluginInvalid, match="nkv_example"):
        rig.listen(call)


def test_objects_and_partials_are_listeners_and_known_by_name(rig):
    class Counter:
        def __call__(self, event):
            pass

    async def waits(word, event):
        pass

    assert rig.listen(Counter()).name.endswith("Counter")
    assert rig.listen(Counter()).plain
    partial = rig.listen(functools.partial(waits, "word"))
    assert partial.name.endswith("waits")
    assert not partial.plain
    assert rig.listen(print).plain


def test_events_of_requests_are_sorted_out_and_changes_left_out():
    owner = Owner("nkv_example")
    events = (RequestEnd, Connect, RequestStart, Change, RequestComplete, PluginLoaded)
    ears = Ears(ears_of([Listener(event, lambda event: None, owner) for event in events]))
    assert [len(each) for each in (ears.start, ears.complete, ears.end)] == [1, 1, 1]
    assert set(ears.others) == {Connect, PluginLoaded}
    assert ears.listened
    assert not Ears().listened


# --- isolation ------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_one_that_raises_is_logged_and_counted_and_harms_no_other(rig, caplog):
    heard = []

    def raises(event):
        raise ValueError("plain mistake")

    async def raises_later(event):
        await anyio.lowlevel.checkpoint()
        raise ValueError("async mistake")

    ears = [rig.listen(raises), rig.listen(raises_later)]
    rig.listen(heard.append)
    await rig.ask()
    assert heard == [EVENT]
    assert [ear.errors for ear in ears] == [1, 1]
    assert [ear.overruns for ear in ears] == [0, 0]
    assert "plain mistake" in caplog.text
    assert "async mistake" in caplog.text
    assert "nkv_example" in caplog.text


def test_a_flood_of_failures_does_not_flood_the_log(rig, caplog):
    def raises(event):
        raise ValueError

    ear = rig.listen(raises)
    for _ in range(3000):
        rig.emit()
    assert ear.errors == ear.calls == 3000
    assert len(caplog.records) == 10 + 3
    assert "3000 times" in caplog.records[-1].getMessage()


@pytest.mark.anyio
async def test_rejected_passes_as_a_veto_and_is_a_mistake_elsewhere(rig, caplog):
    heard = []

    def rejects(event):
        raise Rejected(429, "too_many")

    async def rejects_later(event):
        await anyio.lowlevel.checkpoint()
        raise Rejected(451, "later")

    ear = rig.listen(rejects_later, order=1)
    rig.listen(rejects, order=2)
    rig.listen(heard.append, order=3)
    with pytest.raises(Rejected) as refused:
        await rig.ask(veto=True)
    assert refused.value.status == 451
    assert heard == []
    assert ear.errors == 0
    await rig.ask(veto=False)
    assert heard == [EVENT]
    assert ear.errors == 1


def test_a_listener_may_cause_an_event_itself(rig):
    heard = []
    rig.listen(heard.append, event=PluginLoaded)
    rig.listen(lambda event: rig.emit(PluginLoaded("x", 1)))
    rig.emit()
    assert heard == [PluginLoaded("x", 1)]


def test_a_closed_owner_is_not_called_even_by_who_kept_the_listeners(rig):
    heard = []
    owner = Owner("nkv_leaving")
    rig.listen(heard.append, owner)
    kept = rig.now()
    owner.closed = True
    rig.bus.tell(kept, EVENT, False, False)
    assert heard == []


def test_a_shut_ear_holds_nothing_of_its_listener(rig):
    class Plugin:
        def hear(self, event):
            pass

        async def hear_later(self, event):
            pass

    plugin = Plugin()
    gone = weakref.ref(plugin)
    for call in (plugin.hear, plugin.hear_later):
        rig.listen(call)
    rig.emit()
    kept = rig.now()
    for ear in rig.ears:
        ear.shut()
    del plugin, call
    gc.collect()
    assert gone() is None
    rig.bus.tell(kept, EVENT, False, False)


# --- budgets --------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_an_async_listener_is_cancelled_at_its_budget(caplog):
    rig = Rig(budget=0.02)
    ended = []

    async def hangs(event):
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("cancelled")

    ear = rig.listen(hangs)
    heard = []
    rig.listen(heard.append)
    with anyio.fail_after(60):
        await rig.ask()
    assert ended == ["cancelled"]
    assert heard == [EVENT]
    assert ear.overruns == 1
    assert "it may take 0.020 s" in caplog.text
    assert ear.owner.running == 0


@pytest.mark.anyio
async def test_a_listener_may_have_scopes_and_tasks_of_its_own(rig):
    heard = []

    async def with_tasks(event):
        with anyio.move_on_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.lowlevel.checkpoint)
        heard.append(event)

    rig.listen(with_tasks)
    await rig.ask()
    assert heard == [EVENT]


@pytest.mark.anyio
async def test_cancelling_who_waits_cancels_the_listener_and_is_no_offence(rig):
    begun = anyio.Event()

    async def waits(event):
        begun.set()
        await anyio.sleep_forever()

    ear = rig.listen(waits)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(rig.ask)
        with anyio.fail_after(60):
            await begun.wait()
        assert ear.owner.running == 1
        tasks.cancel_scope.cancel()
    assert ear.overruns == 0
    assert ear.owner.running == 0


@pytest.mark.anyio
async def test_unloading_its_plugin_ends_an_async_listener_without_offence():
    rig = Rig()
    begun = anyio.Event()

    async def waits(event):
        begun.set()
        await anyio.sleep_forever()

    ear = rig.listen(waits)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(rig.ask)
        with anyio.fail_after(60):
            await begun.wait()
            idle = anyio.Event()
            ear.owner.drain(idle.set)
            assert ear.owner.cut() == 1
            await idle.wait()
    assert ear.overruns == 0


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_after_repeated_offences_a_listener_is_called_no_more(kind, caplog):
    rig = Rig(budget=0.01, quarantine_after=3)

    async def hangs(event):
        await anyio.sleep_forever()

    ear = rig.listen(overrunning if kind == "plain" else hangs)
    kept = rig.now()
    for _ in range(3):
        assert not ear.quarantined
        await rig.ask()
    assert ear.quarantined
    assert rig.changes == 1
    assert rig.now() == ()
    rig.bus.tell(kept, EVENT, False, False)  # who kept it does not reach it either
    conduct = ear.conduct()
    assert (conduct.listener, conduct.event) == (ear.name, "Connect")
    assert (conduct.overruns, conduct.quarantined) == (3, True)
    assert "is called no more" in caplog.text


def test_offences_are_forgiven_after_a_while_of_good_conduct(monkeypatch):
    rig = Rig(budget=1, quarantine_after=2)
    now = [1000.0]
    monkeypatch.setattr("nkv_core.bus.clock", lambda: now[0])

    def slow(event):
        now[0] += 2

    ear = rig.listen(slow)
    rig.emit()
    now[0] += FORGIVEN_AFTER + 1
    rig.emit()
    assert not ear.quarantined
    rig.emit()
    assert ear.quarantined
    assert ear.overruns == 3


@pytest.mark.anyio
async def test_the_watchdog_names_a_plain_listener_while_it_blocks():
    rig = Rig(budget=0.02)
    heard = threading.Event()
    lines = []

    class Kept(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())
            heard.set()

    def blocks_until_named(event):
        assert heard.wait(10)

    kept = Kept()
    logging.getLogger("nkv_core.watchdog").addHandler(kept)
    try:
        async with Running(rig.bus):
            rig.listen(blocks_until_named, Owner("nkv_slow"))
            rig.emit()
    finally:
        logging.getLogger("nkv_core.watchdog").removeHandler(kept)
    (line,) = lines
    assert "blocks_until_named of nkv_slow has been blocking" in line
    assert line.count("blocks_until_named") >= 2  # by name, and in the stack


@pytest.mark.anyio
async def test_nothing_is_watched_but_while_a_listener_is_called(rig):
    watched = []

    def sees(event):
        watched.append(rig.bus._watch.what)

    def causes(event):
        rig.emit(PluginLoaded("x", 1))
        watched.append(rig.bus._watch.what)

    inner, outer = rig.listen(sees, event=PluginLoaded), rig.listen(causes)
    for _ in range(2):
        rig.emit()
        watched.append(rig.bus._watch.what)
    assert watched == [inner, outer, None] * 2


@pytest.mark.anyio
async def test_the_watchdog_is_there_only_while_somebody_could_block():
    def watchdogs():
        return [t for t in threading.enumerate() if t.name == "nkv-watchdog"]

    async def waits(event):
        pass

    rig = Rig()
    rig.listen(waits)
    async with Running(rig.bus):
        assert watchdogs() == []
        rig.listen(print)
        assert len(watchdogs()) == 1
        rig.bus.watch(False)
        assert watchdogs() == []
        rig.bus.watch(True)
    assert watchdogs() == []


# --- in the background ----------------------------------------------------------------------------


class Running:
    """Has a bus run in the background of a block."""

    def __init__(self, bus):
        self.bus = bus

    async def __aenter__(self):
        self.tasks = anyio.create_task_group()
        await self.tasks.__aenter__()

        async def run(*, task_status):
            await self.bus.run(task_status.started)

        await self.tasks.start(run)

    async def __aexit__(self, *error):
        self.tasks.cancel_scope.cancel()
        return await self.tasks.__aexit__(*error)


@pytest.mark.anyio
async def test_async_listeners_of_what_nobody_waits_for_run_later_and_in_order(rig):
    heard, done = [], anyio.Event()

    async def waits(event):
        await anyio.lowlevel.checkpoint()
        heard.append(event.generation)
        if len(heard) == 100:
            done.set()

    ear = rig.listen(waits, event=PluginLoaded)
    async with Running(rig.bus):
        for number in range(100):
            rig.emit(PluginLoaded("x", number))
        assert heard == []
        with anyio.fail_after(60):
            await done.wait()
    assert heard == list(range(100))
    assert ear.owner.running == 0


@pytest.mark.anyio
async def test_events_from_before_the_bus_runs_are_told_once_it_does(rig):
    heard, done = [], anyio.Event()

    async def waits(event):
        heard.append(event)
        done.set()

    rig.listen(waits)
    rig.emit()
    async with Running(rig.bus):
        with anyio.fail_after(60):
            await done.wait()
    assert heard == [EVENT]


@pytest.mark.anyio
async def test_a_slow_listener_does_not_hold_up_another(rig):
    heard, begun = anyio.Event(), anyio.Event()

    async def slow(event):
        begun.set()
        await anyio.sleep_forever()

    async def quick(event):
        heard.set()

    rig.listen(slow)
    rig.listen(quick)
    async with Running(rig.bus):
        rig.emit()
        with anyio.fail_after(60):
            await begun.wait()
            await heard.wait()


@pytest.mark.anyio
async def test_what_a_listener_is_too_slow_for_is_dropped_counted_and_logged(caplog):
    rig = Rig(end_queue=3)
    heard = []

    async def hears(event):
        heard.append(event.generation)

    ear = rig.listen(hears, event=PluginLoaded)
    for number in range(5):
        rig.emit(PluginLoaded("x", number))
    assert ear.dropped == 2
    assert "too slow: 2 events were dropped" in caplog.text
    async with Running(rig.bus):
        with anyio.fail_after(60):
            while len(heard) < 3:
                await anyio.lowlevel.checkpoint()
    assert heard == [0, 1, 2]
    assert ear.conduct().dropped == 2


@pytest.mark.anyio
async def test_draining_waits_until_a_listener_has_heard_what_happened_before(rig):
    heard, idle = [], anyio.Event()
    owner = Owner("nkv_leaving")

    async def hears(event):
        await anyio.lowlevel.checkpoint()
        heard.append(event)

    rig.listen(hears, owner)
    async with Running(rig.bus):
        for _ in range(3):
            rig.emit()
        owner.drain(lambda: (heard.append("idle"), idle.set()))
        with anyio.fail_after(60):
            await idle.wait()
    assert heard[:3] == [EVENT] * 3
    assert "idle" in heard[3:]


@pytest.mark.anyio
async def test_at_the_drain_deadline_what_waits_is_given_up_and_said(caplog):
    rig = Rig()
    owner = Owner("nkv_leaving")
    begun, idle = anyio.Event(), anyio.Event()

    async def hangs(event):
        begun.set()
        await anyio.sleep_forever()

    ear = rig.listen(hangs, owner)
    async with Running(rig.bus):
        for _ in range(3):
            rig.emit()
        with anyio.fail_after(60):
            await begun.wait()
            owner.drain(idle.set)
            owner.cut()
            await idle.wait()
    assert ear.dropped == 2
    assert "is not told of the last events: 2" in caplog.text


@pytest.mark.anyio
async def test_the_task_of_a_listener_ends_with_it(rig):
    done = anyio.Event()

    async def hears(event):
        done.set()

    ear = rig.listen(hears)
    async with Running(rig.bus):
        rig.emit()
        with anyio.fail_after(60):
            await done.wait()
            assert ear.consumed
            ear.shut()
            while ear.consumed:
                await anyio.lowlevel.checkpoint()


@pytest.mark.anyio
async def test_a_listener_quarantined_in_the_background_ends_there(caplog):
    rig = Rig(budget=0.01, quarantine_after=2)

    async def hangs(event):
        await anyio.sleep_forever()

    ear = rig.listen(hangs)
    async with Running(rig.bus):
        for _ in range(4):
            rig.emit()
        with anyio.fail_after(60):
            while ear.consumed:
                await anyio.sleep(0.001)
    assert ear.quarantined
    assert ear.overruns == 2
    assert ear.dropped == 2
    assert ear.owner.running == 0


@pytest.mark.anyio
async def test_when_the_bus_stops_what_was_not_told_is_said(caplog):
    rig = Rig()
    begun = anyio.Event()

    async def hangs(event):
        begun.set()
        await anyio.sleep_forever()

    ear = rig.listen(hangs)
    async with Running(rig.bus):
        rig.emit()
        rig.emit()
        with anyio.fail_after(60):
            await begun.wait()
    assert ear.dropped == 1
    assert ear.owner.running == 0
    assert "is not told of the last events: 1" in caplog.text


def test_figures_are_summed_by_plugin_and_event(rig):
    owner = Owner("nkv_example")
    for _ in range(2):
        rig.listen(lambda event: None, owner)
    rig.emit()
    calls, *others = measure([ear.conduct() for ear in rig.ears])
    assert calls.name == "nkv_listener_calls_total"
    assert calls.samples == [({"plugin": "nkv_example", "event": "Connect"}, 2)]
    assert {sample[1] for each in others for sample in each.samples} == {0}
