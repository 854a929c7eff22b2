"""Keys and patterns, against what the words of their rules say."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nkv_core.errors import InvalidKey, InvalidPattern
from nkv_core.keys import (
    EVERYTHING,
    MAX_KEY_BYTES,
    Pattern,
    check_key,
    check_prefix,
    is_below,
    prefix_range,
)

anything = st.text(st.characters(codec=None, categories=None), max_size=200)
words = st.text(st.sampled_from("ab.*é\n"), max_size=8)
level = st.text(st.sampled_from("ab"), min_size=0, max_size=2)
keys = st.lists(level, min_size=1, max_size=5).map(".".join)
patterns = st.lists(st.one_of(level, st.just("*")), min_size=1, max_size=5).map(".".join)


def valid(text):
    """The rule, word for word."""
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        return False
    control = any(unicodedata.category(character) == "Cc" for character in text)
    return 1 <= len(encoded) <= MAX_KEY_BYTES and not control and text not in (".", "..")


@given(st.one_of(anything, words))
def test_a_key_is_what_the_rule_says(text):
    if valid(text):
        assert check_key(text) == text.encode()
    else:
        with pytest.raises(InvalidKey):
            check_key(text)


@pytest.mark.parametrize("code", [*range(0x20), *range(0x7F, 0xA0)])
def test_no_control_character_is_let_in(code):
    for text in (chr(code), f"a{chr(code)}b", f"é{chr(code)}"):
        with pytest.raises(InvalidKey):
            check_key(text)


@pytest.mark.parametrize("text", ["é" * 256, "k" * 512, "\U0001f511" * 128])
def test_the_limit_counts_bytes(text):
    assert len(check_key(text)) == 512
    with pytest.raises(InvalidKey):
        check_key(text + "a")
    with pytest.raises(InvalidKey):
        check_key(text, 511)


@given(st.one_of(anything, words))
def test_a_prefix_is_a_key_or_the_beginning_of_one(text):
    if valid(text) or text in ("", ".", ".."):
        assert check_prefix(text) == text.encode()
    else:
        with pytest.raises(InvalidKey):
            check_prefix(text)


@given(st.binary(max_size=6), st.binary(max_size=6))
def test_the_range_of_a_prefix_is_exactly_what_begins_with_it(prefix, key):
    start, stop = prefix_range(prefix)
    inside = start <= key and (stop is None or key < stop)
    if prefix.strip(b"\xff") or not prefix:
        assert inside == key.startswith(prefix)
    else:
        assert inside or not key.startswith(prefix)


@given(keys, keys)
def test_order_of_keys_is_order_of_their_bytes(one, other):
    assert (one < other) == (one.encode() < other.encode())


@given(keys, keys)
def test_below_is_deeper_under_the_same_name(key, ancestor):
    expected = key != ancestor and key.split(".")[: ancestor.count(".") + 1] == ancestor.split(".")
    assert is_below(key, ancestor) == expected


def matches(pattern, key):
    """The rules, by levels: `*` at the end is everything below, elsewhere one level."""
    if pattern == "*":
        return True
    wanted, levels = pattern.split("."), key.split(".")
    last = wanted[-1] == "*"
    if last:
        wanted = wanted[:-1]
        if len(levels) <= len(wanted) or ".".join(levels[len(wanted) :]) == "":
            return False
    elif len(levels) != len(wanted):
        return False
    return all(want in ("*", level) for want, level in zip(wanted, levels, strict=False))


@given(patterns, keys)
def test_a_pattern_matches_what_the_rules_say(pattern, key):
    if not valid(pattern) or not valid(key):
        return
    compiled = Pattern(pattern)
    assert compiled.matches(key) == matches(pattern, key)
    if compiled.matches(key):
        assert key.startswith(compiled.prefix)
    if compiled.exact:
        assert compiled.matches(pattern)


@given(patterns, keys, st.integers(0, 12))
def test_a_pattern_overlaps_every_prefix_of_what_it_matches(pattern, key, length):
    if valid(pattern) and valid(key) and matches(pattern, key):
        assert Pattern(pattern).overlaps(key[:length])


@pytest.mark.parametrize(
    ("pattern", "prefix", "overlaps"),
    [
        ("a.b", "a.", True),
        ("a.b", "a.b", True),
        ("a.b", "a.b.", False),
        ("a.b", "b", False),
        ("a.*", "a.b.", True),
        ("a.*", "b", False),
        ("*", "anything", True),
        ("a.*", "", True),
    ],
)
def test_overlapping(pattern, prefix, overlaps):
    assert Pattern(pattern).overlaps(prefix) == overlaps


@given(keys)
def test_the_star_alone_is_everything(key):
    assert EVERYTHING.matches(key) == bool(key)


@pytest.mark.parametrize("text", ["", ".", "..", "a\n", "\ud800", "k" * 513])
def test_what_is_no_key_is_no_pattern(text):
    with pytest.raises(InvalidPattern) as caught:
        Pattern(text)
    assert caught.value.code == "invalid_pattern"


def test_patterns_are_equal_where_their_texts_are():
    assert Pattern("a.*") == Pattern("a.*")
    assert Pattern("a.*") != Pattern("a")
    assert len({Pattern("a"), Pattern("a"), Pattern("b")}) == 2
    assert repr(Pattern("a.*")) == "Pattern('a.*')"
