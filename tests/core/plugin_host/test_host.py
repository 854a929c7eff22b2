"""Loading, replacing and unloading, where all goes well."""

import gc
import hashlib
import os
import sys
import threading
from pathlib import Path

import anyio
import pytest

from nkv_core.errors import (
    NoHandler,
    PluginExists,
    PluginInUse,
    PluginInvalid,
    PluginNotFound,
    PluginSetupFailed,
    StartError,
)
from nkv_core.events import PluginLoaded, PluginUnloaded
from nkv_core.plugin_host import discovery

pytestmark = pytest.mark.anyio


def count_objects():
    """All objects but trio's deadlines, which stay in its heap until it has a thousand too many."""

    def of_the_heap(value):
        if type(value) is tuple:
            value = value[-1] if value else None
        return type(value).__qualname__ == "CancelScope"

    return sum(not of_the_heap(value) for value in gc.get_objects())


async def test_a_file_is_loaded_replaced_and_unloaded(serving, hello):
    async with serving() as it:
        before = it.residue()
        info = await it.host.load(hello("one"))
        assert (info.name, info.state, info.generation) == ("hello", "active", 1)
        assert info.kinds == ("handlers",)
        assert info.section == "plugin.hello"
        assert await it.ask("/hello") == "one"

        hello("two")
        assert (await it.host.replace("hello")).generation == 2
        assert await it.ask("/hello") == "two"

        await it.host.unload("hello")
        assert isinstance(await it.ask("/hello"), NoHandler)
        assert [(e.name, e.generation) for e in it.seen(PluginLoaded)] == [
            ("hello", 1),
            ("hello", 2),
        ]
        assert {e.generation for e in it.seen(PluginUnloaded)} == {1, 2}
        assert it.residue() == before


async def test_same_second_rewrite_runs_new_code(serving, hello):
    async with serving() as it:
        path = hello("one")
        stamp = Path(path).stat()
        await it.host.load(path)
        for answer in ("two", "six", "ten"):  # of the same size and time
            hello(answer)
            os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
            await it.host.replace("hello")
            assert await it.ask("/hello") == answer


async def test_helper_is_per_generation(serving, write):
    init = """
        from nkv_core import hookimpl
        from . import helper
        from .below.deep import WORD

        @hookimpl
        def nkv_handlers(handlers):
            handlers.add("/hello", lambda request: helper.text() + WORD)
    """
    write("greet/below/deep.py", "WORD = ' deep'")
    write("greet/helper.py", "def text():\n    from .late import TEXT\n    return TEXT")
    write("greet/late.py", "TEXT = 'one'")
    folder = write("greet/__init__.py", init).removesuffix("/__init__.py")
    async with serving() as it:
        info = await it.host.load(folder)
        write("greet/late.py", "TEXT = 'two'")
        assert await it.ask("/hello") == "one deep"  # read when it was loaded, imported just now
        changed = await it.host.replace("greet")
        assert changed.sha256 != info.sha256
        assert await it.ask("/hello") == "two deep"
        await it.host.unload("greet")
        assert not [name for name in sys.modules if name.startswith(("greet", "helper"))]


async def test_nothing_compiled_is_left_on_disk(serving, hello, tmp_path):
    async with serving() as it:
        await it.host.load(hello())
        assert not list(tmp_path.rglob("*.pyc"))


async def test_the_sum_of_a_file_is_what_sha256sum_prints(serving, hello):
    async with serving() as it:
        path = hello()
        info = await it.host.load(path)
        assert info.sha256 == hashlib.sha256(Path(path).read_bytes()).hexdigest()


async def test_a_module_and_an_entry_point_are_loaded(serving, write, monkeypatch, tmp_path):
    source = """
        from nkv_core import hookimpl

        @hookimpl
        def nkv_handlers(handlers):
            handlers.add("/far", lambda request: __name__)
    """
    write("around/far_plugin/__init__.py", source)
    write("around/__init__.py", "raise RuntimeError('never imported')")
    write(
        "far_dist-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: far-dist\nVersion: 1.0\n"
    )
    write(
        "far_dist-1.0.dist-info/entry_points.txt",
        "[nkv.plugins]\nfar = around.far_plugin\nbroken = no_such_module\n",
    )
    monkeypatch.syspath_prepend(tmp_path / "plugins")
    async with serving() as it:
        assert {"far", "broken"} <= set(it.host.available())
        info = await it.host.load("far")
        assert info.name == "far_plugin"
        assert (await it.ask("/far")).startswith("far_plugin@")
        with pytest.raises(PluginExists, match="nkv plugins replace far_plugin"):
            await it.host.load("around.far_plugin")
        await it.host.replace("far_plugin", "around.far_plugin")
        assert "around" not in sys.modules


async def test_another_spec_of_the_same_name_can_replace(serving, hello):
    async with serving() as it:
        await it.host.load(hello("one"))
        await it.host.replace("hello", hello("two", "other/hello.py"))
        assert await it.ask("/hello") == "two"
        with pytest.raises(PluginInvalid, match="cannot replace hello"):
            await it.host.replace("hello", hello("three", "third.py"))
        assert await it.ask("/hello") == "two"


async def test_what_is_loaded_is_not_loaded_twice(serving, hello):
    async with serving() as it:
        await it.host.load(hello())
        with pytest.raises(PluginExists):
            await it.host.load(hello())


async def test_unloading_twice_is_told(serving, hello):
    async with serving() as it:
        await it.host.load(hello())
        await it.host.unload("hello")
        with pytest.raises(PluginNotFound, match="Loaded are: none"):
            await it.host.unload("hello")


async def test_what_is_held_is_neither_unloaded_nor_replaced(serving, hello):
    async with serving() as it:
        await it.host.load(hello())
        it.host.hold("hello", "it is needed; do this instead.")
        for call in (it.host.unload, it.host.replace):
            with pytest.raises(PluginInUse, match="do this instead"):
                await call("hello")
        assert it.host.plugins()[0].in_use == "it is needed; do this instead."
        assert await it.ask("/hello") == "one"
        it.host.release("hello")
        await it.host.unload("hello")


async def test_order_survives_replace(serving, write):
    heard = []
    sys.modules["heard_by_tests"] = type(sys)("heard_by_tests")
    sys.modules["heard_by_tests"].heard = heard
    source = """
        from nkv_core import hookimpl
        from heard_by_tests import heard

        @hookimpl(priority={priority})
        def nkv_request_start(event):
            heard.append("{name}{generation}")
    """
    try:
        async with serving() as it:
            for name, priority in (("a", 0), ("b", 0), ("c", -1)):
                text = source.format(name=name, priority=priority, generation=1)
                await it.host.load(write(f"{name}.py", text))
            await it.ask("/none")
            assert heard == ["c1", "a1", "b1"]
            heard.clear()
            write("a.py", source.format(name="a", priority=0, generation=2))
            await it.host.replace("a")
            await it.ask("/none")
            assert heard == ["c1", "a2", "b1"]
    finally:
        del sys.modules["heard_by_tests"]


async def test_inflight_finishes_on_pinned_generation(serving, write):
    source = """
        import anyio
        from nkv_core import hookimpl

        GATE = anyio.Event()

        @hookimpl
        def nkv_handlers(handlers):
            handlers.add("/slow", slow)
            handlers.add("/open", open_gate)

        async def slow(request):
            await GATE.wait()
            return {generation}

        def open_gate(request):
            GATE.set()
    """
    path = write("slow.py", source.format(generation=1))
    async with serving() as it:
        await it.host.load(path)
        gate = it.host._slots["slow"].generation._handlers.routes[1].target
        outcomes = []

        async def one(began_in):
            outcomes.append((began_in, await it.ask("/slow")))

        async with anyio.create_task_group() as tasks:
            for _ in range(5000):
                tasks.start_soon(one, 1)
            await anyio.wait_all_tasks_blocked()
            write("slow.py", source.format(generation=2))
            await it.host.replace("slow")
            states = [(i.generation, i.state) for i in it.host.plugins()]
            assert states == [(2, "active"), (1, "draining")]
            for _ in range(5000):
                tasks.start_soon(one, 2)
            await anyio.wait_all_tasks_blocked()
            assert outcomes == []
            await it.ask("/open")
            gate(None)
        assert sorted(outcomes) == 5000 * [(1, 1)] + 5000 * [(2, 2)]


async def test_route_swap_no_404(serving, hello):
    over, asked = anyio.Event(), []

    async def ask():
        while not over.is_set():
            asked.append(await it.ask("/hello"))
            await anyio.sleep(0.0005)

    async with serving() as it, anyio.create_task_group() as tasks:
        await it.host.load(hello("answer"))
        for _ in range(4):
            tasks.start_soon(ask)
        for _ in range(200):
            await it.host.replace("hello")
        over.set()
    assert len(asked) > 200
    assert set(asked) == {"answer"}


async def test_extension_modules_that_a_plugin_imports_stay_and_its_own_classes_go(serving, write):
    source = """
        import _sqlite3
        import msgspec
        from nkv_core import hookimpl

        class Point(msgspec.Struct):
            x: int

        @hookimpl
        def nkv_handlers(handlers):
            handlers.add("/point", point)

        def point(request):
            data = msgspec.json.encode(Point({x}))
            return msgspec.json.decode(data, type=Point).x, id(_sqlite3.connect)
    """
    async with serving() as it:
        before = it.residue()
        path = write("compiled.py", source.format(x=1))
        await it.host.load(path)
        first, connect = await it.ask("/point")
        write("compiled.py", source.format(x=2))
        await it.host.replace("compiled")
        assert (first, await it.ask("/point")) == (1, (2, connect))
        await it.host.unload("compiled")
        assert it.host.plugins() == []
        assert it.residue() == before


async def test_unloading_under_a_thousand_requests_lets_them_finish(serving, write):
    source = """
        import anyio
        from nkv_core import hookimpl

        @hookimpl
        def nkv_handlers(handlers):
            handlers.add("/slow", slow)

        async def slow(request):
            await anyio.sleep(0.2)
            return "whole"
    """
    async with serving() as it:
        before = it.residue()
        await it.host.load(write("slow.py", source))
        outcomes = []

        async def one():
            outcomes.append(await it.ask("/slow"))

        async with anyio.create_task_group() as tasks:
            for _ in range(1000):
                tasks.start_soon(one)
            await anyio.wait_all_tasks_blocked()
            await it.host.unload("slow")
        assert outcomes == ["whole"] * 1000
        assert it.residue() == before


async def test_requests_that_outlive_the_deadline_are_cut(serving, write):
    source = """
        import anyio
        from nkv_core import hookimpl

        @hookimpl
        def nkv_handlers(handlers):
            handlers.add("/stuck", stuck)

        async def stuck(request):
            await anyio.sleep_forever()
    """
    async with serving(drain_deadline=0.1) as it:
        before = it.residue()
        await it.host.load(write("stuck.py", source))
        outcomes = []

        async def one():
            outcomes.append(await it.ask("/stuck"))

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(one)
            await anyio.wait_all_tasks_blocked()
            await it.host.unload("stuck")
        assert [outcome.code for outcome in outcomes] == ["stopping"] * 10
        assert it.residue() == before


async def test_a_third_generation_ends_the_one_that_drains(serving, write):
    source = """
        import anyio
        from nkv_core import hookimpl

        @hookimpl
        def nkv_handlers(handlers):
            handlers.add("/stuck", stuck)

        async def stuck(request):
            await anyio.sleep_forever()
    """
    async with serving(drain_deadline=30.0) as it:
        await it.host.load(write("stuck.py", source))
        outcomes = []

        async def one():
            outcomes.append(await it.ask("/stuck"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one)
            await anyio.wait_all_tasks_blocked()
            await it.host.replace("stuck")
            assert outcomes == []
            await it.host.replace("stuck")
            assert [outcome.code for outcome in outcomes] == ["stopping"]
        live = [i for i in it.host.plugins() if i.state in ("active", "draining")]
        assert len(live) <= 2
        assert live[0].generation == 3


async def test_two_replacements_at_once_both_take_their_turn(serving, hello):
    async with serving() as it:
        await it.host.load(hello())
        hello("two")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(it.host.replace, "hello")
            tasks.start_soon(it.host.replace, "hello")
        assert it.host.plugins()[0].generation == 3
        assert await it.ask("/hello") == "two"


async def test_old_generation_collected(serving, write, settled):
    source = """
        import logging
        from contextlib import asynccontextmanager
        from nkv_core import hookimpl
        from .helper import Thing

        log = logging.getLogger(__name__)

        @hookimpl
        @asynccontextmanager
        async def nkv_setup(ctx):
            thing = Thing(ctx)
            yield
            thing.end()

        @hookimpl
        def nkv_handlers(handlers):
            handlers.add("/thing", lambda request: "thing")

        @hookimpl
        def nkv_request_end(event):
            pass
    """
    helper = """
        class Thing:
            def __init__(self, ctx):
                self.ctx = ctx
                self.itself = self

            def end(self):
                self.ended = True
    """
    write("grow/helper.py", helper)
    folder = write("grow/__init__.py", source).removesuffix("/__init__.py")

    async def closed():
        while len(it.host.plugins()) > 1:
            await anyio.sleep(0.002)
        await settled()

    async with serving() as it:
        await it.host.load(folder)

        async def replace(times):
            for _ in range(times):
                await it.host.replace("grow")
                assert await it.ask("/thing") == "thing"
            await closed()

        await replace(20)
        residue, objects = it.residue(), count_objects()
        await replace(300)
        after = it.residue()
        assert count_objects() - objects < 100  # less than one for every second
        for key in ("modules", "loggers", "lines", "routes", "hooks"):
            assert len(after[key]) == len(residue[key]), key
        assert (after["tasks"], after["finders"]) == (residue["tasks"], residue["finders"])


async def test_stopping_the_host_unloads_everything(serving, write):
    source = """
        from contextlib import asynccontextmanager
        from pathlib import Path
        import anyio
        from nkv_core import hookimpl

        @hookimpl
        @asynccontextmanager
        async def nkv_setup(ctx):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.sleep_forever)
                try:
                    yield
                finally:
                    await anyio.sleep(0.01)
                    Path(__file__).with_suffix(".left").touch()
                    tasks.cancel_scope.cancel()
    """
    async with serving() as it:
        path = write("orderly.py", source)
        await it.host.load(path)
        it.host.hold("orderly", "it matters.")
    assert Path(path).with_suffix(".left").exists()
    assert it.residue()["modules"] == []
    with pytest.raises(StartError, match="does not run"):
        await it.host.load(path)


async def test_a_cancelled_load_leaves_nothing(serving, write):
    source = """
        from contextlib import asynccontextmanager
        import anyio
        from nkv_core import hookimpl

        @hookimpl
        @asynccontextmanager
        async def nkv_setup(ctx):
            ctx.tasks.start_soon(anyio.sleep_forever)
            await anyio.sleep_forever()
            yield
    """
    async with serving() as it:
        before = it.residue()
        with anyio.move_on_after(0.2):
            await it.host.load(write("never.py", source))
        assert it.residue() == before


async def test_listing_costs_nothing_to_the_plugins(serving, hello):
    async with serving() as it:
        assert it.host.plugins() == []
        await it.host.load(hello())
        (info,) = it.host.plugins()
        assert (info.spec.endswith("hello.py"), info.error, info.quarantined) == (True, None, ())
        assert info.loaded_at > 1_600_000_000_000


async def test_a_load_cancelled_while_it_waits_for_the_last_generation_leaves_nothing(
    serving, write
):
    source = """
        import anyio
        from nkv_core import hookimpl

        @hookimpl
        def nkv_handlers(handlers):
            handlers.add("/stuck", stuck)

        async def stuck(request):
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.5)
    """
    async with serving(drain_deadline=30.0) as it:
        await it.host.load(write("stuck.py", source))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(it.ask, "/stuck")
            await anyio.wait_all_tasks_blocked()
            await it.host.replace("stuck")
            before = it.residue()["hooks"]
            waiting = anyio.CancelScope()

            async def replace():
                with waiting:
                    await it.host.replace("stuck")

            tasks.start_soon(replace)
            while it.residue()["hooks"] == before:
                await anyio.sleep(0.001)
            waiting.cancel()
        await it.quiet()
        assert [(i.generation, i.state) for i in it.host.plugins()] == [(2, "active")]
        residue = it.residue()
        assert len(residue["hooks"]) == len(residue["modules"]) == residue["finders"] == 1


async def test_stopping_does_not_wait_for_what_may_have_leaked(serving, write):
    kept = type(sys)("kept_by_tests")
    sys.modules["kept_by_tests"] = kept
    source = """
        import kept_by_tests
        from nkv_core import hookimpl

        @hookimpl
        def nkv_handlers(handlers):
            kept_by_tests.function = nkv_handlers
    """
    try:
        async with serving() as it:
            await it.host.load(write("leaky.py", source))
            await it.host.replace("leaky")
            await it.host.unload_all()
            assert it.host.plugins() == []
            assert len(it.seen(PluginUnloaded)) == 2
    finally:
        del sys.modules["kept_by_tests"]


async def test_a_search_that_takes_too_long_is_given_up(serving, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(discovery, "find", lambda spec: gate.wait())
    async with serving(setup_deadline=0.1) as it:
        with pytest.raises(PluginSetupFailed, match="Looking for any took longer"):
            await it.host.load("any")
        gate.set()
