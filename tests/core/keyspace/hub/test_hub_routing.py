"""Routes find exactly those whose pattern matches, whatever came and went before."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nkv_core.keys import Pattern
from nkv_core.keyspace.routing import Routes, concerns, parts_of, selector
from nkv_core.records import Change

TEXTS = (
    st.lists(st.sampled_from(["a", "b", "", "*", "ab"]), min_size=1, max_size=4)
    .map(".".join)
    .filter(lambda text: text not in ("", ".", ".."))
)
WATCHED = st.tuples(TEXTS, st.booleans())


def watch(text, subtree):
    return selector(Pattern(text), subtree=subtree)


def change(kind, key):
    return Change(kind, kind, key, 1, 1, 1)


@given(
    there=st.lists(WATCHED, max_size=20),
    gone=st.sets(st.integers(0, 19)),
    key=TEXTS,
    prefix=st.one_of(TEXTS, st.just(""), st.just("."), TEXTS.map(lambda text: text[:-1])),
)
def test_routes_agree_with_the_patterns_one_by_one(there, gone, key, prefix):
    routes = Routes()
    watched = [watch(*each) for each in there]
    for number, each in enumerate(watched):
        routes.add(number, each)
    for number in gone:
        if number < len(watched):
            routes.discard(number, watched[number])
    left = {number: each for number, each in enumerate(watched) if number not in gone}
    matching, overlapping = routes.matching(key), routes.overlapping(prefix)
    assert sorted(matching) == [n for n, each in left.items() if each.matches(key)]
    assert sorted(overlapping) == [n for n, each in left.items() if each.overlaps(prefix)]
    for number, each in left.items():
        assert concerns(change("put", key), each) == (number in matching)
        assert concerns(change("clear", prefix), each) == (number in overlapping)


@given(watched=WATCHED, key=TEXTS, length=st.integers(0, 10))
def test_clearing_a_prefix_of_a_watched_key_always_overlaps(watched, key, length):
    each = watch(*watched)
    if each.matches(key):
        assert each.overlaps(key[:length])


@given(watched=WATCHED, key=TEXTS)
def test_the_parts_to_scan_find_each_watched_key_once(watched, key):
    each = watch(*watched)
    assert sum(part.matches(key) for part in parts_of(each)) == each.matches(key)


@given(there=st.lists(WATCHED, max_size=20))
def test_nothing_is_left_of_routes_that_are_gone(there):
    routes = Routes()
    watched = [watch(*each) for each in there]
    for number, each in enumerate(watched):
        routes.add(number, each)
    for number, each in enumerate(watched):
        routes.discard(number, each)
        routes.discard(number, each)
    assert routes._root.empty()


@pytest.mark.parametrize(
    ("text", "key", "covered"),
    [
        ("a", "a", True),
        ("a", "a.b.c", True),
        ("a", "ab", False),
        ("a.b", "a", False),
        ("a.*.c", "a.x.c", True),
        ("a.*.c", "a.x.c.d", True),
        ("a.*.c", "a.x.y.c", False),
        ("a.*", "a", False),
        ("*", "anything.at.all", True),
    ],
)
def test_a_subscription_covers_the_keys_and_all_below(text, key, covered):
    assert watch(text, True).matches(key) is covered


def test_a_subscription_to_the_longest_key_covers_that_key():
    text = "k" * 512
    assert [part.text for part in parts_of(watch(text, True))] == [text]
