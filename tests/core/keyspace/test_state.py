"""The durable state of plugins."""

import pytest

from nkv_core.errors import InvalidKey, StorageFailed, ValueTooLarge

pytestmark = pytest.mark.anyio


async def test_it_is_a_map_in_key_order_that_survives(storage, open_keyspace):
    async with open_keyspace(storage) as keyspace:
        state = keyspace.state("plugin")
        assert await state.get("k") is None
        assert await state.items() == []
        for key, value in (("b", b"2"), ("a", b"1"), ("c", b""), ("b", b"3"), ("d", b"4")):
            await state.put(key, value)
        await state.delete("d")
        await state.delete("never there")
        assert await state.items() == [("a", b"1"), ("b", b"3"), ("c", b"")]
    async with open_keyspace(storage) as keyspace:
        assert await keyspace.state("plugin").items() == [("a", b"1"), ("b", b"3"), ("c", b"")]
        assert await keyspace.state("plugin").get("b") == b"3"


async def test_plugins_do_not_see_each_other(storage, open_keyspace):
    async with open_keyspace(storage) as keyspace:
        names = ["a", "aa", "a_b", "a.b", "é"]
        for name in names:
            await keyspace.state(name).put("k", name.encode())
        for name in names:
            assert await keyspace.state(name).items() == [("k", name.encode())]


async def test_it_is_bounded(storage, open_keyspace):
    async with open_keyspace(storage, state_bytes=100) as keyspace:
        state = keyspace.state("plugin")
        await state.put("a", bytes(49))
        await state.put("b", bytes(49))
        with pytest.raises(ValueTooLarge, match=r"keyspace\.state_bytes"):
            await state.put("c", b"")
        with pytest.raises(ValueTooLarge):
            await state.put("a", bytes(50))
        await state.put("a", bytes(48))
        await state.put("c", b"")
        await state.delete("b")
        await state.put("d", bytes(49))
        await keyspace.state("other").put("a", bytes(99))
    async with open_keyspace(storage, state_bytes=100) as keyspace:
        with pytest.raises(ValueTooLarge):
            await keyspace.state("plugin").put("e", b"")
        assert len(await keyspace.state("plugin").items()) == 3


async def test_a_failed_write_is_not_counted(storage, open_keyspace):
    async with open_keyspace(storage, state_bytes=100) as keyspace:
        state = keyspace.state("plugin")
        await state.put("a", b"1")
        for _ in range(3):
            storage.fail_next()
            with pytest.raises(StorageFailed):
                await state.put("b", bytes(60))
        assert await state.get("b") is None
        await state.put("b", bytes(90))


async def test_it_is_no_change_of_the_keyspace(storage, open_keyspace):
    told = []
    async with open_keyspace(storage) as keyspace:
        keyspace.tail(told.extend)
        await keyspace.state("plugin").put("k", b"v")
        assert told == []
        assert keyspace.token.revision == 0
        assert await keyspace.count() == 0


async def test_keys_and_values_are_checked(storage, open_keyspace):
    async with open_keyspace(storage) as keyspace:
        state = keyspace.state("plugin")
        for key in ("", "a\x00b", "\ud800"):
            for call in (state.get(key), state.put(key, b"v"), state.delete(key)):
                with pytest.raises(InvalidKey):
                    await call
        with pytest.raises(TypeError):
            await state.put("k", "text")


async def test_all_of_a_large_state_is_read(storage, open_keyspace):
    async with open_keyspace(storage) as keyspace:
        state = keyspace.state("plugin")
        for number in range(300):
            await state.put(f"{number:03}", b"v")
        assert [key for key, _ in await state.items()] == [f"{n:03}" for n in range(300)]


async def test_examining_reads_the_storage_where_reading_belongs(storage, open_keyspace):
    async with open_keyspace(storage) as keyspace:
        await keyspace.put("a", b"v")
        assert await keyspace.examine(lambda storage: storage.count("records")) == 1
