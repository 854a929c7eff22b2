"""Globs: as `stringmatchlen` of Redis has them."""

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

pytest.importorskip("hiredis")
from nkv_transport_resp.glob import Glob


def reference(pattern, text):
    """What `stringmatchlen` does, step by step."""
    if not pattern:
        return not text
    head, rest = pattern[0], pattern[1:]
    if head == ord("*"):
        return reference(rest, text) or (bool(text) and reference(pattern, text[1:]))
    if not text:
        return False
    if head == ord("?"):
        return reference(rest, text[1:])
    if head == ord("["):
        negated = rest[:1] == b"^"
        rest = rest[1:] if negated else rest
        found = False
        while rest:
            if rest[0] == ord("\\") and len(rest) >= 2:
                rest = rest[1:]
                found |= rest[0] == text[0]
            elif rest[0] == ord("]"):
                rest = rest[1:]
                break
            elif len(rest) >= 3 and rest[1] == ord("-"):
                low, high = sorted((rest[0], rest[2]))
                found |= low <= text[0] <= high
                rest = rest[2:]
            else:
                found |= rest[0] == text[0]
            rest = rest[1:]
        return found != negated and reference(rest, text[1:])
    if head == ord("\\") and rest:
        head, rest = rest[0], rest[1:]
    return head == text[0] and reference(rest, text[1:])


patterns = st.lists(st.sampled_from([bytes((c,)) for c in b"ab*?[]^-\\c\n\xff"]), max_size=9).map(
    b"".join
)
texts = st.lists(st.sampled_from([bytes((c,)) for c in b"abc-]\\^\n\xff*"]), max_size=7).map(
    b"".join
)


@given(patterns, texts)
@example(b"[]a]", b"a")
@example(b"[^", b"a")
@example(b"[a-", b"-")
@example(b"a**b", b"ab")
@example(b"*a*b*c", b"aXbXcc")
def test_a_glob_matches_what_the_reference_does(pattern, text):
    assert Glob(pattern).matches(text) == reference(pattern, text)


@given(patterns, texts)
def test_what_matches_begins_with_the_literal(pattern, text):
    glob = Glob(pattern)
    if glob.matches(text):
        assert text.startswith(glob.literal)
        assert not glob.exact or text == glob.literal


def test_a_hostile_pattern_takes_no_time_to_speak_of():
    began = time.process_time()
    assert not Glob(b"*a" * 30 + b"b").matches(b"a" * 512)
    assert not Glob(b"a*" * 100 + b"[b]").matches(b"a" * 512)
    assert time.process_time() - began < 5  # tried in every way, it would take years
