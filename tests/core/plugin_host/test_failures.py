"""Plugins that fail, at every step: named, with the place, and nothing is changed."""

import gc
import sys
import threading
from pathlib import Path

import anyio
import pytest

from nkv_core.errors import (
    PluginInvalid,
    PluginNotFound,
    PluginSetupFailed,
    RouteTaken,
    SettingsError,
    UntrustedFile,
)
from nkv_core.events import PluginFailed

pytestmark = pytest.mark.anyio

HEAD = """
import anyio, msgspec
from contextlib import asynccontextmanager
from nkv_core import hookimpl
"""

#: What is wrong, the plugin, the error, and a part of its text.
FAILING = [
    ("syntax error", "def (:\n", PluginInvalid, r"SyntaxError.*bad\.py:5\)"),
    ("null byte", "x = 1\0\n", PluginInvalid, "bad"),
    ("exception", "print(1 / 0)\n", PluginInvalid, r"ZeroDivisionError.*bad\.py:5\)"),
    ("exit", "raise SystemExit(3)\n", PluginInvalid, r"SystemExit: 3 .*bad\.py:5\)"),
    ("interrupt", "raise KeyboardInterrupt\n", PluginInvalid, "KeyboardInterrupt"),
    (
        "missing import",
        "import no_such_library.part\n",
        PluginInvalid,
        r"needs no_such_library: pip install no_such_library.*bad\.py:5\)",
    ),
    ("no hook", "x = 1\n", PluginInvalid, "implements no hook"),
    (
        "wrong signature",
        "@hookimpl\ndef nkv_request_start(evnt): pass\n",
        PluginInvalid,
        r"nkv_request_start takes evnt.*is given event \(.*bad\.py:5\)",
    ),
    (
        "keyword only",
        "@hookimpl\ndef nkv_request_start(*, event): pass\n",
        PluginInvalid,
        "by position",
    ),
    (
        "misspelled",
        "@hookimpl\ndef nkv_request_strat(event): pass\n",
        PluginInvalid,
        r"no hook nkv_request_strat \(.*bad\.py:5\)\. Did you mean nkv_request_start\?",
    ),
    ("unknown", "@hookimpl\ndef zzz(event): pass\n", PluginInvalid, "no hook zzz.*There are:"),
    (
        "not marked",
        "def nkv_request_start(event): pass\n@hookimpl\ndef nkv_handlers(handlers): pass\n",
        PluginInvalid,
        r"nkv_request_start lacks @hookimpl \(.*bad\.py:5\)",
    ),
    (
        "async where plain is due",
        "@hookimpl\nasync def nkv_handlers(handlers): pass\n",
        PluginInvalid,
        "nkv_handlers must be a plain function",
    ),
    (
        "twice",
        "@hookimpl\ndef nkv_storage(name): pass\n"
        "@hookimpl(specname='nkv_storage')\ndef other(name): pass\n",
        PluginInvalid,
        "nkv_storage twice",
    ),
    (
        "wrapper",
        "import pluggy\n@pluggy.HookimplMarker('nkv')(wrapper=True)\n"
        "def nkv_handlers(handlers): yield\n",
        PluginInvalid,
        "cannot be a wrapper",
    ),
    (
        "settings that raise",
        "@hookimpl\ndef nkv_settings(): raise ValueError('no')\n",
        PluginSetupFailed,
        r"ValueError: no .*bad\.py:6\)",
    ),
    (
        "settings of no type",
        "@hookimpl\ndef nkv_settings(): return 3\n",
        PluginSetupFailed,
        "must return a type",
    ),
    (
        "unknown setting",
        "class S(msgspec.Struct): size: int = 1\n@hookimpl\ndef nkv_settings(): return S\n",
        SettingsError,
        "plugin.bad.sise",
    ),
    (
        "exception in setup",
        "@hookimpl\n@asynccontextmanager\nasync def nkv_setup(ctx):\n"
        "    ctx.tasks.start_soon(anyio.sleep_forever)\n"
        "    ctx.handlers.add('/early', print)\n"
        "    raise OSError('no luck')\n    yield\n",
        PluginSetupFailed,
        r"nkv_setup: OSError: no luck \(.*bad\.py:10\)",
    ),
    (
        "setup without yield",
        "@hookimpl\nasync def nkv_setup(ctx): pass\n",
        PluginSetupFailed,
        "one `yield`",
    ),
    (
        "setup that hangs",
        "@hookimpl\n@asynccontextmanager\nasync def nkv_setup(ctx):\n"
        "    async with anyio.create_task_group() as tasks:\n"
        "        tasks.start_soon(anyio.sleep_forever)\n"
        "        ctx.tasks.start_soon(anyio.sleep_forever)\n"
        "        await anyio.sleep_forever()\n        yield\n",
        PluginSetupFailed,
        "nkv_setup took longer than 2 s",
    ),
    (
        "a task that raises during setup",
        "async def task(): raise OSError('broken')\n"
        "@hookimpl\nasync def nkv_setup(ctx):\n"
        "    ctx.tasks.start_soon(task)\n    await anyio.sleep_forever()\n    yield\n",
        PluginSetupFailed,
        r"OSError: broken \(.*bad\.py:5\)",
    ),
    (
        "exception in nkv_handlers",
        "@hookimpl\ndef nkv_handlers(handlers):\n    handlers.add('/one', print)\n    None.x\n",
        PluginSetupFailed,
        r"nkv_handlers: AttributeError.*bad\.py:8\)",
    ),
    (
        "no path",
        "@hookimpl\ndef nkv_handlers(handlers): handlers.add('one', print)\n",
        PluginInvalid,
        "slash",
    ),
    (
        "path taken",
        "@hookimpl\n@asynccontextmanager\nasync def nkv_setup(ctx):\n"
        "    ctx.tasks.start_soon(anyio.sleep_forever)\n    yield\n"
        "@hookimpl\ndef nkv_handlers(handlers):\n"
        "    handlers.add('/free', print)\n    handlers.add('/hello', print)\n",
        RouteTaken,
        "/hello.* is taken by hello.*bad cannot",
    ),
    (
        "a listener of two things",
        "@hookimpl\ndef nkv_request_end(event, other=None): pass\n"
        "@hookimpl\ndef nkv_transport(name): raise OSError('no transport')\n",
        PluginSetupFailed,
        "no transport",
    ),
    (
        "no transport of that name",
        "@hookimpl\ndef nkv_transport(name): return None\n",
        PluginSetupFailed,
        "no transport called bad",
    ),
    (
        "a transport for another backend",
        "class T:\n    backends = frozenset({'curio'})\n    features = frozenset()\n"
        "    scheme = 'test'\n"
        "@hookimpl\ndef nkv_transport(name): return T()\n",
        PluginSetupFailed,
        "does not run on (asyncio|trio), only on curio",
    ),
    (
        "a transport that raises",
        "class T:\n    backends = frozenset({'asyncio', 'trio'})\n    features = frozenset()\n"
        "    scheme = 'test'\n"
        "    async def serve(self, ctx, *, started, stop, deadline):\n"
        "        from nkv_core.contracts.context import TcpAddress\n"
        "        await ctx.listen(TcpAddress('127.0.0.1', 0))\n"
        "        raise OSError('dead')\n"
        "@hookimpl\ndef nkv_transport(name): return T()\n",
        PluginSetupFailed,
        "OSError: dead",
    ),
    (
        "a transport that never starts",
        "class T:\n    backends = frozenset({'asyncio', 'trio'})\n    features = frozenset()\n"
        "    scheme = 'test'\n"
        "    async def serve(self, ctx, *, started, stop, deadline):\n"
        "        from nkv_core.contracts.context import TcpAddress\n"
        "        await ctx.listen(TcpAddress('127.0.0.1', 0))\n"
        "        await anyio.sleep_forever()\n"
        "@hookimpl\ndef nkv_transport(name): return T()\n",
        PluginSetupFailed,
        "starting its transport took longer",
    ),
    (
        "a transport that ends at once",
        "class T:\n    backends = frozenset({'asyncio', 'trio'})\n    features = frozenset()\n"
        "    scheme = 'test'\n"
        "    async def serve(self, ctx, *, started, stop, deadline): started()\n"
        "@hookimpl\ndef nkv_transport(name): return T()\n",
        PluginSetupFailed,
        "ended by itself",
    ),
]


@pytest.fixture(params=FAILING, ids=[case[0] for case in FAILING])
def failing(request):
    return request.param


def deadline_for(what):
    return 2.0 if "hangs" in what or "never" in what else 20.0


async def test_a_load_that_fails_changes_nothing(serving, write, hello, failing):
    what, text, error, told = failing
    sections = {"plugin.bad": {"sise": 2}} if what == "unknown setting" else {}
    async with serving(sections, setup_deadline=deadline_for(what)) as it:
        await it.host.load(hello())
        before = it.residue()
        with pytest.raises(error, match=told) as caught:
            await it.host.load(write("bad.py", HEAD + text))
        assert "@" not in str(caught.value).replace("@hookimpl", "")
        assert it.residue() == before
        assert await it.ask("/hello") == "one"
        (event,) = it.seen(PluginFailed)
        assert (event.name, event.error) == ("bad", caught.value)


async def test_a_replacement_that_fails_leaves_the_old_one_serving(serving, write, hello, failing):
    what, text, error, told = failing
    sections = {}
    good = (
        HEAD
        + "@hookimpl\ndef nkv_handlers(handlers): handlers.add('/good', lambda request: 'good')"
    )
    async with serving(sections, setup_deadline=deadline_for(what)) as it:
        await it.host.load(hello())
        await it.host.load(write("bad.py", good))
        before = it.residue()
        if what == "unknown setting":
            sections["plugin.bad"] = {"sise": 2}
        write("bad.py", HEAD + text)
        with pytest.raises(error, match=told):
            await it.host.replace("bad")
        assert it.residue() == before
        assert await it.ask("/good") == "good"
        bad = it.host.plugins()[1]
        assert (bad.state, bad.generation) == ("active", 1)
        assert "its replacement failed" in bad.error
        write("bad.py", good)
        sections.clear()
        assert (await it.host.replace("bad")).error is None


async def test_code_that_hangs_when_executed_is_named_and_let_go(serving, write):
    gate = threading.Event()
    sys.modules["gate_of_tests"] = gate
    try:
        async with serving(setup_deadline=1.0) as it:
            before = it.residue()
            path = write("hangs.py", "import gate_of_tests\ngate_of_tests.wait()\n")
            with pytest.raises(PluginSetupFailed, match=r"executing it took.*hangs\.py:2"):
                await it.host.load(path)
            gate.set()
            for thread in threading.enumerate():
                if thread.name == "nkv load hangs":
                    thread.join(5)
            assert it.residue() == before
    finally:
        del sys.modules["gate_of_tests"]


async def test_a_task_that_dies_fails_the_plugin_and_takes_its_handlers(serving, write):
    source = """
        from contextlib import asynccontextmanager
        import anyio
        from nkv_core import hookimpl

        GO = anyio.Event()

        @hookimpl
        @asynccontextmanager
        async def nkv_setup(ctx):
            ctx.tasks.start_soon(task)
            yield

        async def task():
            await GO.wait()
            raise OSError("the end")

        @hookimpl
        def nkv_handlers(handlers):
            handlers.add("/go", lambda request: GO.set())
    """
    async with serving() as it:
        before = it.residue()
        path = write("dies.py", source)
        await it.host.load(path)
        await it.ask("/go")
        while not it.seen(PluginFailed):
            await anyio.sleep(0.001)
        (info,) = it.host.plugins()
        assert info.state == "failed"
        assert "a task of its own: OSError: the end" in info.error
        assert (await it.ask("/go")).code == "no_handler"
        assert (await it.host.replace("dies")).state == "active"
        await it.ask("/go")
        while len(it.seen(PluginFailed)) < 2:
            await anyio.sleep(0.001)
        await it.host.unload("dies")
        await it.quiet()
        assert it.residue() == before
        with pytest.raises(PluginNotFound):
            await it.host.unload("dies")


async def test_an_error_in_closing_is_told_and_stops_nothing(serving, write, caplog):
    source = """
        from contextlib import asynccontextmanager
        from nkv_core import hookimpl

        @hookimpl
        @asynccontextmanager
        async def nkv_setup(ctx):
            yield
            raise OSError("cannot close")
    """
    async with serving() as it:
        before = it.residue()
        await it.host.load(write("closes.py", source))
        await it.host.unload("closes")
        assert "closing: OSError: cannot close" in caplog.text
        assert it.residue() == before


async def test_closing_that_hangs_is_cut_at_its_deadline(serving, write, caplog):
    source = """
        from contextlib import asynccontextmanager
        import anyio
        from nkv_core import hookimpl

        @hookimpl
        async def nkv_setup(ctx):
            yield
            await anyio.sleep_forever()
    """
    async with serving(close_deadline=0.1) as it:
        before = it.residue()
        await it.host.load(write("closes.py", source))
        await it.host.unload("closes")
        assert "did not close in time" in caplog.text
        assert it.residue() == before


async def test_a_task_that_ignores_its_end_is_named_and_everything_else_undone(
    serving, write, caplog
):
    source = """
        from contextlib import asynccontextmanager
        import anyio
        from nkv_core import hookimpl

        GO = anyio.Event()

        @hookimpl
        @asynccontextmanager
        async def nkv_setup(ctx):
            ctx.tasks.start_soon(deaf)
            yield

        async def deaf():
            with anyio.CancelScope(shield=True):
                await GO.wait()

        @hookimpl
        def nkv_handlers(handlers):
            handlers.add("/go", lambda request: GO)
    """
    async with serving(close_deadline=0.1) as it:
        await it.host.load(write("deaf.py", source))
        await anyio.wait_all_tasks_blocked()
        gate = await it.ask("/go")
        await it.host.unload("deaf")
        assert "does not end" in caplog.text
        (info,) = it.host.plugins()
        assert info.state == "leaked"
        residue = it.residue()
        assert (residue["routes"], residue["hooks"], residue["modules"]) == ([], [], [])
        gate.set()
        del gate
        while it.host.plugins():
            await anyio.sleep(0.01)
            gc.collect()


@pytest.fixture(params=["looked at", "set aside"])
def set_aside(request):
    """Has the collector look no more at what there is, as it does in a process that serves."""
    yield gc.freeze if request.param == "set aside" else lambda: None
    gc.unfreeze()


async def test_what_goes_is_gone_whatever_the_collector_has_set_aside(serving, write, set_aside):
    source = """
        from nkv_core import hookimpl

        class Thing:
            pass

        @hookimpl
        def nkv_handlers(handlers):
            handlers.add("/thing", lambda request: repr(Thing()))
    """
    async with serving() as it:
        await it.host.load(write("clean.py", source))
        set_aside()
        await it.host.unload("clean")
        assert not it.host.plugins()


async def test_leaker_is_named(serving, write, set_aside):
    kept = type(sys)("kept_by_tests")
    kept.things = []
    sys.modules["kept_by_tests"] = kept
    source = """
        import kept_by_tests
        from nkv_core import hookimpl

        class Thing:
            pass

        @hookimpl
        def nkv_handlers(handlers):
            kept_by_tests.things.append(Thing())
            kept_by_tests.thing = Thing
    """
    try:
        async with serving() as it:
            await it.host.load(write("leaky.py", source))
            set_aside()
            await it.host.unload("leaky")
            (info,) = it.host.plugins()
            assert (info.name, info.state) == ("leaky", "leaked")
            assert "module kept_by_tests" in info.held_by
            kept.things.clear()
            del kept.thing
            gc.collect()
            assert it.host.plugins() == []
    finally:
        del sys.modules["kept_by_tests"]


async def test_a_thread_that_runs_on_is_named(serving, write):
    gate = threading.Event()
    sys.modules["gate_of_tests"] = gate
    source = """
        import threading
        import gate_of_tests
        from nkv_core import hookimpl

        def work():
            gate_of_tests.wait()

        @hookimpl
        def nkv_handlers(handlers):
            threading.Thread(target=work, name="busy", daemon=True).start()
    """
    try:
        async with serving() as it:
            path = write("threads.py", source)
            await it.host.load(path)
            await it.host.unload("threads")
            (info,) = it.host.plugins()
            assert any(f"thread busy at {path}:7" in text for text in info.held_by)
            gate.set()
    finally:
        del sys.modules["gate_of_tests"]


async def test_a_file_of_others_is_not_executed(serving, write, hello, tmp_path):
    async with serving() as it:
        before = it.residue()
        path = hello()
        Path(path).chmod(0o666)
        with pytest.raises(UntrustedFile, match="chmod go-w"):
            await it.host.load(path)
        assert it.residue() == before


async def test_what_the_node_depends_on_stays_when_it_fails(serving, write):
    source = """
        from contextlib import asynccontextmanager
        import anyio
        from nkv_core import hookimpl

        GO = anyio.Event()

        @hookimpl
        @asynccontextmanager
        async def nkv_setup(ctx):
            ctx.tasks.start_soon(task)
            yield

        async def task():
            await GO.wait()
            raise OSError("the end")

        @hookimpl
        def nkv_handlers(handlers):
            handlers.add("/go", lambda request: GO.set())
    """
    async with serving() as it:
        before = it.residue()
        await it.host.load(write("needed.py", source))
        it.host.hold("needed", "it is needed.")
        await it.ask("/go")
        while not it.seen(PluginFailed):
            await anyio.sleep(0.001)
        assert it.host.plugins()[0].state == "failed"
        assert await it.ask("/go") is None  # it still answers
        it.host.release("needed")
        await it.host.unload("needed")
        await it.quiet()
        assert it.residue() == before


async def test_a_goodbye_that_raises_does_not_stop_an_unloading(serving, hello, caplog):
    async with serving(drain_deadline=0.1) as it:
        await it.host.load(hello())
        owner = it.host._slots["hello"].generation.owner

        def goodbye():
            raise OSError("gone")

        what = object()
        owner.enter(what)
        owner.open_stream(what, goodbye)
        await it.host.unload("hello")
        assert "could not say goodbye" in caplog.text
        assert it.host.plugins() == []
