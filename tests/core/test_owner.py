"""Owner: what is under way in the name of a generation, and how it comes to its end."""

import pytest

from nkv_core.contracts.owner import Owner


@pytest.fixture
def owner():
    return Owner("nkv_example", 3)


def test_it_says_whose_it_is(owner):
    assert repr(owner) == "<Owner nkv_example generation 3>"


def test_drained_at_once_where_nothing_runs(owner):
    told = []
    owner.drain(lambda: told.append("idle"))
    assert told == ["idle"]
    assert owner.draining
    assert not owner.closed


def test_drained_once_the_last_has_left(owner):
    told = []
    owner.enter("a")
    owner.enter("b")
    owner.drain(lambda: told.append("idle"))
    assert owner.running == 2
    owner.leave("a")
    assert told == []
    owner.leave("b")
    assert told == ["idle"]
    assert owner.running == 0


def test_leaving_twice_or_without_entering_does_nothing(owner):
    owner.leave("never entered")
    owner.enter("a")
    owner.leave("a")
    owner.leave("a")
    assert owner.running == 0


def test_streams_are_asked_to_end_when_draining_begins(owner):
    asked = []
    owner.enter("stream")
    owner.open_stream("stream", lambda: asked.append("goodbye"))
    assert asked == []
    owner.drain(lambda: None)
    assert asked == ["goodbye"]


def test_a_stream_that_opens_while_draining_is_asked_at_once(owner):
    owner.enter("stream")
    owner.drain(lambda: None)
    asked = []
    owner.open_stream("stream", lambda: asked.append("goodbye"))
    assert asked == ["goodbye"]


def test_a_stream_that_has_ended_is_not_asked(owner):
    asked = []
    owner.enter("stream")
    owner.open_stream("stream", lambda: asked.append("goodbye"))
    owner.leave("stream")
    owner.drain(lambda: None)
    assert asked == []


def test_cut_ends_all_that_can_be_ended_and_counts_the_rest(owner):
    ended = []
    owner.enter("a", lambda: ended.append("a"))
    owner.enter("b")
    owner.enter("c", lambda: ended.append("c"))
    assert owner.cut() == 3
    assert ended == ["a", "c"]


def test_cut_bears_interrupts_that_leave_at_once(owner):
    owner.enter("a", lambda: owner.leave("a"))
    owner.enter("b", lambda: owner.leave("b"))
    owner.cut()
    assert owner.running == 0


def test_closing_has_those_let_go_who_kept_something_once(owner):
    let_go = []
    owner.when_closed(lambda: let_go.append(owner.closed))
    owner.close()
    owner.close()
    assert let_go == [True]
