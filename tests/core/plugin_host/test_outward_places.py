"""What plugins take from the node that reach outward: places, guards, and their predecessor."""

import anyio
import pytest

from nkv_core.errors import StartError, Unreachable
from nkv_core.events import Connect, Disconnect

pytestmark = pytest.mark.anyio

REACHES = """
    import anyio
    from nkv_core import hookimpl

    @hookimpl
    def nkv_transport(name):
        return Transport()

    class Transport:
        backends = frozenset({"asyncio", "trio"})
        features = frozenset()
        scheme = "test"

        async def serve(self, ctx, *, started, stop, deadline):
            self.lose = anyio.Event()
            ctx.handlers.add("/lose", lambda request: self.lose.set())
            started()
            try:
                with ctx.reach("broker.example", 4222):
                    async with anyio.create_task_group() as tasks:
                        for event in (stop, self.lose):
                            tasks.start_soon(self.until, event, tasks)
                    if self.lose.is_set():
                        raise ConnectionError("gone")
            except ConnectionError:
                await stop.wait()

        async def until(self, event, tasks):
            await event.wait()
            tasks.cancel_scope.cancel()
"""

LISTENS = """
    from contextlib import asynccontextmanager
    from nkv_core import hookimpl
    from nkv_core.contracts.context import TcpAddress

    @hookimpl
    @asynccontextmanager
    async def nkv_setup(ctx):
        await ctx.listen(TcpAddress("HOST", 0), guard="GUARD")
        yield
"""

SUCCEEDS = """
    from contextlib import asynccontextmanager
    from nkv_core import hookimpl

    @hookimpl
    @asynccontextmanager
    async def nkv_setup(ctx):
        async def wait():
            had = await ctx.predecessor_ended()
            await ctx.state.put(f"began.{ctx.owner.generation}", b"yes" if had else b"no")
        ctx.tasks.start_soon(wait)
        yield
        await ctx.state.put(f"ended.{ctx.owner.generation}", b"")
"""


async def test_a_place_that_is_reached_is_told_as_a_listener_is(serving, write):
    async with serving() as it:
        before = it.residue()
        await it.host.load(write("reaches.py", REACHES))
        (event,) = it.seen(Connect)
        assert event.url == "test://broker.example:4222"
        await it.ask("/lose")
        with anyio.fail_after(30):
            while not it.seen(Disconnect):
                await anyio.sleep(0.002)
        assert isinstance(it.seen(Disconnect)[0].error, Unreachable)
        assert "gone" in str(it.seen(Disconnect)[0].error)
        await it.host.unload("reaches")
        assert len(it.seen(Disconnect)) == 1
        assert it.residue() == before
        assert it.host._services.broker._reached == []


async def test_a_replacement_takes_a_place_over_without_a_disconnect(serving, write):
    async with serving() as it:
        await it.host.load(write("reaches.py", REACHES))
        await it.host.replace("reaches")
        await it.quiet()
        assert len(it.seen(Connect)) == 1
        assert it.seen(Disconnect) == []
        await it.host.unload("reaches")
        assert len(it.seen(Disconnect)) == 1
        assert it.seen(Disconnect)[0].error is None


@pytest.mark.parametrize(
    "case",
    [
        ("127.0.0.1", "nobody", False, True),
        ("127.0.0.1", "nobody", True, False),
        ("0.0.0.0", "nobody", False, False),
        ("0.0.0.0", "nobody", True, False),
        ("0.0.0.0", "own", False, True),
        ("127.0.0.1", "own", True, True),
        ("0.0.0.0", "tokens", True, True),
        ("0.0.0.0", "tokens", False, False),
    ],
)
async def test_who_guards_a_listener_decides_where_it_may_listen(serving, write, case):
    host, guard, tokens, allowed = case
    source = LISTENS.replace("HOST", host).replace("GUARD", guard)
    async with serving(authenticated=tokens) as it:
        if allowed:
            await it.host.load(write("listens.py", source))
        else:
            with pytest.raises(StartError, match="--insecure"):
                await it.host.load(write("listens.py", source))
    async with serving(authenticated=tokens, insecure=True) as it:
        await it.host.load(write("listens.py", source))


async def test_who_waits_for_the_predecessor_begins_once_nothing_of_it_is_left(serving, write):
    async with serving() as it:
        it.host.attach(it.keyspace, None)
        await it.host.load(write("succeeds.py", SUCCEEDS))
        state = it.keyspace.state("succeeds")
        with anyio.fail_after(30):
            while await state.get("began.1") is None:
                await anyio.sleep(0.002)
        await it.host.replace("succeeds")
        with anyio.fail_after(30):
            while await state.get("began.2") is None:
                await anyio.sleep(0.002)
        assert await state.get("began.1") == b"no"
        assert await state.get("began.2") == b"yes"
        assert list(state.values) == ["began.1", "ended.1", "began.2"]
