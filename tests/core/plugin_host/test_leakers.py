"""What a plugin leaves behind when it goes, each kind named by what holds it."""

import atexit  # noqa: F401  # used by what takes a leaving back
import contextvars
import gc
import logging  # noqa: F401
import signal  # noqa: F401
import sys
import textwrap
import types

import anyio
import pytest

from nkv_core.plugin_host import departures

pytestmark = pytest.mark.anyio

PLUGIN = """
    from nkv_core import hookimpl

    class Thing:
        def method(self, *args):
            pass

    @hookimpl
    def nkv_handlers(handlers):
        handlers.add("/thing", lambda request: "thing")
        leave()

"""

#: For each kind: how a plugin leaves it, what is said of it, and how it is taken back.
LEAVINGS = {
    "an atexit function": (
        """
        import atexit
        import weakref
        import patched_by_tests

        def at_the_end():
            pass

        def leave():
            atexit.register(at_the_end)
            patched_by_tests.late.append(weakref.ref(at_the_end))
        """,
        "atexit, which is to call at_the_end",
        "atexit.unregister(patched.late.pop()())",
    ),
    "a patched module": (
        """
        import patched_by_tests

        def ours():
            pass

        def leave():
            patched_by_tests.function = ours
        """,
        "module patched_by_tests",
        "del patched.function",
    ),
    "a patched class": (
        """
        import patched_by_tests

        def ours(self):
            pass

        def leave():
            patched_by_tests.Class.method = ours
        """,
        "class Class of patched_by_tests",
        "del patched.Class.method",
    ),
    "a bound method in somebody's list": (
        """
        import patched_by_tests

        def leave():
            patched_by_tests.callbacks.append(Thing().method)
        """,
        "module patched_by_tests",
        "patched.callbacks.clear()",
    ),
    "an exception with its traceback": (
        """
        import patched_by_tests

        def leave():
            try:
                raise OSError
            except OSError as error:
                patched_by_tests.error = error
        """,
        "an exception that was kept",
        "del patched.error",
    ),
    "what a cache remembers": (
        """
        import patched_by_tests

        def leave():
            patched_by_tests.cached(Thing)
        """,
        "the cache of cached of patched_by_tests",
        "patched.cached.cache_clear()",
    ),
    "a finalizer": (
        """
        import weakref
        import patched_by_tests

        def ours():
            pass

        def leave():
            patched_by_tests.finalizer = weakref.finalize(patched_by_tests.Class, ours)
        """,
        "class finalize of weakref",
        "patched.finalizer.detach()",
    ),
    "a handler of the log": (
        """
        import logging

        class Ours(logging.Handler):
            def emit(self, record):
                pass

        def leave():
            logging.getLogger("patched_by_tests").addHandler(Ours())
        """,
        "logger patched_by_tests",
        "logging.getLogger('patched_by_tests').handlers.clear()",
    ),
    "a handler of a signal": (
        """
        import signal

        def ours(number, frame):
            pass

        def leave():
            signal.signal(signal.SIGUSR2, ours)
        """,
        "the signal SIGUSR2, which ours is for",
        "signal.signal(signal.SIGUSR2, signal.SIG_DFL)",
    ),
    "a variable of a context": (
        """
        import patched_by_tests

        def leave():
            patched_by_tests.context.run(patched_by_tests.variable.set, Thing)
        """,
        "module patched_by_tests",
        "del patched.context",
    ),
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """What is left here stays until it is taken back: there is no use in looking for long."""
    monkeypatch.setattr(departures, "LOOKS", (0.0, departures.PAUSE))


@pytest.fixture
def patched():
    """A module of somebody else, which plugins here leave things in."""
    module = types.ModuleType("patched_by_tests")
    text = """
import functools

class Class:
    pass

@functools.lru_cache
def cached(value):
    return 1

callbacks = []
late = []
"""
    exec(text, vars(module))
    module.variable = contextvars.ContextVar("of_tests")
    module.context = contextvars.Context()
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


@pytest.mark.parametrize("kind", LEAVINGS)
async def test_what_is_left_behind_is_named_and_gone_once_it_is_taken_back(
    serving, write, patched, kind
):
    source, said, undo = LEAVINGS[kind]
    text = textwrap.dedent(source) + textwrap.dedent(PLUGIN)
    async with serving() as it:
        await it.host.load(write("leaver.py", text))
        await it.host.unload("leaver")
        (info,) = it.host.plugins()
        assert info.state == "leaked"
        assert any(said in text for text in info.held_by), info.held_by
        exec(undo)
        gc.collect()
        assert it.host.plugins() == []


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_timer_is_named(serving, write, patched):
    source = """
        import asyncio
        import patched_by_tests

        def due():
            pass

        def leave():
            timer = asyncio.get_running_loop().call_later(3600, due)
            patched_by_tests.callbacks.append(timer.cancel)
    """
    text = textwrap.dedent(source) + textwrap.dedent(PLUGIN)
    async with serving() as it:
        await it.host.load(write("timed.py", text))
        await it.host.unload("timed")
        (info,) = it.host.plugins()
        assert any("a timer or callback of the event loop" in text for text in info.held_by), (
            info.held_by
        )
        patched.callbacks.pop()()
        await anyio.sleep(0)
        gc.collect()
        assert it.host.plugins() == []


async def test_a_timer_of_threading_is_named(serving, write, patched):
    source = """
        import threading
        import patched_by_tests

        def due():
            pass

        def leave():
            timer = threading.Timer(3600, due)
            timer.daemon = True
            timer.start()
            patched_by_tests.callbacks.append(timer)
    """
    text = textwrap.dedent(source) + textwrap.dedent(PLUGIN)
    async with serving() as it:
        await it.host.load(write("timed.py", text))
        await it.host.unload("timed")
        (info,) = it.host.plugins()
        timer = patched.callbacks.pop()
        assert any(f"thread {timer.name}" in text for text in info.held_by), info.held_by
        timer.cancel()
        timer.join(30)
        del timer
        gc.collect()
        assert it.host.plugins() == []
