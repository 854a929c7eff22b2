"""The suite of mergers bites: it rejects each that breaks a promise, by the test that is for it."""

import msgspec
import pytest
from hypothesis import strategies as st

from nkv_core.testing import MergerContract


class Suite(MergerContract):
    values = st.integers(0, 5).map(lambda number: b"%d" % number)


TESTS = sorted(name for name in dir(MergerContract) if name.startswith("test_"))


def number(record):
    return int(record.value) if record.value.isdigit() else -1


def order(record):
    return number(record), record.value, record.expires or 0


def changed(record, **fields):
    return msgspec.structs.replace(record, **fields)


class Greatest:
    """Keeps the promises: the greatest number counts."""

    def merge(self, ours, theirs):
        return max(ours, theirs, key=order)


class TakesOurs:
    def merge(self, ours, theirs):
        return ours


class TakesTheHigherRevision:
    def merge(self, ours, theirs):
        return max(ours, theirs, key=lambda record: (record.revision, *order(record)))


class AddsUp:
    def merge(self, ours, theirs):
        total = b"%d" % (max(number(ours), 0) + max(number(theirs), 0))
        return changed(Greatest().merge(ours, theirs), value=total)


class TakesTheMean:
    def merge(self, ours, theirs):
        mean = b"%d" % ((max(number(ours), 0) + max(number(theirs), 0)) // 2)
        return changed(Greatest().merge(ours, theirs), value=mean)


class MakesAnotherKey:
    def merge(self, ours, theirs):
        return changed(Greatest().merge(ours, theirs), key="other")


class MakesText:
    def merge(self, ours, theirs):
        merged = Greatest().merge(ours, theirs)
        return changed(merged, value=merged.value.decode("latin-1"))


class RaisesForWhatIsNotItsOwn:
    def merge(self, ours, theirs):
        return max(ours, theirs, key=lambda record: int(record.value))


REJECTED = {
    TakesOurs: "test_gives_the_same_from_both_sides",
    TakesTheHigherRevision: "test_takes_no_side_by_what_only_one_node_knows",
    AddsUp: "test_merging_again_changes_nothing",
    TakesTheMean: "test_gives_the_same_in_any_order",
    MakesAnotherKey: "test_gives_a_record_of_the_same_key",
    MakesText: "test_gives_a_record_of_the_same_key",
    RaisesForWhatIsNotItsOwn: "test_gives_a_record_of_the_same_key",
}


@pytest.mark.parametrize("test", TESTS)
def test_what_keeps_the_promises_passes(test):
    getattr(Suite(), test)(Greatest())


@pytest.mark.parametrize("mutant", REJECTED)
def test_what_breaks_a_promise_is_rejected(mutant):
    # A group where hypothesis finds several ways in which it is wrong.
    with pytest.raises((AssertionError, ValueError, ExceptionGroup)):
        getattr(Suite(), REJECTED[mutant])(mutant())


def test_every_test_rejects_something():
    assert set(REJECTED.values()) == set(TESTS)
