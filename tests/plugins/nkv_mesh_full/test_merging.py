"""Records that two nodes wrote without knowing of each other, made one."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nkv_core.errors import PluginNotFound, SettingsError
from nkv_core.records import Record
from nkv_mesh_full.mergers import MERGERS, CounterMerger, SetMerger
from nkv_mesh_full.merging import Merging

LOG = logging.getLogger("test")

counters = st.dictionaries(st.sampled_from("abc"), st.integers(0, 9)).map(
    lambda counts: str(counts).replace("'", '"').encode()
)
sets = st.lists(st.sampled_from("abcd")).map(lambda some: str(some).replace("'", '"').encode())
junk = st.sampled_from([b"", b"x", b"\xff", b"{", b'{"a": "b"}', b"[1]", b"null"])
#: Two writes of one time and node are one write: the timestamp says which value it has.
stamps = st.integers(1, 10_000)


def records(values):
    return st.builds(
        lambda value, modified, expires: Record("k", value, 1, modified, 1, expires),
        values,
        stamps,
        st.none() | st.integers(1, 5),
    )


def seen(record):
    return record.value, record.expires


def merged(merger, one, two):
    """As the keyspace does it: the outcome has the greater timestamp."""
    outcome = merger.merge(one, two)
    return Record("k", outcome.value, 1, max(one.modified, two.modified), 1, outcome.expires)


@pytest.mark.parametrize(
    ("merger", "values"), [(CounterMerger(), counters | junk), (SetMerger(), sets | junk)]
)
def test_the_order_of_merging_makes_no_difference(merger, values):
    @given(records(values), records(values), records(values))
    def check(one, two, three):
        assert seen(merged(merger, one, two)) == seen(merged(merger, two, one))
        left = merged(merger, merged(merger, one, two), three)
        right = merged(merger, one, merged(merger, two, three))
        assert seen(left) == seen(right)
        again = merged(merger, left, left)
        assert seen(again) == seen(left)
        assert seen(merged(merger, left, one)) == seen(left)

    check()


def test_a_counter_adds_up_what_both_counted():
    one, two = (Record("k", value, 1, 1, 1) for value in (b'{"a": 3, "b": 1}', b'{"b": 2, "c": 5}'))
    assert CounterMerger().merge(one, two).value == b'{"a":3,"b":2,"c":5}'


def test_a_set_has_what_either_has():
    one, two = (Record("k", value, 1, 1, 1) for value in (b'["x"]', b'["y","x"]'))
    assert SetMerger().merge(one, two).value == b'["x","y"]'


def test_the_first_rule_that_matches_a_key_says_which_merger():
    merging = Merging(["count.*=counter", "*=set"], lambda name: MERGERS[name](), LOG)
    assert merging.concerns("count.a")
    value = b'{"a":1}'
    assert (
        merging(Record("count.a", value, 1, 1, 1), Record("count.a", b"x", 1, 2, 1)).value == value
    )
    both = merging(Record("b", b'["x"]', 1, 1, 1), Record("b", b'["y"]', 1, 2, 1))
    assert both.value == b'["x","y"]'


def test_without_a_rule_or_where_the_merger_is_missing_or_fails_the_later_write_wins():
    def missing(_):
        raise PluginNotFound

    def failing(_):
        raise RuntimeError

    for find in (missing, failing):
        merging = Merging(["a=any"], find, LOG)
        one, two = (Record("a", value, 1, at, 1) for value, at in ((b"early", 1), (b"late", 2)))
        assert merging(one, two) is merging(two, one) is two
        assert merging.failed == 2
    assert not Merging([], missing, LOG)


@pytest.mark.parametrize("rule", ["counter", "a.*=", "=counter"])
def test_a_rule_that_is_none_is_refused(rule):
    with pytest.raises(SettingsError, match="mergers"):
        Merging([rule], lambda name: MERGERS[name](), LOG)


def test_two_nodes_count_together_while_they_do_not_reach_each_other(meshes):
    settings = {"mesh.full.mergers": "count.*=counter,tags.*=set"}
    one, two = meshes.node("n1", **settings), meshes.node("n2", **settings)
    one.start()
    two.start(join=[one.mesh_address])
    meshes.all_up([one, two])
    one.put("count.visits", b'{"n1": 1}')
    meshes.all_equal([one, two])
    two.stop()
    one.put("count.visits", b'{"n1": 5}')
    one.put("tags.a", b'["from.one"]')
    one.stop()
    two.start()
    two.put("count.visits", b'{"n1": 1, "n2": 7}')
    two.put("tags.a", b'["from.two"]')
    two.put("other", b"x")
    one.start()
    meshes.all_up([one, two])
    records = meshes.all_equal([one, two])
    assert records["count.visits"][0] == '{"n1":5,"n2":7}'
    assert records["tags.a"][0] == '["from.one","from.two"]'
    assert records["other"][0] == "x"
