"""The part of the suite of keyspaces about changes, expiry, and records of other nodes."""

# ruff: noqa: D102, S101  # tests: their names say it, and asserting is their work

import itertools

import anyio
import pytest

from nkv_core.contracts.keyspace import Clear, Delete, Foreign, Keyspace, Presence, Put
from nkv_core.errors import InvalidToken
from nkv_core.keys import Pattern
from nkv_core.records import Change, RangeTombstone, Record, Token, Tombstone, timestamp_at
from nkv_core.testing.keyspace_suite import (
    KeyspaceSuite,
    all_changes,
    all_keys,
    needs_batch,
    needs_expiry,
    needs_foreign,
    needs_history,
)

ELSEWHERE = 0xE15E_3E5E
_SOON = 60  # milliseconds


class KeyspaceStreams(KeyspaceSuite):
    """The change stream, what expires, and `apply_foreign`."""

    # --- changes ----------------------------------------------------------------------------------

    async def test_every_write_is_a_change(self, keyspace: Keyspace) -> None:
        needs_history(keyspace)
        start, later = keyspace.token, self.now() + 1_000_000
        put = await keyspace.put("a.b", b"1", cause="mset")
        touched = await keyspace.touch("a.b", later)
        deleted = await keyspace.delete("a.b")
        cleared = await keyspace.clear("a.")
        changes = await all_changes(keyspace, start)
        assert [(c.kind, c.cause, c.key, c.revision) for c in changes] == [
            ("put", "mset", "a.b", put.revision),
            ("touch", "touch", "a.b", touched.revision),
            ("delete", "delete", "a.b", deleted.revision),
            ("clear", "clear", "a.", cleared.revision),
        ]
        assert [c.value for c in changes] == [b"1", b"1", None, None]
        assert [c.expires for c in changes] == [None, later, None, None]
        assert [c.previous for c in changes] == [None, put.revision, touched.revision, None]
        assert put.record is not None
        assert (changes[0].modified, changes[0].origin) == (
            put.record.modified,
            put.record.origin,
        )
        assert keyspace.token == Token(keyspace.history, changes[-1].revision)

    async def test_changes_are_read_from_any_place_in_pages_of_any_size(
        self, keyspace: Keyspace
    ) -> None:
        needs_history(keyspace)
        start, places = keyspace.token, []
        for number in range(10):
            await keyspace.put(f"k.{number % 3}", b"%d" % number)
            places.append(keyspace.token)
        everything = await all_changes(keyspace, start)
        assert [change.value for change in everything] == [b"%d" % n for n in range(10)]
        for limit in (1, 3, 1000):
            assert await all_changes(keyspace, start, limit=limit) == everything
            for number, place in enumerate(places):
                assert await all_changes(keyspace, place, limit=limit) == everything[number + 1 :]

    async def test_there_is_an_empty_page_behind_the_last_change(self, keyspace: Keyspace) -> None:
        needs_history(keyspace)
        await keyspace.put("a", b"1")
        page = await keyspace.changes(keyspace.token)
        assert (page.changes, page.token, page.gap) == ([], keyspace.token, False)

    async def test_changes_are_told_apart_by_pattern(self, keyspace: Keyspace) -> None:
        needs_history(keyspace)
        start = keyspace.token
        for key in ("a", "a.x", "b", "a.y"):
            await keyspace.put(key, b"v")
        await keyspace.clear("a.x")
        await keyspace.clear("b")
        below = await all_changes(keyspace, start, Pattern("a.*"))
        assert [(change.kind, change.key) for change in below] == [
            ("put", "a.x"),
            ("put", "a.y"),
            ("clear", "a.x"),
        ]
        exact = await all_changes(keyspace, start, Pattern("b"), limit=1)
        assert [(change.kind, change.key) for change in exact] == [("put", "b"), ("clear", "b")]
        page = await keyspace.changes(start, Pattern("none"))
        assert (page.changes, page.token) == ([], keyspace.token)

    async def test_a_place_ahead_of_the_history_is_refused(self, keyspace: Keyspace) -> None:
        needs_history(keyspace)
        await keyspace.put("a", b"1")
        ahead = Token(keyspace.history, keyspace.token.revision + 1)
        with pytest.raises(InvalidToken):
            await keyspace.changes(ahead)

    async def test_a_place_in_another_history_is_a_gap(self, keyspace: Keyspace) -> None:
        needs_history(keyspace)
        await keyspace.put("a", b"1")
        page = await keyspace.changes(Token("0123456789abcdef", 10**9))
        assert page.gap
        assert page.token.history == keyspace.history
        assert not (await keyspace.changes(page.token)).gap

    # --- tails ------------------------------------------------------------------------------------

    async def test_a_tail_is_called_with_every_change_in_order(self, keyspace: Keyspace) -> None:
        start = keyspace.token
        told: list[Change] = []
        end = keyspace.tail(told.extend)

        async def write(name: str) -> None:
            for number in range(5):
                await keyspace.put(f"{name}.{number}", b"v")

        async with anyio.create_task_group() as tasks:
            for name in "abcd":
                tasks.start_soon(write, name)
        await self.eventually(lambda: len(told) >= 20)
        end()
        revisions = [change.revision for change in told]
        assert revisions == sorted(set(revisions))
        if keyspace.capabilities.history:
            assert told == await all_changes(keyspace, start)
        await keyspace.put("later", b"v")
        assert len(told) == 20
        end()

    async def test_a_tail_sees_a_batch_whole(self, keyspace: Keyspace) -> None:
        needs_batch(keyspace)
        calls: list[list[str]] = []
        end = keyspace.tail(lambda changes: calls.append([change.key for change in changes]))
        await keyspace.batch([Put("a", b"1"), Put("b", b"1"), Delete("a"), Clear("c")])
        await self.eventually(lambda: bool(calls))
        end()
        assert calls == [["a", "b", "a", "c"]]

    # --- expiry -----------------------------------------------------------------------------------

    async def test_a_record_is_gone_once_it_has_expired(self, keyspace: Keyspace) -> None:
        needs_expiry(keyspace)
        expires = self.now() + _SOON
        put = await keyspace.put("a", b"1", expires=expires)
        await keyspace.put("b", b"1", expires=self.now() + 1_000_000)
        assert put.record is not None
        assert put.record.expires == expires
        await self.pass_time(_SOON)
        assert await keyspace.get("a") is None
        assert await all_keys(keyspace) == ["b"]
        assert await all_keys(keyspace, Pattern("a")) == []
        assert await keyspace.count() == 1

    async def test_an_expiry_becomes_a_change(self, keyspace: Keyspace) -> None:
        needs_expiry(keyspace)
        told: list[Change] = []
        end = keyspace.tail(told.extend)
        expires = self.now() + _SOON
        put = await keyspace.put("a", b"1", expires=expires)
        await self.pass_time(_SOON)
        await self.eventually(lambda: len(told) == 2)
        end()
        change = told[1]
        assert (change.kind, change.cause, change.key) == ("delete", "expire", "a")
        assert change.previous == put.revision
        assert change.modified == timestamp_at(expires)

    async def test_what_has_expired_is_absent_to_a_writer(self, keyspace: Keyspace) -> None:
        needs_expiry(keyspace)
        told: list[Change] = []
        end = keyspace.tail(told.extend)
        for key in "abc":
            await keyspace.put(key, b"1", expires=self.now() + _SOON)
        await self.pass_time(_SOON)
        assert (await keyspace.delete("b")).revision is None
        assert (await keyspace.touch("c", None)).revision is None
        put = await keyspace.put("a", b"2", expect=Presence.ABSENT)
        assert put.previous is None
        await self.eventually(lambda: len(told) == 7)
        end()
        # Every record ends before another takes its place, whoever notices first.
        life = [(c.kind, c.cause, c.previous) for c in told if c.key == "a"]
        first = told[0].revision
        assert life == [("put", "put", None), ("delete", "expire", first), ("put", "put", None)]
        assert await keyspace.get("a") == put.record

    async def test_touching_and_putting_move_the_expiry(self, keyspace: Keyspace) -> None:
        needs_expiry(keyspace)
        soon, later = self.now() + _SOON, self.now() + 1_000_000
        for key in "abc":
            await keyspace.put(key, b"1", expires=soon)
        touched = await keyspace.touch("a", later)
        await keyspace.touch("b", None)
        await keyspace.put("c", b"2")
        await keyspace.put("d", b"1", expires=later)
        await keyspace.touch("d", soon)
        assert touched.record is not None
        assert touched.previous is not None
        assert touched.record.value == b"1"
        assert touched.record.revision > touched.previous.revision
        await self.pass_time(_SOON)
        assert await all_keys(keyspace) == ["a", "b", "c"]

    async def test_a_record_whose_expiry_is_past_is_gone_at_once(self, keyspace: Keyspace) -> None:
        needs_expiry(keyspace)
        await keyspace.put("a", b"1", expires=1)
        assert await keyspace.get("a") is None
        assert await keyspace.count() == 0

    # --- records of other nodes -------------------------------------------------------------------

    async def test_a_foreign_record_is_taken_as_it_is(self, keyspace: Keyspace) -> None:
        await needs_foreign(keyspace)
        told: list[Change] = []
        end = keyspace.tail(told.extend)
        foreign = Record("a", b"1", 999, timestamp_at(self.now(), 7), ELSEWHERE, self.now() + 10**6)
        assert await keyspace.apply_foreign([foreign]) == 1
        record = await keyspace.get("a")
        assert record is not None
        assert (record.value, record.modified, record.origin, record.expires) == (
            foreign.value,
            foreign.modified,
            foreign.origin,
            foreign.expires,
        )
        await self.eventually(lambda: bool(told))
        end()
        assert (told[0].kind, told[0].cause) == ("put", "replicated")
        assert (told[0].revision, told[0].origin) == (record.revision, ELSEWHERE)

    async def test_the_newer_write_wins_whatever_comes_first(self, keyspace: Keyspace) -> None:
        await needs_foreign(keyspace)
        base = self.now()
        writes: list[Foreign] = [
            Record("a.k", b"1", 1, timestamp_at(base, 1), 5),
            Record("a.k", b"2", 1, timestamp_at(base, 2), 5),
            Record("a.k", b"3", 1, timestamp_at(base, 2), 6),
            Tombstone("a.k", 1, timestamp_at(base, 3), 5),
            RangeTombstone("a.", 1, timestamp_at(base, 4), 5),
            Record("a.k", b"4", 1, timestamp_at(base, 5), 5),
        ]
        expected = {1: b"1", 2: b"2", 3: b"3", 4: None, 5: None, 6: b"4"}
        for count, order in itertools.product(expected, (1, -1)):
            prefix = f"{count}{'f' if order == 1 else 'b'}."
            some = [_moved(one, prefix) for one in writes[:count]]
            await keyspace.apply_foreign(some[::order])
            record = await keyspace.get(f"{prefix}a.k")
            assert (record and record.value) == expected[count]

    async def test_taking_the_same_again_does_nothing(self, keyspace: Keyspace) -> None:
        await needs_foreign(keyspace)
        base = self.now()
        foreign: list[Foreign] = [
            Record("a.k", b"1", 1, timestamp_at(base, 1), ELSEWHERE),
            Tombstone("a.l", 1, timestamp_at(base, 1), ELSEWHERE),
            RangeTombstone("b.", 1, timestamp_at(base, 1), ELSEWHERE),
        ]
        assert await keyspace.apply_foreign(foreign) == 3
        before = keyspace.token
        assert await keyspace.apply_foreign(foreign) == 0
        assert keyspace.token == before

    async def test_what_was_deleted_here_is_not_brought_back(self, keyspace: Keyspace) -> None:
        await needs_foreign(keyspace)
        put = await keyspace.put("a.k", b"1")
        cleared = await keyspace.put("c.k", b"1")
        await keyspace.delete("a.k")
        await keyspace.clear("c.")
        assert put.record is not None
        assert cleared.record is not None
        assert await keyspace.apply_foreign([put.record, cleared.record]) == 0
        assert await keyspace.count() == 0

    async def test_a_foreign_clear_leaves_what_is_newer(self, keyspace: Keyspace) -> None:
        await needs_foreign(keyspace)
        old = Record("a.old", b"1", 1, timestamp_at(self.now() - 10_000), ELSEWHERE)
        await keyspace.apply_foreign([old])
        await keyspace.put("a.new", b"1")
        clear = RangeTombstone("a.", 1, timestamp_at(self.now() - 5_000), ELSEWHERE)
        assert await keyspace.apply_foreign([clear]) == 1
        assert await all_keys(keyspace) == ["a.new"]
        assert await keyspace.count() == 1
        late = Record("a.late", b"1", 1, timestamp_at(self.now() - 6_000), ELSEWHERE)
        assert await keyspace.apply_foreign([late]) == 0
        assert await keyspace.get("a.late") is None

    async def test_a_write_here_is_newer_than_all_that_was_taken(self, keyspace: Keyspace) -> None:
        await needs_foreign(keyspace)
        ahead = Record("a", b"1", 1, timestamp_at(self.now() + 5_000), 2**64 - 1)
        await keyspace.apply_foreign([ahead])
        put = await keyspace.put("a", b"2")
        assert put.record is not None
        assert put.record.newer_than(ahead)
        assert await keyspace.get("a") == put.record


def _moved(one: Foreign, prefix: str) -> Foreign:
    if isinstance(one, Record):
        return Record(prefix + one.key, one.value, one.revision, one.modified, one.origin)
    if isinstance(one, Tombstone):
        return Tombstone(prefix + one.key, one.revision, one.modified, one.origin)
    return RangeTombstone(prefix + one.prefix, one.revision, one.modified, one.origin)
