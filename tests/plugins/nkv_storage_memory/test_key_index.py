"""The order of keys, against a sorted set."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nkv_storage_memory import key_index
from nkv_storage_memory.key_index import KeyIndex

keys = st.binary(max_size=2)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), keys),
        st.tuples(st.just("discard"), keys),
        st.tuples(st.just("range"), keys, st.none() | keys),
        st.tuples(st.just("remove_range"), keys, st.none() | keys),
    ),
    max_size=120,
)


@pytest.fixture
def small_chunks(monkeypatch):
    """So few keys a list that a few dozen make many lists."""
    monkeypatch.setattr(key_index, "_CHUNK", 3)


def between(model, start, stop):
    return sorted(key for key in model if start <= key and (stop is None or key < stop))


def check_shape(index):
    assert all(index._chunks)
    assert all(len(chunk) <= 2 * key_index._CHUNK for chunk in index._chunks)
    assert index._firsts == [chunk[0] for chunk in index._chunks]


def test_does_what_a_sorted_set_does(small_chunks):
    @given(first=st.sets(keys, max_size=40), steps=steps)
    def check(first, steps):
        model, index = set(first), KeyIndex(first)
        for step, *about in steps:
            if step == "range":
                expected = between(model, *about)
                assert list(index.ascending(*about)) == expected
                assert list(index.descending(*about)) == expected[::-1]
                continue
            getattr(index, step)(*about)
            if step == "add":
                model.add(*about)
            elif step == "discard":
                model.discard(*about)
            else:
                model -= set(between(model, *about))
            check_shape(index)
        assert list(index.ascending(b"", None)) == sorted(model)

    check()


@pytest.mark.parametrize("order", ["rising", "falling", "random"])
def test_keeps_its_lists_short_however_keys_arrive(order):
    keys = [b"%06d" % number for number in range(20_000)]
    arriving = list(keys)
    if order == "falling":
        arriving.reverse()
    elif order == "random":
        random.Random(1).shuffle(arriving)
    index = KeyIndex()
    for key in arriving:
        index.add(key)
    check_shape(index)
    assert list(index.ascending(b"", None)) == keys
    assert len(index._chunks) <= 2 * len(keys) // key_index._CHUNK + 1
    assert list(itertools.islice(index.descending(b"", b"010000"), 2)) == [b"009999", b"009998"]
