"""Meshes in the plugin host: put around the keyspace of a node that serves, and taken away."""

from contextlib import asynccontextmanager

import anyio
import pytest

from nkv_core.contracts.settings import KeyspaceSettings
from nkv_core.errors import (
    PluginExists,
    PluginInvalid,
    PluginNotFound,
    PluginSetupFailed,
    StartError,
)
from nkv_core.events import PeerDown, PeerUp
from nkv_core.keyspace import LocalKeyspace, WatchHub

pytestmark = pytest.mark.anyio

#: Passes everything on, and marks the values that are read through it.
MESH = """
    import anyio
    from nkv_core import PeerUp, PeerDown, hookimpl
    from nkv_core.contracts.mesh import Member

    class Through:
        backends = frozenset({backends})
        members = (Member("127.0.0.1:1", "self"),)
        ended = None

        def __getattr__(self, name):
            return getattr(self.within, name)

        async def get(self, key, options=None):
            record = await self.within.get(key)
            return None if record is None else type(record)(
                record.key, record.value + {mark!r}, record.revision, record.modified, record.origin
            )

        async def serve(self, ctx, keyspace, *, started, stop, goodbye, deadline):
            self.within = keyspace
            self.merger = ctx.merger
            ctx.handlers.add("/{mark_name}-fail", self.fail)
            self.failed = anyio.Event()
            {before}
            started()
            ctx.emit(PeerUp("127.0.0.1:2", 2, "two"))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.watch, tasks)
                await stop.wait()
                tasks.cancel_scope.cancel()
            ctx.emit(PeerDown("127.0.0.1:2", 2, "two", f"goodbye {{goodbye()}}"))

        async def watch(self, tasks):
            await self.failed.wait()
            raise ValueError("its own fault")

        def fail(self, request):
            self.failed.set()

        def status(self):
            return {{"members": 1}}

    @hookimpl
    def nkv_mesh(name, settings):
        return Through() if name == {name!r} else None
"""


def mesh(mark=b"!", name="through", before="pass", backends=("asyncio", "trio")):
    return MESH.format(mark=mark, mark_name=name, name=name, before=before, backends=list(backends))


@pytest.fixture
def within(serving):
    """As `serving`, with a keyspace in memory that has one record, `a`."""

    @asynccontextmanager
    async def start():
        async with serving() as it:
            await it.host.load("nkv_storage_memory")
            keyspace = LocalKeyspace(it.host.storage("memory")[0], KeyspaceSettings(), node_id=7)
            await keyspace.open()
            try:
                hub = WatchHub(keyspace)
                await it.tasks.start(hub.run)
                it.host.attach(keyspace, hub)
                for event in (PeerUp, PeerDown):
                    it.dispatcher.on(event, it.events.append)
                it.keyspace = keyspace
                await keyspace.put("a", b"1")
                yield it
                await it.host.unload_all()
            finally:
                with anyio.CancelScope(shield=True):
                    await keyspace.aclose()

    return start


READS = """
    from nkv_core import hookimpl

    @hookimpl
    def nkv_handlers(handlers):
        handlers.add("/a", read)

    async def read(request):
        return (await request.keyspace.get("a")).value
"""


async def test_a_mesh_is_put_around_and_taken_away_and_says_goodbye_only_then(within, write):
    one = write("nkv_mesh_through.py", mesh(b"!"))
    reads = write("reads.py", READS)
    async with within() as it:
        await it.host.load(reads)
        assert await it.ask("/a") == b"1"
        await it.host.load(one)
        assert await it.ask("/a") == b"1!"
        assert it.host.mesh.status() == {"members": 1}
        await it.host.replace("nkv_mesh_through")
        await it.quiet()
        assert await it.ask("/a") == b"1!"
        assert [event.reason for event in it.seen(PeerDown)] == ["goodbye False"]
        await it.host.unload("nkv_mesh_through")
        assert await it.ask("/a") == b"1"
        assert it.host.mesh is None
        assert it.seen(PeerDown)[-1].reason == "goodbye True"
        assert len(it.seen(PeerUp)) == 2


async def test_under_load_no_request_fails_while_a_mesh_comes_is_replaced_and_goes(within, write):
    path = write("nkv_mesh_through.py", mesh(b"!"))
    reads = write("reads.py", READS)
    async with within() as it:
        await it.host.load(reads)
        answers = set()
        count = 0
        done = anyio.Event()

        async def ask():
            nonlocal count
            while not done.is_set():
                answers.add(await it.ask("/a"))
                count += 1
                await anyio.sleep(0)

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(ask)
            for _ in range(5):
                await it.host.load(path)
                await it.host.replace("nkv_mesh_through")
                await it.host.unload("nkv_mesh_through")
            done.set()
        assert answers == {b"1", b"1!"}
        assert count > 100


async def test_a_keyspace_that_a_request_began_with_works_after_its_mesh_has_gone(within, write):
    path = write("nkv_mesh_through.py", mesh(b"!"))
    async with within() as it:
        await it.host.load(path)
        kept = it.dispatcher.keyspace
        await it.host.unload("nkv_mesh_through")
        assert (await kept.get("a")).value == b"1!"


async def test_a_node_has_one_mesh(within, write):
    one = write("nkv_mesh_through.py", mesh())
    two = write("nkv_mesh_other.py", mesh(name="other"))
    async with within() as it:
        await it.host.load(one)
        with pytest.raises(PluginExists, match="nkv plugins unload nkv_mesh_through"):
            await it.host.load(two)
        await it.host.unload("nkv_mesh_through")
        await it.host.load(two)
        assert (await it.dispatcher.keyspace.get("a")).value == b"1!"


async def test_a_mesh_that_fails_by_itself_is_taken_away(within, write):
    path = write("nkv_mesh_through.py", mesh())
    async with within() as it:
        await it.host.load(path)
        await it.ask("/through-fail")
        with anyio.fail_after(30):
            while it.host.mesh is not None:
                await anyio.sleep(0.002)
        assert (await it.dispatcher.keyspace.get("a")).value == b"1"
        (info,) = [one for one in it.host.plugins() if one.name == "nkv_mesh_through"]
        assert info.state == "failed"
        assert "its own fault" in info.error


async def test_a_mesh_that_cannot_start_changes_nothing(within, write):
    wrong = write(
        "nkv_mesh_through.py",
        mesh(before="from nkv_core.errors import StartError; raise StartError('no secret')"),
    )
    async with within() as it:
        with pytest.raises(StartError, match="no secret"):
            await it.host.load(wrong)
        assert it.dispatcher.keyspace is it.keyspace
        assert not it.seen(PeerUp)


async def test_a_mesh_says_on_which_backends_it_runs(within, write):
    path = write("nkv_mesh_through.py", mesh(backends=("curio",)))
    async with within() as it:
        with pytest.raises(PluginSetupFailed, match="The mesh through does not run on"):
            await it.host.load(path)


async def test_a_plugin_is_a_mesh_or_a_transport(within, write):
    both = """
        from nkv_core import hookimpl

        @hookimpl
        def nkv_mesh(name):
            return None

        @hookimpl
        def nkv_transport(name):
            return None
    """
    async with within() as it:
        with pytest.raises(PluginInvalid, match="a transport and a mesh"):
            await it.host.load(write("both.py", both))


MERGERS = """
    from nkv_core import hookimpl

    class Longer:
        def merge(self, ours, theirs):
            return max(ours, theirs, key=lambda record: len(record.value))

    @hookimpl
    def nkv_merger(name):
        return Longer() if name == "longer" else None
"""


async def test_mergers_are_found_by_name_among_the_plugins(within, write):
    path = write("nkv_mesh_through.py", mesh())
    mergers, others = write("mergers.py", MERGERS), write("others.py", MERGERS)
    async with within() as it:
        await it.host.load(path)
        merger = it.host.mesh.merger
        with pytest.raises(PluginNotFound, match="merger called longer"):
            merger("longer")
        await it.host.load(mergers)
        assert type(merger("longer")).__name__ == "Longer"
        with pytest.raises(PluginNotFound):
            merger("shorter")
        await it.host.load(others)
        with pytest.raises(PluginInvalid, match="offered twice, by mergers and by others"):
            merger("longer")
        await it.host.unload("others")
        await it.host.unload("mergers")
        with pytest.raises(PluginNotFound):
            merger("longer")
