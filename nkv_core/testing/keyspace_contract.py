"""The suite that every keyspace passes. Needs pytest, and anyio's plugin for it.

    class TestMyKeyspace(KeyspaceContract):
        @pytest.fixture
        async def keyspace(self):
            async with my_empty_keyspace() as keyspace:
                yield keyspace

Each test gets an empty keyspace that works. What the keyspace says that it cannot do
(`capabilities`) is skipped; everything else must hold. A keyspace whose clock is not the machine's
overrides `now` and `pass_time`; one that is far away may want more `patience`.
"""

# ruff: noqa: D102, S101  # tests: their names say it, and asserting is their work

import anyio
import pytest

from nkv_core.contracts.keyspace import (
    Check,
    Clear,
    Delete,
    Keyspace,
    Options,
    Presence,
    Put,
    Touch,
)
from nkv_core.errors import (
    ConditionFailed,
    InvalidExpiry,
    InvalidKey,
    OtherHistory,
    ValueTooLarge,
)
from nkv_core.keys import Pattern
from nkv_core.records import Version
from nkv_core.testing.keyspace_streams import KeyspaceStreams
from nkv_core.testing.keyspace_suite import all_keys, needs_batch, needs_expiry, version_of

BAD_KEYS = ["", ".", "..", "a\nb", "a\x00", "\x7f", "a\u0085", "\ud800", "k" * 513, "é" * 257]
GOOD_KEYS = ["a", "a.b", "...", "a b", "*", "a.*", "/x", "%2e", "é" * 256, "k" * 512, "\U0001f511"]
VALUES = [b"", b"text", b"\x00\xff\xfe", bytes(range(256)) * 300]


@pytest.mark.anyio
class KeyspaceContract(KeyspaceStreams):
    """Subclass it as `Test...`, with a fixture `keyspace`."""

    # --- one record -------------------------------------------------------------------------------

    async def test_begins_empty(self, keyspace: Keyspace) -> None:
        assert await keyspace.get("a") is None
        assert await keyspace.count() == 0
        assert (await keyspace.scan()).records == []
        assert keyspace.token.history == keyspace.history

    @pytest.mark.parametrize("value", VALUES, ids=["empty", "text", "binary", "long"])
    async def test_gives_back_what_was_put(self, keyspace: Keyspace, value: bytes) -> None:
        written = await keyspace.put("a.b", value)
        record = await keyspace.get("a.b")
        assert record == written.record
        assert record is not None
        assert (record.key, record.value, record.expires) == ("a.b", value, None)
        assert record.revision == written.revision
        assert written.previous is None

    async def test_overwriting_gives_a_later_record_and_the_one_before(
        self, keyspace: Keyspace
    ) -> None:
        first = await keyspace.put("a", b"1")
        second = await keyspace.put("a", b"2")
        assert second.previous == first.record
        assert first.record is not None
        assert second.record is not None
        assert second.record.revision > first.record.revision
        assert second.record.newer_than(first.record)
        assert await keyspace.get("a") == second.record
        assert await keyspace.count() == 1

    async def test_deleting_gives_the_record_that_was_there(self, keyspace: Keyspace) -> None:
        put = await keyspace.put("a", b"1")
        deleted = await keyspace.delete("a")
        assert deleted.previous == put.record
        assert deleted.record is None
        assert deleted.revision is not None
        assert await keyspace.get("a") is None
        assert await keyspace.count() == 0

    async def test_deleting_or_touching_what_is_not_there_does_nothing(
        self, keyspace: Keyspace
    ) -> None:
        before = keyspace.token
        for written in (await keyspace.delete("a"), await keyspace.touch("a", self.now() + 10_000)):
            assert (written.revision, written.record, written.previous) == (None, None, None)
        assert keyspace.token == before
        assert await keyspace.count() == 0

    @pytest.mark.parametrize("key", GOOD_KEYS, ids=lambda key: ascii(key)[:20])
    async def test_takes_every_valid_key(self, keyspace: Keyspace, key: str) -> None:
        await keyspace.put(key, b"v")
        record = await keyspace.get(key)
        assert record is not None
        assert record.key == key
        assert await all_keys(keyspace) == [key]
        assert (await keyspace.delete(key)).previous == record

    @pytest.mark.parametrize("key", BAD_KEYS, ids=lambda key: ascii(key)[:20])
    async def test_refuses_an_invalid_key_everywhere(self, keyspace: Keyspace, key: str) -> None:
        with pytest.raises(InvalidKey):
            await keyspace.get(key)
        with pytest.raises(InvalidKey):
            await keyspace.put(key, b"v")
        with pytest.raises(InvalidKey):
            await keyspace.delete(key)
        with pytest.raises(InvalidKey):
            await keyspace.touch(key, None)
        if keyspace.capabilities.batch != "none":
            with pytest.raises(InvalidKey):
                await keyspace.batch([Put("fine", b"v"), Put(key, b"v")])
        assert await keyspace.count() == 0

    async def test_refuses_a_value_that_is_too_large(self, keyspace: Keyspace) -> None:
        await keyspace.put("a", bytes(self.max_value_bytes))
        with pytest.raises(ValueTooLarge):
            await keyspace.put("b", bytes(self.max_value_bytes + 1))
        assert await all_keys(keyspace) == ["a"]

    @pytest.mark.parametrize("expires", [0, -1, 1 << 64, 1.5, "soon"])
    async def test_refuses_an_expiry_that_is_no_time(
        self, keyspace: Keyspace, expires: int
    ) -> None:
        needs_expiry(keyspace)
        await keyspace.put("there", b"v")
        with pytest.raises(InvalidExpiry):
            await keyspace.put("a", b"v", expires=expires)
        with pytest.raises(InvalidExpiry):
            await keyspace.touch("there", expires)
        record = await keyspace.get("there")
        assert record is not None
        assert record.expires is None
        assert await keyspace.count() == 1

    async def test_takes_a_deadline(self, keyspace: Keyspace) -> None:
        options = Options(deadline=self.patience)
        await keyspace.put("a", b"v", options=options)
        assert await keyspace.get("a", options) is not None
        assert len((await keyspace.scan(options=options)).records) == 1

    # --- conditions -------------------------------------------------------------------------------

    async def test_absent_holds_only_where_there_is_no_record(self, keyspace: Keyspace) -> None:
        first = await keyspace.put("a", b"1", expect=Presence.ABSENT)
        with pytest.raises(ConditionFailed):
            await keyspace.put("a", b"2", expect=Presence.ABSENT)
        assert await keyspace.get("a") == first.record
        await keyspace.delete("a")
        assert (await keyspace.put("a", b"3", expect=Presence.ABSENT)).previous is None

    async def test_present_holds_only_where_there_is_one(self, keyspace: Keyspace) -> None:
        with pytest.raises(ConditionFailed):
            await keyspace.put("a", b"1", expect=Presence.PRESENT)
        with pytest.raises(ConditionFailed):
            await keyspace.delete("a", expect=Presence.PRESENT)
        with pytest.raises(ConditionFailed):
            await keyspace.touch("a", None, expect=Presence.PRESENT)
        assert await keyspace.get("a") is None
        await keyspace.put("a", b"1")
        await keyspace.put("a", b"2", expect=Presence.PRESENT)
        await keyspace.delete("a", expect=Presence.PRESENT)

    async def test_a_version_holds_until_the_record_changes(self, keyspace: Keyspace) -> None:
        first = version_of(keyspace, (await keyspace.put("a", b"1")).revision)
        second = version_of(keyspace, (await keyspace.put("a", b"2", expect=first)).revision)
        for stale in (first, Version(keyspace.history, second.revision + 1)):
            with pytest.raises(ConditionFailed):
                await keyspace.put("a", b"x", expect=stale)
            with pytest.raises(ConditionFailed):
                await keyspace.delete("a", expect=stale)
            with pytest.raises(ConditionFailed):
                await keyspace.touch("a", None, expect=stale)
        record = await keyspace.get("a")
        assert record is not None
        assert record.value == b"2"
        assert (await keyspace.delete("a", expect=second)).previous == record

    async def test_the_version_of_a_deleted_record_never_holds_again(
        self, keyspace: Keyspace
    ) -> None:
        first = version_of(keyspace, (await keyspace.put("a", b"1")).revision)
        await keyspace.delete("a")
        with pytest.raises(ConditionFailed):
            await keyspace.put("a", b"2", expect=first)
        await keyspace.put("a", b"1")
        with pytest.raises(ConditionFailed):
            await keyspace.put("a", b"2", expect=first)

    async def test_a_version_of_another_history_is_refused_as_such(
        self, keyspace: Keyspace
    ) -> None:
        written = await keyspace.put("a", b"1")
        assert written.revision is not None
        other = Version("0123456789abcdef", written.revision)
        for key in ("a", "not there"):
            with pytest.raises(OtherHistory):
                await keyspace.put(key, b"2", expect=other)
            with pytest.raises(OtherHistory):
                await keyspace.delete(key, expect=other)

    async def test_what_fails_changes_nothing_and_is_not_told(self, keyspace: Keyspace) -> None:
        await keyspace.put("a", b"1")
        before = keyspace.token
        with pytest.raises(ConditionFailed):
            await keyspace.put("a", b"2", expect=Presence.ABSENT)
        with pytest.raises(ConditionFailed):
            await keyspace.delete("b", expect=Presence.PRESENT)
        assert keyspace.token == before

    async def test_writers_that_compare_and_set_lose_no_update(self, keyspace: Keyspace) -> None:
        await keyspace.put("counter", b"0")

        async def count_up() -> None:
            for _ in range(5):
                while True:
                    record = await keyspace.get("counter")
                    assert record is not None
                    version = version_of(keyspace, record.revision)
                    try:
                        value = b"%d" % (int(record.value) + 1)
                        await keyspace.put("counter", value, expect=version)
                    except ConditionFailed:
                        await anyio.lowlevel.checkpoint()
                        continue
                    break

        with anyio.fail_after(self.patience * 4):
            async with anyio.create_task_group() as tasks:
                for _ in range(8):
                    tasks.start_soon(count_up)
        record = await keyspace.get("counter")
        assert record is not None
        assert record.value == b"40"

    # --- batches ----------------------------------------------------------------------------------

    async def test_a_batch_is_carried_out_in_order(self, keyspace: Keyspace) -> None:
        needs_batch(keyspace)
        await keyspace.put("old", b"0")
        written = await keyspace.batch(
            [Put("a", b"1"), Put("a", b"2"), Delete("old"), Delete("never"), Put("b", b"3")]
        )
        assert [one.previous and one.previous.value for one in written] == [
            None,
            b"1",
            b"0",
            None,
            None,
        ]
        revisions = [one.revision for one in written if one.revision is not None]
        assert len(revisions) == 4
        assert revisions == sorted(set(revisions))
        assert written[3].revision is None
        assert await all_keys(keyspace) == ["a", "b"]
        assert await keyspace.get("a") == written[1].record

    async def test_a_batch_whose_condition_fails_changes_nothing(self, keyspace: Keyspace) -> None:
        needs_batch(keyspace)
        kept = (await keyspace.put("kept", b"1")).record
        before = keyspace.token
        with pytest.raises(ConditionFailed):
            await keyspace.batch(
                [
                    Put("a", b"1"),
                    Delete("kept"),
                    Clear(""),
                    Put("kept", b"2", expect=Presence.PRESENT),
                ]
            )
        with pytest.raises(ConditionFailed):
            await keyspace.batch([Put("a", b"1")], [Check("kept", Presence.ABSENT)])
        with pytest.raises(OtherHistory):
            await keyspace.batch([Put("a", b"1")], [Check("b", Version("0" * 16, 1))])
        assert await all_keys(keyspace) == ["kept"]
        assert await keyspace.get("kept") == kept
        assert keyspace.token == before

    async def test_conditions_see_what_comes_before_and_checks_what_was_there(
        self, keyspace: Keyspace
    ) -> None:
        needs_batch(keyspace)
        put = await keyspace.put("a", b"1")
        await keyspace.batch(
            [
                Delete("a", expect=version_of(keyspace, put.revision)),
                Put("a", b"2", expect=Presence.ABSENT),
                Put("b", b"1", expect=Presence.ABSENT),
                Touch("b", None, expect=Presence.PRESENT),
            ],
            [Check("a", Presence.PRESENT), Check("b", Presence.ABSENT)],
        )
        assert await all_keys(keyspace) == ["a", "b"]

    async def test_a_batch_may_only_check(self, keyspace: Keyspace) -> None:
        needs_batch(keyspace)
        before = keyspace.token
        assert await keyspace.batch([]) == []
        assert await keyspace.batch([], [Check("a", Presence.ABSENT)]) == []
        with pytest.raises(ConditionFailed):
            await keyspace.batch([], [Check("a", Presence.PRESENT)])
        assert keyspace.token == before

    async def test_a_clear_in_a_batch_hides_only_what_comes_before_it(
        self, keyspace: Keyspace
    ) -> None:
        needs_batch(keyspace)
        await keyspace.put("a.old", b"0")
        await keyspace.batch(
            [Put("a.early", b"1"), Put("b", b"1"), Clear("a."), Put("a.late", b"2")]
        )
        assert await all_keys(keyspace) == ["a.late", "b"]
        assert await keyspace.count() == 2

    # --- clear ------------------------------------------------------------------------------------

    async def test_a_clear_removes_what_begins_with_the_prefix(self, keyspace: Keyspace) -> None:
        for key in ("a", "a.1", "a.2", "ab", "b"):
            await keyspace.put(key, b"v")
        written = await keyspace.clear("a.")
        assert written.revision is not None
        assert await all_keys(keyspace) == ["a", "ab", "b"]
        assert await keyspace.get("a.1") is None
        assert await keyspace.count() == 3
        await keyspace.clear("a")
        assert await all_keys(keyspace) == ["b"]
        await keyspace.clear()
        assert await all_keys(keyspace) == []
        assert await keyspace.count() == 0

    async def test_what_was_cleared_is_absent_and_may_be_put_again(
        self, keyspace: Keyspace
    ) -> None:
        old = await keyspace.put("a.1", b"1")
        await keyspace.clear("a.")
        assert (await keyspace.delete("a.1")).revision is None
        assert (await keyspace.touch("a.1", None)).revision is None
        with pytest.raises(ConditionFailed):
            await keyspace.put("a.1", b"2", expect=version_of(keyspace, old.revision))
        put = await keyspace.put("a.1", b"2", expect=Presence.ABSENT)
        assert put.previous is None
        assert await keyspace.get("a.1") == put.record
        assert await keyspace.count() == 1

    async def test_many_clears_hide_what_each_of_them_should(self, keyspace: Keyspace) -> None:
        keys = [f"{first}.{second}" for first in "abc" for second in "xyz"]
        for key in keys:
            await keyspace.put(key, b"1")
        await keyspace.clear("a.x")
        await keyspace.clear("a.")
        await keyspace.clear("b.y")
        await keyspace.put("a.y", b"2")
        assert await all_keys(keyspace) == ["a.y", "b.x", "b.z", "c.x", "c.y", "c.z"]
        assert await keyspace.count() == 6

    @pytest.mark.parametrize("prefix", ["\x00", "\ud800", "k" * 513])
    async def test_refuses_an_invalid_prefix(self, keyspace: Keyspace, prefix: str) -> None:
        await keyspace.put("a", b"v")
        with pytest.raises(InvalidKey):
            await keyspace.clear(prefix)
        assert await keyspace.count() == 1

    # --- scan -------------------------------------------------------------------------------------

    async def test_a_scan_is_in_the_order_of_the_keys_bytes(self, keyspace: Keyspace) -> None:
        keys = ["a", "a.b", "a-b", "B", "é", "z", "\U0001f511", "\uffee", "a.b.c"]
        for key in keys:
            await keyspace.put(key, key.encode())
        ordered = sorted(keys, key=str.encode)
        for limit in (1, 2, 4, 1000):
            assert await all_keys(keyspace, limit=limit) == ordered
        page = await keyspace.scan()
        assert [record.value.decode() for record in page.records] == ordered
        assert page.after is None

    async def test_a_scan_begins_behind_a_key_that_need_not_be_there(
        self, keyspace: Keyspace
    ) -> None:
        for key in ("a", "b", "c"):
            await keyspace.put(key, b"v")
        for after, expected in (("a", ["b", "c"]), ("aa", ["b", "c"]), ("c", []), ("d", [])):
            page = await keyspace.scan(after=after)
            assert [record.key for record in page.records] == expected

    @pytest.mark.parametrize(
        ("pattern", "expected"),
        [
            ("a", ["a"]),
            ("a.*", ["a.b", "a.b.c", "a.x.c"]),
            ("a.*.c", ["a.b.c", "a.x.c"]),
            ("*.b", ["a.b"]),
            ("*", ["a", "a.b", "a.b.c", "a.x.c", "ab", "b"]),
            ("none.*", []),
            ("none", []),
        ],
    )
    async def test_a_scan_gives_what_the_pattern_stands_for(
        self, keyspace: Keyspace, pattern: str, expected: list[str]
    ) -> None:
        for key in ("a", "a.b", "a.b.c", "a.x.c", "ab", "b"):
            await keyspace.put(key, b"v")
        for limit in (1, 2, 1000):
            assert await all_keys(keyspace, Pattern(pattern), limit) == expected

    # --- cancelling -------------------------------------------------------------------------------

    async def test_a_cancelled_writer_leaves_nothing_broken(self, keyspace: Keyspace) -> None:
        async def put(number: int) -> None:
            with anyio.CancelScope() as scope:
                if number % 2:
                    scope.cancel()
                await keyspace.put(f"k.{number}", b"v")
                scope.cancel()
                await anyio.lowlevel.checkpoint()

        with anyio.fail_after(self.patience * 2):
            async with anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(put, number)
            last = await keyspace.put("last", b"v")
        keys = await all_keys(keyspace)
        assert {f"k.{number}" for number in range(0, 20, 2)} <= set(keys)
        assert await keyspace.get("last") == last.record
        assert await keyspace.count() == len(keys)
