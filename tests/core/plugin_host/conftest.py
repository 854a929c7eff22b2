"""A plugin host over a real dispatcher, plugins written to files, and a list of what they leave."""

import gc
import linecache
import logging
import sys
import textwrap
import threading
from contextlib import asynccontextmanager

import anyio
import pytest

from nkv_core.contracts.handlers import Request
from nkv_core.contracts.settings import BusSettings, PluginSettings
from nkv_core.dispatch import Dispatcher
from nkv_core.events import (
    Connect,
    Disconnect,
    PluginFailed,
    PluginLoaded,
    PluginUnloaded,
)
from nkv_core.plugin_host import PluginHost
from nkv_core.plugin_host.modules import Modules


class FakeState:
    def __init__(self):
        self.values = {}

    async def get(self, key):
        return self.values.get(key)

    async def put(self, key, value):
        self.values[key] = value

    async def delete(self, key):
        self.values.pop(key, None)

    async def items(self):
        return sorted(self.values.items())


class FakeKeyspace:
    """As much of a keyspace as a plugin host touches."""

    def __init__(self):
        self.states = {}

    def state(self, name):
        return self.states.setdefault(name, FakeState())


class Serving:
    """A host that runs, and what a test asks of it."""

    def __init__(self, host, dispatcher, tmp_path, tasks):
        self.host = host
        self.dispatcher = dispatcher
        self.tmp_path = tmp_path
        self.tasks = tasks
        self.keyspace = FakeKeyspace()
        self.events = []
        self.others = set(sys.modules)  # of other nodes in this process, perhaps
        self.finders = list(sys.meta_path)
        for event in (Connect, Disconnect, PluginLoaded, PluginUnloaded, PluginFailed):
            dispatcher.on(event, self.events.append)

    async def ask(self, path, transport="http"):
        """The outcome of a request, or the error in its place."""
        outcomes = []

        async def reply(outcome, error, route):
            outcomes.append(outcome if error is None else error)

        request = Request(transport=transport, method="GET", path=path)
        await self.dispatcher.dispatch(request, reply)
        return outcomes[0]

    def seen(self, kind):
        """The events of one type so far."""
        return [event for event in self.events if isinstance(event, kind)]

    async def quiet(self):
        """Wait until no generation is on its way out."""
        while any(not departure.over.is_set() for departure in self.host._departures):
            await anyio.sleep(0.002)

    def residue(self):
        """All that a plugin could leave behind, by its name."""
        for thread in threading.enumerate():
            if thread.name.startswith("nkv load"):
                thread.join(1)
        return {
            "modules": sorted(name for name in set(sys.modules) - self.others if "@" in name),
            "finders": sum(
                isinstance(finder, Modules)
                for finder in sys.meta_path
                if finder not in self.finders
            ),
            "loggers": sorted(n for n in logging.Logger.manager.loggerDict if "@" in n),
            "lines": sorted(n for n in linecache.cache if str(self.tmp_path) in n),
            "hooks": self.host._services.registry.registered(),
            "routes": sorted(
                (r.listener, r.method, r.path, repr(r.owner))
                for r in self.dispatcher._snapshot.routes.all
            ),
            "listeners": len(self.dispatcher.offences()),
            "sockets": [held.address for held in self.host._services.broker._held],
            "threads": sorted(
                t.name for t in threading.enumerate() if t.name.startswith("nkv load")
            ),
            "tasks": _count_tasks(),
            "plugins": [(i.name, i.state, i.generation) for i in self.host.plugins()],
        }


def _count_tasks():
    return len(
        [task for task in anyio.get_running_tasks() if "nkv: watchdog" not in str(task.name)]
    )


async def settle():
    """Let threads and tasks that were told to end do so."""
    for _ in range(50):
        await anyio.sleep(0.001)
    gc.collect()


@pytest.fixture
def settled():
    return settle


@pytest.fixture
def serving(tmp_path):
    """`async with serving(...) as it` runs a host over a dispatcher."""

    @asynccontextmanager
    async def start(sections=None, *, insecure=False, authenticated=False, **settings):
        limits = {
            "setup_deadline": 30.0,
            "drain_deadline": 30.0,
            "close_deadline": 30.0,
            **settings,
        }
        dispatcher = Dispatcher(settings=BusSettings(), auth=None)
        host = PluginHost(
            settings=PluginSettings(**limits),
            sections=lambda name: (sections or {}).get(name, {}),
            dispatcher=dispatcher,
            data_dir=tmp_path / "data",
            node=object(),
            insecure=insecure,
            authenticated=authenticated,
        )
        with anyio.fail_after(120):
            async with anyio.create_task_group() as tasks:
                await tasks.start(dispatcher.run)
                await tasks.start(host.run)
                it = Serving(host, dispatcher, tmp_path, tasks)
                dispatcher.node = host._services.node
                dispatcher.keyspace = it.keyspace
                yield it
                tasks.cancel_scope.cancel()

    return start


@pytest.fixture
def write(tmp_path):
    """Write a plugin, or a file of one, and return its path as text."""
    folder = tmp_path / "plugins"
    folder.mkdir()

    def to(name, text):
        path = folder / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(textwrap.dedent(text))
        return str(path)

    return to


HELLO = """
    from nkv_core import hookimpl

    ANSWER = {answer!r}

    @hookimpl
    def nkv_handlers(handlers):
        handlers.add("/{path}", hello)

    async def hello(request):
        return ANSWER
"""


@pytest.fixture
def hello(write):
    """Write a plugin that answers `/hello`, and return its path."""

    def to(answer="one", name="hello.py", path="hello"):
        return write(name, HELLO.format(answer=answer, path=path))

    return to
