"""A watch without input or output: its place, what it tells, and when it gives up."""

from urllib.parse import parse_qs, urlsplit

import pytest

from nkv_core.client.changes import Changed, Gap, SnapshotEnd, SnapshotStart
from nkv_core.client.failures import problem
from nkv_core.client.following import Following
from nkv_core.errors import (
    BadRequest,
    Forbidden,
    InvalidPattern,
    InvalidToken,
    NkvError,
    NoHandler,
    NotSupportedHere,
    Overloaded,
    Unreachable,
)

MODIFIED = '"modified":"2026-01-31T12:00:00.250Z+3"'


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def following(clock):
    def make(**options):
        options = {
            "since": None,
            "mode": "every",
            "snapshot": False,
            "subtree": False,
            "timeout": 10.0,
            "patience": None,
            "on_link": None,
            "clock": clock,
            **options,
        }
        return Following(options.pop("pattern", "a.*"), **options)

    return make


def change(key="a.b", **more):
    fields = "".join(f',"{name}":"{value}"' for name, value in more.items())
    return f'{{"key":"{key}","value":"x",{MODIFIED}{fields}}}'.encode()


def lost(watch, error):
    """Lose the connection; raises where the watch is over."""
    pause = watch.lost(error)
    watch.check()
    return pause


def all_of(watch):
    found = []
    while (item := watch.take()) is not None:
        found.append(item)
    return found


def query(watch):
    return {name: one for name, [one] in parse_qs(urlsplit(watch.target()).query).items()}


def test_it_asks_for_what_was_wanted(following):
    watch = following(pattern="a.ü&=", mode="latest", snapshot=True, subtree=True, since="1.x.3")
    assert query(watch) == {
        "pattern": "a.ü&=",
        "mode": "latest",
        "snapshot": "1",
        "subtree": "1",
        "since": "1.x.3",
    }
    assert query(following()) == {"pattern": "a.*", "mode": "every"}


def test_what_cannot_be_watched_is_refused_at_once(following):
    with pytest.raises(InvalidPattern):
        following(pattern="")
    with pytest.raises(BadRequest, match="every, latest"):
        following(mode="newest")


def test_a_change_moves_the_place_and_the_next_connection_resumes_behind_it(following):
    watch = following()
    watch.opened()
    watch.event("put", "T5", change(version="h-5", cause="put", expires="2026-01-31T12:00:00.001Z"))
    assert watch.place is None  # it has not been taken
    [told] = all_of(watch)
    assert isinstance(told, Changed)
    assert (told.kind, told.key, told.value, told.version) == ("put", "a.b", b"x", "h-5")
    assert (told.cause, told.token, watch.place) == ("put", "T5", "T5")
    lost(watch, Unreachable())
    assert query(watch)["since"] == "T5"


def test_a_place_without_a_change_is_resumed_from_and_told_to_nobody(following):
    watch = following()
    watch.opened()
    watch.event("message", "T7", b"")
    assert all_of(watch) == []
    assert watch.place == "T7"
    lost(watch, Unreachable())
    watch.opened()
    assert all_of(watch) == []


def test_a_connection_lost_before_any_place_was_known_is_told_as_a_gap(following):
    watch = following()
    watch.opened()
    lost(watch, Unreachable())
    watch.opened()
    assert all_of(watch) == [Gap(None, None, resync=False)]


def test_a_snapshot_has_no_place_until_its_end_and_begins_again_where_it_was_cut_off(following):
    watch = following(snapshot=True)
    watch.opened()
    watch.event("put", "T1", change())  # the id of an earlier event, which clients remember
    assert [type(item) for item in all_of(watch)] == [SnapshotStart, Changed]
    assert watch.place is None
    lost(watch, Unreachable())
    assert "since" not in query(watch)
    watch.opened()
    watch.event("put", "", change())
    watch.event("snapshot-end", "T9", b'{"token":"T9"}')
    watch.event("delete", "T10", f'{{"key":"a.b",{MODIFIED}}}'.encode())
    items = all_of(watch)
    assert [type(item) for item in items] == [SnapshotStart, Changed, SnapshotEnd, Changed]
    assert [item.token for item in items] == [None, None, "T9", "T10"]


def test_a_gap_is_told_and_a_snapshot_behind_it_is_asked_for_again_where_it_is_cut_off(following):
    watch = following(since="T1", snapshot=True)
    watch.opened()
    gap = b'{"after":"T1","upto":"T8","snapshot_follows":true}'
    for _ in range(2):
        watch.event("gap", "", gap)
        watch.event("put", "", change())
        assert [type(item) for item in all_of(watch)] == [Gap, SnapshotStart, Changed]
        lost(watch, Unreachable())
        assert query(watch)["since"] == "T1"
        watch.opened()
    watch.event("gap", "T8", b'{"after":"T1","upto":"T8","snapshot_follows":false}')
    assert all_of(watch) == [Gap("T1", "T8", resync=False, token="T8")]
    assert watch.place == "T8"


def test_the_end_of_a_node_that_stops_is_no_end_of_the_watch(following):
    watch = following()
    watch.opened()
    with pytest.raises(NkvError) as raised:
        watch.event("end", "T4", b'{"code":"stopping","detail":"bye"}')
    assert raised.value.code == "stopping"
    assert lost(watch, raised.value) > 0
    assert query(watch)["since"] == "T4"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("put", "{"),
        ("put", f'{{"key":"a",{MODIFIED}}}'),
        ("put", f'{{"value":"a",{MODIFIED}}}'),
        ("put", '{"key":"a","value":"x","modified":"yesterday"}'),
        ("clear", f'{{"key":"a",{MODIFIED}}}'),
        ("gap", "[]"),
        ("end", "null"),
    ],
)
def test_what_cannot_be_read_ends_the_watch_and_says_so_again_and_again(following, name, data):
    watch = following()
    watch.opened()
    with pytest.raises(NkvError) as raised:
        watch.event(name, "T1", data.encode())
    assert raised.value.code == "unexpected_reply"
    watch.lost(raised.value)
    for attempt in (watch.check, watch.take, watch.take):
        with pytest.raises(NkvError) as again:
            attempt()
        assert again.value is raised.value
    assert not watch.live


def test_an_event_of_a_later_release_is_passed_over_and_logged_once(following, caplog):
    watch = following()
    watch.opened()
    watch.event("blessing", "T1", b"?")
    watch.event("blessing", "T1", b"?")
    assert all_of(watch) == []
    assert caplog.text.count("blessing") == 1


def test_pauses_grow_are_spread_and_begin_anew_once_something_came(following):
    watch = following(patience=1e9)
    pauses = [lost(watch, Unreachable()) for _ in range(30)]
    assert 0 < pauses[0] <= 0.05
    assert all(2.5 <= pause <= 5 for pause in pauses[10:])
    assert len(set(pauses)) == len(pauses)
    watch.opened()
    assert lost(watch, Unreachable()) > 2  # to be accepted is not enough
    watch.opened()
    watch.event("message", "T1", b"")
    assert lost(watch, Unreachable()) <= 0.05


def test_the_first_connection_is_tried_for_so_long_and_later_ones_for_as_long_as_it_takes(
    following, clock
):
    watch = following(timeout=10)
    watch.target()
    lost(watch, Unreachable())
    clock.now += 9
    lost(watch, Unreachable())
    assert watch.down_for == 9
    clock.now += 1
    with pytest.raises(Unreachable):
        lost(watch, Unreachable())
    watch = following(timeout=10)
    watch.opened()
    assert watch.down_for == 0
    lost(watch, Unreachable())
    clock.now += 1e6
    lost(watch, Unreachable())
    assert not watch.failed


def test_patience_bounds_each_outage(following, clock):
    watch = following(patience=60)
    watch.opened()
    for _ in range(3):
        lost(watch, Unreachable())
        clock.now += 59
        lost(watch, Unreachable())
        watch.opened()
    lost(watch, Unreachable())
    clock.now += 60
    with pytest.raises(Unreachable):
        lost(watch, Unreachable())


@pytest.mark.parametrize("error", [Forbidden(), BadRequest(), NoHandler(), NotSupportedHere()])
def test_a_refusal_that_will_not_pass_is_raised(following, error):
    with pytest.raises(type(error)):
        lost(following(), error)


@pytest.mark.parametrize("error", [Overloaded(), problem(502, b"<html>"), problem(429, b"")])
def test_a_refusal_that_may_pass_is_tried_again(following, error):
    assert lost(following(), error) > 0


def test_a_watch_that_was_served_waits_for_its_plugin_to_be_loaded_again(following):
    watch = following()
    watch.opened()
    assert lost(watch, NoHandler()) > 0


@pytest.mark.parametrize("snapshot", [True, False])
def test_a_node_that_does_not_know_the_place_is_followed_anew_behind_a_gap(following, snapshot):
    watch = following(snapshot=snapshot, since="T1")
    watch.opened()
    watch.event("put", "T2", change())
    all_of(watch)
    lost(watch, InvalidToken())
    assert "since" not in query(watch)
    watch.opened()
    told = all_of(watch)
    assert told[0] == Gap("T2", None, resync=snapshot)
    assert [type(item) for item in told[1:]] == [SnapshotStart] * snapshot


def test_a_place_that_was_never_any_is_refused(following):
    with pytest.raises(InvalidToken):
        lost(following(since="rubbish"), InvalidToken())


def test_an_outage_is_told_once_and_its_end_too(following):
    told = []
    watch = following(on_link=told.append)
    watch.opened()
    assert told == []
    first = Unreachable("1")
    lost(watch, first)
    lost(watch, Unreachable("2"))
    watch.opened()
    watch.opened()
    assert told == [first, None]
