"""The suite that every merger passes. Needs pytest and hypothesis.

class TestMyMerger(MergerContract):
    values = st.builds(make_value)

    @pytest.fixture
    def merger(self):
        return MyMerger()
"""

# ruff: noqa: D102, S101  # tests: their names say it, and asserting is their work

from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nkv_core.contracts.mesh import Merger
from nkv_core.records import Record

_T0 = 1_800_000_000_000 << 16


class MergerContract:
    """Subclass it as `Test...`, with a fixture `merger`, and set `values`."""

    values: ClassVar[st.SearchStrategy[bytes]] = st.binary(max_size=20)  #: of the merger's own form

    @pytest.fixture
    def merger(self) -> Merger:
        """The merger. To be overridden."""
        raise NotImplementedError("The suite needs the fixture `merger`.")

    def records(self) -> st.SearchStrategy[Record]:
        """Records of one key: with values of the merger's form, and with others."""
        return st.builds(
            Record,
            key=st.just("a.b"),
            value=st.one_of(self.values, st.binary(max_size=8), st.just(b"")),
            revision=st.integers(1, 5),
            modified=st.integers(_T0, _T0 + 3),
            origin=st.integers(1, 3),
            expires=st.one_of(st.none(), st.integers(1_800_000_000_000, 1_800_000_000_003)),
        )

    def check(self, count: int, holds: Any) -> None:
        """Have `holds(merge, *records)` for any so many records."""

        # A function of its own for each merger: hypothesis keeps what failed by function.
        @hypothesis_settings(max_examples=200, deadline=None)
        @given(st.lists(self.records(), min_size=count, max_size=count))
        def checked(records: list[Record]) -> None:
            holds(*records)

        checked()

    def test_gives_a_record_of_the_same_key(self, merger: Merger) -> None:
        def holds(one: Record, two: Record) -> None:
            merged = merger.merge(one, two)
            assert isinstance(merged, Record)
            assert merged.key == "a.b"
            assert type(merged.value) is bytes

        self.check(2, holds)

    def test_gives_the_same_from_both_sides(self, merger: Merger) -> None:
        def holds(one: Record, two: Record) -> None:
            assert _visible(merger.merge(one, two)) == _visible(merger.merge(two, one))

        self.check(2, holds)

    def test_gives_the_same_in_any_order(self, merger: Merger) -> None:
        def holds(one: Record, two: Record, three: Record) -> None:
            left = _merged(merger, _merged(merger, one, two), three)
            right = _merged(merger, one, _merged(merger, two, three))
            assert _visible(left) == _visible(right)

        self.check(3, holds)

    def test_merging_again_changes_nothing(self, merger: Merger) -> None:
        def holds(one: Record, two: Record) -> None:
            merged = _merged(merger, one, two)
            assert _visible(_merged(merger, merged, two)) == _visible(merged)
            assert _visible(_merged(merger, merged, one)) == _visible(merged)

        self.check(2, holds)

    def test_takes_no_side_by_what_only_one_node_knows(self, merger: Merger) -> None:
        def holds(one: Record, two: Record) -> None:
            other = Record(
                one.key, one.value, one.revision + 7, one.modified, one.origin, one.expires
            )
            assert _visible(merger.merge(one, two)) == _visible(merger.merge(other, two))

        self.check(2, holds)


def _merged(merger: Merger, one: Record, two: Record) -> Record:
    """As a mesh does it: timestamp and origin are the greater of the two."""
    merged = merger.merge(one, two)
    modified, origin = max((one.modified, one.origin), (two.modified, two.origin))
    return Record(merged.key, merged.value, merged.revision, modified, origin, merged.expires)


def _visible(record: Record) -> tuple[bytes, int | None]:
    """What a reader sees."""
    return record.value, record.expires
