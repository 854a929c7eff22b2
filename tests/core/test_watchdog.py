"""Watchdog: it names what blocks, with its stack, while it blocks, and once."""

import logging
import threading
import time

import pytest

from nkv_core.watchdog import Watch, Watchdog

BUDGET = 0.02


@pytest.fixture
def said():
    """Records of the watchdog, and an event that is set when one comes."""

    class Kept(logging.Handler):
        def __init__(self):
            super().__init__()
            self.lines = []
            self.heard = threading.Event()

        def emit(self, record):
            self.lines.append(record.getMessage())
            self.heard.set()

    kept = Kept()
    logger = logging.getLogger("nkv_core.watchdog")
    logger.addHandler(kept)
    yield kept
    logger.removeHandler(kept)


@pytest.fixture
def watched():
    watch = Watch()
    watchdog = Watchdog(watch, BUDGET)
    watchdog.start()
    yield watch
    watchdog.stop()
    assert not watchdog.running


def blocked_in_this_function(watch, said):
    watch.since = time.perf_counter()
    watch.what = "the listener of nkv_example"
    assert said.heard.wait(10)
    time.sleep(BUDGET * 4)  # several looks more at the same call
    watch.what = None


def test_a_call_is_named_with_its_stack_while_it_blocks(watched, said):
    blocked_in_this_function(watched, said)
    (line,) = said.lines
    assert line.startswith("the listener of nkv_example has been blocking the node for 0.")
    assert "blocked_in_this_function" in line


def test_each_call_is_named_once(watched, said):
    blocked_in_this_function(watched, said)
    assert len(said.lines) == 1
    said.heard.clear()
    blocked_in_this_function(watched, said)
    assert len(said.lines) == 2


def test_a_call_within_the_budget_is_not_named():
    # Without its thread, so that nothing depends on how fast this runs.
    watch = Watch()
    watchdog = Watchdog(watch, 3600)
    watch.since, watch.what = time.perf_counter(), "quick"
    watchdog.start()
    assert watchdog.running
    watchdog.stop()
    assert not watchdog.running


def test_starting_and_stopping_twice_leaves_no_thread():
    before = threading.active_count()
    watchdog = Watchdog(Watch(), BUDGET)
    watchdog.stop()
    watchdog.start()
    watchdog.start()
    assert threading.active_count() == before + 1
    watchdog.stop()
    watchdog.stop()
    assert threading.active_count() == before


def test_it_can_be_started_again(said):
    watch = Watch()
    watchdog = Watchdog(watch, BUDGET)
    watchdog.start()
    watchdog.stop()
    watchdog.start()
    try:
        blocked_in_this_function(watch, said)
    finally:
        watchdog.stop()
