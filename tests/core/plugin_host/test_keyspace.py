"""What plugins have of the keyspace: changes, state, storages; and their settings."""

import gc
from contextlib import asynccontextmanager

import anyio
import msgspec
import pytest

from nkv_core.contracts.settings import KeyspaceSettings
from nkv_core.errors import PluginInvalid, PluginNotFound, SettingsError
from nkv_core.keyspace import LocalKeyspace, WatchHub

pytestmark = pytest.mark.anyio


@pytest.fixture
def with_keyspace(serving):
    """As `serving`, with a keyspace over the storage of a plugin."""

    @asynccontextmanager
    async def start(sections=None, first=(), **settings):
        async with serving(sections, **settings) as it:
            for spec in first:
                await it.host.load(spec)
            await it.host.load("nkv_storage_memory")
            storage, plugin = it.host.storage("memory")
            assert plugin == "nkv_storage_memory"
            keyspace = LocalKeyspace(storage, KeyspaceSettings(), node_id=7)
            await keyspace.open()
            try:
                await it.tasks.start(keyspace.run)
                hub = WatchHub(keyspace)
                await it.tasks.start(hub.run)
                it.host.attach(keyspace, hub)
                it.dispatcher.keyspace = it.keyspace = keyspace
                del storage  # else it would hold its plugin
                yield it
                await it.host.unload_all()
            finally:
                with anyio.CancelScope(shield=True):
                    await keyspace.aclose()

    return start


WATCHES = """
    import anyio
    from nkv_core import hookimpl

    seen = []
    GATE = anyio.Event()
    {gate}

    @hookimpl
    {kind} nkv_changed(change):
        {wait}
        seen.append((change.kind, change.key))
        if change.key == "bad":
            raise ValueError("a listener's own")

    @hookimpl
    def nkv_handlers(handlers):
        handlers.add("/seen", lambda request: seen)
        handlers.add("/gate", lambda request: GATE)
"""
PLAIN = WATCHES.format(kind="def", wait="pass", gate="")
ASYNC = WATCHES.format(kind="async def", wait="await GATE.wait()", gate="GATE.set()")
GATED = WATCHES.format(kind="async def", wait="await GATE.wait()", gate="")


async def eventually(seen, wanted):
    with anyio.fail_after(60):
        while list(seen) != wanted:
            await anyio.sleep(0.002)


@pytest.mark.parametrize("source", [PLAIN, ASYNC], ids=["plain", "async"])
async def test_listeners_of_changes_are_told_all_in_order_and_errors_stop_with_them(
    with_keyspace, write, source
):
    async with with_keyspace() as it:
        await it.keyspace.put("before", b"")
        await it.host.load(write("watches.py", source))
        seen = await it.ask("/seen")
        await it.keyspace.put("a", b"1")
        await it.keyspace.put("bad", b"2")
        await it.keyspace.delete("a")
        await it.keyspace.clear()
        wanted = [("put", "a"), ("put", "bad"), ("delete", "a"), ("clear", "")]
        await eventually(seen, wanted)


async def test_a_plugin_loaded_before_the_keyspace_is_told_from_its_opening_on(
    with_keyspace, write
):
    async with with_keyspace(first=[write("watches.py", PLAIN)]) as it:
        seen = await it.ask("/seen")
        await it.keyspace.put("a", b"1")
        await eventually(seen, [("put", "a")])


async def test_a_replacement_hands_the_stream_over_without_hole_or_repeat(with_keyspace, write):
    async with with_keyspace() as it:
        path = write("watches.py", GATED)
        await it.host.load(path)
        first, gate = await it.ask("/seen"), await it.ask("/gate")
        for number in range(20):
            await it.keyspace.put(f"k{number}", b"")
        write("watches.py", ASYNC)
        await it.host.replace("watches")
        second = await it.ask("/seen")
        for number in range(20, 40):
            await it.keyspace.put(f"k{number}", b"")
        await eventually(second, [("put", f"k{number}") for number in range(20, 40)])
        assert list(first) == []
        gate.set()  # it is draining, and tells what was committed before the switch
        await eventually(first, [("put", f"k{number}") for number in range(20)])
        del first, gate
        await it.quiet()


async def test_a_listener_that_hangs_holds_up_neither_writes_nor_its_own_unloading(
    with_keyspace, write
):
    async with with_keyspace(drain_deadline=0.1) as it:
        before = it.residue()
        await it.host.load(write("watches.py", GATED))
        for number in range(50):
            await it.keyspace.put(f"k{number}", b"")
        await it.host.unload("watches")
        assert it.residue() == before


async def test_state_is_inherited_by_the_next_generation(with_keyspace, write):
    source = """
        from contextlib import asynccontextmanager
        from nkv_core import hookimpl

        @hookimpl
        @asynccontextmanager
        async def nkv_setup(ctx):
            count = int(await ctx.state.get("count") or b"0") + 1
            await ctx.state.put("count", str(count).encode())
            ctx.handlers.add("/count", lambda request: count)
            assert await ctx.keyspace.count() >= 0
            yield
    """
    async with with_keyspace() as it:
        await it.host.load(write("counts.py", source))
        await it.host.replace("counts")
        assert await it.ask("/count") == 2
        await it.host.unload("counts")
        await it.host.load(write("counts.py", source))
        assert await it.ask("/count") == 3


async def test_handlers_come_and_go_while_a_generation_lives(serving, write):
    source = """
        from contextlib import asynccontextmanager
        from nkv_core import hookimpl

        @hookimpl
        @asynccontextmanager
        async def nkv_setup(ctx):
            ctx.handlers.add("/ctx", lambda request: ctx)
            yield
    """
    async with serving() as it:
        before = it.residue()
        await it.host.load(write("lively.py", source))
        ctx = await it.ask("/ctx")
        assert (ctx.name, ctx.owner.generation, ctx.log.name) == ("lively", 1, "nkv.plugin.lively")
        ctx.handlers.add("/more", lambda request: "more")
        assert await it.ask("/more") == "more"
        ctx.handlers.remove("/more")
        assert (await it.ask("/more")).code == "no_handler"
        ctx.handlers.add("/more", lambda request: "more")
        await it.host.unload("lively")
        with pytest.raises(Exception, match=r"not loaded|is being unloaded"):
            ctx.handlers.add("/late", lambda request: "late")
        del ctx
        await it.quiet()
        gc.collect()
        assert it.residue() == before


async def test_the_keyspace_is_refused_while_it_is_not_open(serving, write):
    source = """
        from contextlib import asynccontextmanager
        from nkv_core import hookimpl

        @hookimpl
        @asynccontextmanager
        async def nkv_setup(ctx):
            await ctx.state.get("x")
            yield
    """
    async with serving() as it:
        with pytest.raises(Exception, match="not open yet"):
            await it.host.load(write("early.py", source))


# --- storages -------------------------------------------------------------------------------------

STORAGE = """
    import msgspec
    from nkv_core import hookimpl

    class Settings(msgspec.Struct):
        size: int = 1
        directory: str | None = None

    @hookimpl
    def nkv_settings():
        return Settings

    @hookimpl
    def nkv_storage(name, settings):
        return settings if name == {name!r} else None
"""


async def test_a_storage_is_found_by_its_name_and_has_its_section(serving, write, tmp_path):
    sections = {"storage.box": {"size": 3}}
    async with serving(sections) as it:
        await it.host.load("nkv_storage_memory")
        await it.host.load(write("nkv_storage_box.py", STORAGE.format(name="box")))
        settings, plugin = it.host.storage("box")
        assert plugin == "nkv_storage_box"
        assert settings.size == 3
        assert settings.directory == str(tmp_path / "data" / "nkv_storage_box")


async def test_a_plugin_of_another_name_has_the_section_of_its_storage(serving, write):
    sections = {"storage.box": {"size": 3}, "storage.memory": {"unknown": 1}}
    async with serving(sections) as it:
        await it.host.load(write("example.py", STORAGE.format(name="box")))
        settings, plugin = it.host.storage("box")
        assert (plugin, settings.size) == ("example", 3)
        sections["storage.box"] = {"sise": 3}
        with pytest.raises(SettingsError, match=r"storage\.box\.sise"):
            it.host.storage("box")
        with pytest.raises(PluginNotFound, match="Asked were: example"):
            it.host.storage("memory")


async def test_two_that_offer_one_storage_are_both_named(serving, write):
    async with serving() as it:
        await it.host.load(write("nkv_storage_box.py", STORAGE.format(name="box")))
        await it.host.load(write("other.py", STORAGE.format(name="box")))
        with pytest.raises(PluginInvalid, match="by nkv_storage_box and by other"):
            it.host.storage("box")
        await it.host.unload("other")
        assert it.host.storage("box")[1] == "nkv_storage_box"


async def test_a_storage_nobody_offers_is_told(serving):
    async with serving() as it:
        with pytest.raises(PluginNotFound, match="Asked were: none"):
            it.host.storage("box")


async def test_settings_without_a_type_are_as_they_were_given(serving, write):
    source = """
        from contextlib import asynccontextmanager
        from nkv_core import hookimpl

        @hookimpl
        @asynccontextmanager
        async def nkv_setup(ctx):
            ctx.handlers.add("/settings", lambda request: dict(ctx.settings))
            yield
    """
    async with serving({"plugin.free": {"a": 1, "t": {"x": 1, "y": 2}}}) as it:
        await it.host.load(write("free.py", source), {"b": 3, "t": {"y": 4}})
        assert await it.ask("/settings") == {"a": 1, "b": 3, "t": {"x": 1, "y": 4}}


async def test_the_list_is_json(serving, hello):
    async with serving() as it:
        await it.host.load(hello())
        assert b'"hello"' in msgspec.json.encode(it.host.plugins())
