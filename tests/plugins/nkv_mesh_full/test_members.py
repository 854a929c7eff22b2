"""Who is a member: heard, told of, silent, gone."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from nkv_core.events import PeerDown, PeerUp
from nkv_mesh_full.members import LEFT, MOST, STOPPED, Members
from nkv_mesh_full.messages import About, Rumour


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def rumour(node_id, incarnation=1, gone=0, address=None):
    return Rumour(node_id, address or f"10.0.0.{node_id}:1", f"n{node_id}", "", incarnation, gone)


def about(node_id, incarnation=1, address=None):
    one = rumour(node_id, incarnation, address=address)
    return About(
        node_id, one.name, one.address, "", incarnation, b"boot", 0, 512, 1024, 60.0, "h", 7, None
    )


def members():
    clock = Clock()
    made = Members(rumour(1), suspect_after=2.0, down_after=4.0, forget_after=100.0, clock=clock)
    return made, clock


def state(made, node_id=2):
    return made.get(node_id).state


def test_silence_makes_a_node_suspect_then_down_and_a_word_brings_it_back():
    made, clock = members()
    peer = made.meet(about(2))
    assert made.tick() == [PeerUp("10.0.0.2:1", 2, "n2")]
    clock.now += 2.5
    assert made.tick() == []
    assert state(made) == "suspect"
    clock.now += 2
    (event,) = made.tick()
    assert isinstance(event, PeerDown)
    assert state(made) == "down"
    made.heard(peer)
    assert made.tick() == [PeerUp("10.0.0.2:1", 2, "n2")]


def test_a_silent_node_that_another_member_hears_is_suspect_and_not_down():
    made, clock = members()
    made.meet(about(2))
    other = made.meet(about(3))
    made.tick()
    clock.now += 10
    made.heard(other, hears=[2])
    assert made.tick() == []
    assert state(made) == "suspect"
    assert "heard by n3" in made.get(2).detail
    made.heard(other, hears=[])
    assert [type(event) for event in made.tick()] == [PeerDown]


def test_a_node_that_is_down_for_long_is_forgotten():
    made, clock = members()
    made.meet(about(2))
    made.tick()
    clock.now += 99
    made.tick()
    assert made.get(2) is not None
    clock.now += 2
    made.tick()
    assert made.get(2) is None


def test_a_node_that_was_only_told_of_and_is_never_found_is_dropped_soon_and_not_told_on():
    made, clock = members()
    made.learn([rumour(2)], teller=3)
    assert rumour(2) not in made.rumours()
    assert made.met() == []
    clock.now += 61
    made.tick()
    assert made.get(2) is None


def test_a_rumour_neither_ends_nor_moves_a_node_that_answers():
    made, _ = members()
    made.meet(about(2))
    made.tick()
    made.learn([rumour(2, 99, LEFT), rumour(2, 99, address="6.6.6.6:6")], teller=3)
    assert state(made) == "up"
    assert made.get(2).address == "10.0.0.2:1"


def test_a_node_that_hears_that_it_has_gone_takes_a_greater_incarnation():
    made, _ = members()
    made.learn([rumour(1, 1, STOPPED)], teller=2)
    assert made.own.incarnation == 2
    made.learn([rumour(1, 1, STOPPED)], teller=2)
    assert made.own.incarnation == 2
    made.learn([rumour(1, 7)], teller=2)
    assert made.own.incarnation == 8


def test_one_that_left_for_good_is_not_taken_up_again_by_old_rumours_but_by_itself():
    made, _ = members()
    peer = made.meet(about(2, 5))
    made.tick()
    event = made.said_goodbye(peer, 6, for_good=True)
    assert event.reason == "it has left"
    assert made.get(2) is None
    made.learn([rumour(2, 5)], teller=3)
    assert made.get(2) is None
    made.learn([rumour(2, 7)], teller=3)
    assert made.get(2) is not None
    made.meet(about(2, 8))
    assert made.get(2).rumour.incarnation == 8


def test_one_that_has_stopped_is_left_until_it_answers():
    made, clock = members()
    peer = made.meet(about(2))
    made.tick()
    assert isinstance(made.said_goodbye(peer, 1, for_good=False), PeerDown)
    made.tick()
    assert state(made) == "left"
    assert len(made) == 2
    clock.now += 50
    made.meet(about(2, 2))
    assert [type(event) for event in made.tick()] == [PeerUp]


def test_whoever_tells_of_more_nodes_than_there_can_be_is_not_believed():
    made, _ = members()
    made.learn([rumour(number) for number in range(2, 5000)], teller=3)
    assert len(made) <= MOST


def test_one_that_is_refused_is_shown_so_and_does_not_come_up():
    made, _ = members()
    peer = made.meet(about(2))
    made.refuse(peer, "its clock is off")
    assert made.tick() == []
    (own, other) = made.shown()
    assert (own.state, other.state, other.detail) == ("self", "refused", "its clock is off")


rumours = st.builds(
    rumour,
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from([0, STOPPED, LEFT]),
)


@given(st.lists(rumours, max_size=30), st.permutations(range(30)))
def test_rumours_lead_to_the_same_in_any_order(told, order):
    """Two nodes that heard the same, heard none of the others themselves, agree who there is."""
    outcomes = []
    for sequence in (told, [told[place] for place in order if place < len(told)]):
        made, _ = members()
        for one in sequence:
            made.learn([one], teller=99)
        outcomes.append({peer.node_id: peer.rumour for peer in made})
    assert outcomes[0] == outcomes[1]


def test_who_was_met_is_known_in_the_next_life():
    made, _ = members()
    made.meet(about(2))
    made.learn([rumour(3)], teller=2)
    kept = msgspec.msgpack.decode(msgspec.msgpack.encode(made.met()), type=list[Rumour])
    again, _ = members()
    again.recall(kept)
    assert [peer.node_id for peer in again] == [2]
