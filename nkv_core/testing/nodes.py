"""Nodes for tests: whole ones, on free ports, with what they did noted down."""

import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from nkv_core.config import load_settings
from nkv_core.events import Connect, Disconnect, PeerDown, PeerUp
from nkv_core.events import RequestComplete as Complete
from nkv_core.events import RequestEnd as End
from nkv_core.events import RequestStart as Start
from nkv_core.node import Node, NodeInThread

T = TypeVar("T")

#: Seconds after which what a test waits for is taken never to come.
DEADLINE: Final = float(os.environ.get("NKV_TEST_DEADLINE", "60"))
#: Seconds that a call into a node may take besides: draining has a deadline of its own.
_MORE: Final = 30.0
#: The plugins of the default set that a node of one plugin's test needs not.
OTHERS: Final = ("nkv_transport_http", "nkv_notifier_sse", "nkv_notifier_websocket")
_NOTED: Final = (Connect, Disconnect, PeerUp, PeerDown, Start, Complete, End)


def node_settings(folder: Path, **over: Any) -> dict[str, Any]:
    """Settings by dotted name of a node that keeps all it has in `folder`, with patience for slow
    machines. `over` has `__` in the place of each dot.
    """
    return {
        "node.data_dir": str(folder / "data"),
        "storage.name": "memory",
        "transport.http.port": 0,
        "plugins.setup_deadline": DEADLINE,
        **{name.replace("__", "."): value for name, value in over.items()},
    }


@contextmanager
def running(settings: Mapping[str, Any]) -> Iterator["TestNode"]:
    """A node that serves in a thread until the block is left."""
    with Node.in_thread(load_settings(flags=settings)) as node:
        yield TestNode(node)


class TestNode:
    """A node in a thread, and what a test asks of it and changes in it."""

    __test__ = False  # no test class, for all that its name begins with

    def __init__(self, node: NodeInThread) -> None:
        self.inside: Final = node
        #: All that happened, in order. Outcomes are left out: they would keep in memory what is
        #: unloaded.
        self.events: Final[list[Any]] = []
        for event in _NOTED:
            node.on(event, self._note)

    def _note(self, event: Any) -> None:
        if isinstance(event, Complete):
            event = Complete(event.request, None, event.error)
        elif isinstance(event, End):
            event = msgspec.structs.replace(event, outcome=None)
        self.events.append(event)

    def call(self, function: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        """As `NodeInThread.call`. Raises `TimeoutError` where that takes too long."""
        called = partial(self.inside.call, function, *args, **kwargs)
        return in_background(called).result(DEADLINE + _MORE)

    # --- its plugins ------------------------------------------------------------------------------

    def load(self, spec: str, settings: Mapping[str, Any] | None = None) -> str:
        """Load a plugin; returns its name. Raises as `PluginHost.load`."""
        return self.call(self.inside.plugins.load, spec, settings).name

    def replace(self, name: str, spec: str | None = None) -> int:
        """Replace a plugin, from where it came unless told otherwise; returns the generation."""
        spec = spec or next(one.spec for one in self._plugins() if one.name == name)
        return self.call(self.inside.plugins.replace, name, spec).generation

    def unload(self, name: str) -> None:
        """Unload a plugin; returns once it is closed, or found to have leaked."""
        self.call(self.inside.plugins.unload, name)

    def states(self, name: str) -> list[str]:
        """The states of all generations of a plugin that there are, in order."""
        return sorted(one.state for one in self._plugins() if one.name == name)

    def leaked(self) -> list[str]:
        """What leaked, with what holds it."""
        return [
            f"{one.name} is held by {', '.join(one.held_by) or 'something unknown'}"
            for one in self._plugins()
            if one.state == "leaked"
        ]

    def _plugins(self) -> list[Any]:
        return self.in_loop(self.inside.plugins.plugins)

    # --- what it does -----------------------------------------------------------------------------

    def in_loop(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """The result of a plain function, called in the node's event loop."""

        async def called() -> T:
            return function(*args, **kwargs)

        return self.call(called)

    def on(self, event: type, listener: Callable[[Any], Any]) -> Callable[[], None]:
        """As `NodeInThread.on`."""
        return self.inside.on(event, listener)

    def seen(self, event: type[T]) -> list[T]:
        """The events of one type so far."""
        return [one for one in list(self.events) if isinstance(one, event)]

    def addresses(self, transport: str) -> list[Connect]:
        """Where a transport listens now."""
        listeners = self.in_loop(lambda: self.inside.node.listeners)
        return [one for one in listeners if one.transport == transport]

    def put(self, key: str, value: bytes, *, expires: int | None = None) -> int:
        """Put a record; returns its revision."""
        written = self.call(self.inside.keyspace.put, key, value, expires=expires)
        assert written.revision is not None  # noqa: S101  # it was put
        return written.revision

    def get(self, key: str) -> bytes | None:
        """The value of a key, or None."""
        record = self.call(self.inside.keyspace.get, key)
        return None if record is None else record.value

    def delete(self, key: str) -> None:
        """Delete a record."""
        self.call(self.inside.keyspace.delete, key)


def in_background(function: Callable[..., T], *args: Any) -> "Future[T]":
    """Call a function in a thread that nobody waits for, should it never end."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(function(*args))
        except BaseException as error:  # noqa: BLE001  # whoever asks for the result gets it
            outcome.set_exception(error)

    threading.Thread(target=run, name="nkv test", daemon=True).start()
    return outcome


def eventually(holds: Callable[[], Any], what: str = "it", deadline: float = DEADLINE) -> Any:
    """Wait until `holds()` gives something true, and return that; what it asserts and which
    connections fail counts as not yet.
    """
    until = time.monotonic() + deadline
    while True:
        error: Exception | None = None
        with suppress(OSError):
            try:
                if result := holds():
                    return result
            except AssertionError as raised:
                error = raised
        if time.monotonic() > until:
            raise AssertionError(f"{what} did not happen within {deadline:g} s") from error
        time.sleep(0.01)
