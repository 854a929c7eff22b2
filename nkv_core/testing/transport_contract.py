r"""The suite that every transport passes. Needs pytest.

    class TestMyTransport(TransportContract):
        plugin = "nkv_transport_mine"
        listener = "mine"

        def settings(self, path):
            return {"port": 0}

        def ask(self, address):
            with socket.create_connection((address.host, address.port), timeout=30) as connection:
                connection.sendall(b"PING\n")
                return connection.recv(100)

Each test loads the plugin into a node that has no other transport. `ask` is the one thing that the
suite cannot know: how a client of the protocol asks for something.
"""

# ruff: noqa: D102, S101  # tests: their names say it, and asserting is their work

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import anyio
import pytest

from nkv_core.errors import NotFound, PluginError, Rejected, StartError
from nkv_core.events import Connect, RequestComplete, RequestEnd, RequestStart
from nkv_core.testing.nodes import (
    DEADLINE,
    OTHERS,
    TestNode,
    eventually,
    in_background,
    node_settings,
    running,
)

_GARBAGE = (b"\x00\xff" * 300, b"\r\n\r\n", b"\xf0\x9f\x94\x91 " * 50, b"x" * 70_000)


class TransportContract:
    """Subclass it as `Test...`, and set `plugin`, `listener`, `settings` and `ask`."""

    plugin: ClassVar[str]  #: the SPEC by which it is loaded
    listener: ClassVar[str]  #: what the plugin's name has behind `nkv_transport_`
    backends: ClassVar[tuple[str, ...]] = ("asyncio", "trio")  #: that it runs on
    #: Plugins of the default set that the node is to go without.
    without: ClassVar[tuple[str, ...]] = OTHERS

    def settings(self, path: Path) -> dict[str, Any]:  # for those who need it
        """The plugin's settings, with port 0 or a Unix socket in this folder."""
        return {"port": 0}

    def prepare(self, node: TestNode) -> None:
        """Put what `ask` asks for."""

    def ask(self, address: Connect) -> object:
        """Ask for something, always the same, over a connection of its own; returns the answer
        without what differs from one to the next, or raises where none comes within some seconds.
        """
        raise NotImplementedError("The suite needs `ask`.")

    def open(self, address: Connect) -> socket.socket:
        """A connection over which nothing was sent yet."""
        if address.host.startswith("/"):
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(DEADLINE)
            try:
                connection.connect(address.host)
            except OSError:
                connection.close()
                raise
            return connection
        return socket.create_connection((address.host, address.port), timeout=DEADLINE)

    # --- what the tests stand on ------------------------------------------------------------------

    @pytest.fixture
    def node(self, tmp_path: Path) -> Iterator[TestNode]:
        """A node with the transport, on the first backend that it runs on."""
        with self.serving(tmp_path, self.backends[0]) as node:
            yield node

    @contextlib.contextmanager
    def serving(self, path: Path, backend: str) -> Iterator[TestNode]:
        """A node on this backend, with the transport."""
        settings = node_settings(
            path,
            node__backend=backend,
            bus__budget=DEADLINE,
            plugins__disable=list(self.without),
            plugins__transport_drain_deadline=5.0,
        )
        with running(settings) as node:
            self.prepare(node)
            self.name = node.load(self.plugin, self.settings(path))
            node.events.clear()
            yield node

    def address(self, node: TestNode) -> Connect:
        """Where it listens: the first place, of several."""
        found = node.addresses(self.listener)
        assert found, "it listens nowhere that the node knows of: take sockets from ctx.listen"
        return found[0]

    def is_closed(self, address: Connect) -> bool:
        """Whether nobody accepts connections there."""
        try:
            self.open(address).close()
        except OSError:
            return True
        return False

    # --- serving ----------------------------------------------------------------------------------

    @pytest.mark.parametrize("backend", ["asyncio", "trio"])
    def test_serves_on_the_backends_that_it_names_and_refuses_others(
        self, tmp_path: Path, backend: str
    ) -> None:
        if backend in self.backends:
            with self.serving(tmp_path, backend) as node:
                assert self.ask(self.address(node)) is not None
        else:
            with (
                pytest.raises((StartError, PluginError), match=self.backends[0]),
                self.serving(tmp_path, backend),
            ):
                pass

    def test_answers_as_soon_as_it_is_loaded(self, node: TestNode) -> None:
        assert self.ask(self.address(node)) == self.ask(self.address(node))
        assert node.states(self.name) == ["active"]

    def test_takes_each_request_through_its_life(self, node: TestNode) -> None:
        self.ask(self.address(node))
        life = eventually(lambda: self._life(node), "RequestEnd")
        assert [type(event) for event in life] == [RequestStart, RequestComplete, RequestEnd]
        assert len({event.id for event in life}) == 1
        start = node.seen(RequestStart)[-1]
        assert (start.transport, bool(start.peer)) == (self.listener, True)
        assert node.seen(RequestEnd)[-1].error is None

    def _life(self, node: TestNode) -> list[Any]:
        ends = node.seen(RequestEnd)
        kinds = (RequestStart, RequestComplete, RequestEnd)
        return (
            [one for one in node.events if isinstance(one, kinds) and one.id == ends[-1].id]
            if ends
            else []
        )

    def test_tells_the_client_what_a_listener_refuses(self, node: TestNode) -> None:
        usual = self.ask(self.address(node))

        def refuse(event: RequestStart) -> None:
            raise Rejected(403, "not_today")

        node.on(RequestStart, refuse)
        assert self._answer_or_error(node) != usual
        ended = eventually(
            lambda: [end for end in node.seen(RequestEnd) if end.error is not None], "RequestEnd"
        )
        assert ended[-1].error.code == "not_today"

    def test_sends_what_a_listener_puts_in_the_place_of_the_outcome(self, node: TestNode) -> None:
        usual = self.ask(self.address(node))
        node.on(RequestComplete, lambda event: event.replace(NotFound()))
        assert self._answer_or_error(node) != usual

    def _answer_or_error(self, node: TestNode) -> object:
        try:
            return self.ask(self.address(node))
        except TimeoutError:
            pytest.fail("the client gets no answer at all")
        except Exception as error:  # noqa: BLE001  # how a protocol's client tells of errors
            return error

    def test_serves_many_at_once(self, node: TestNode) -> None:
        address = self.address(node)
        usual = self.ask(address)
        gate = Gate(20)
        node.on(RequestStart, gate.wait)
        asked = [in_background(self.ask, address) for _ in range(20)]
        assert [one.result(DEADLINE) for one in asked] == [usual] * 20

    # --- clients that do what they should not -----------------------------------------------------

    def test_garbage_and_clients_that_go_hurt_nobody_else(self, node: TestNode) -> None:
        address = self.address(node)
        usual = self.ask(address)
        for garbage in _GARBAGE:
            with self.open(address) as connection, contextlib.suppress(OSError):
                connection.sendall(garbage)
        with self.open(address) as connection, contextlib.suppress(OSError):
            connection.sendall(_GARBAGE[0])
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
        self.open(address).close()
        assert self.ask(address) == usual
        assert node.states(self.name) == ["active"]

    # --- replacing and ending ---------------------------------------------------------------------

    def test_a_replacement_keeps_the_port_and_fails_no_request(self, node: TestNode) -> None:
        address = self.address(node)
        usual = self.ask(address)
        done = threading.Event()
        answers: list[object] = []

        def keep_asking() -> None:
            while not done.is_set():
                answers.append(self.ask(address))

        asking = [in_background(keep_asking) for _ in range(2)]
        try:
            for _ in range(5):
                wanted = len(answers) + 1
                node.replace(self.name)
                eventually(partial(self._answered, answers, wanted, asking), "an answer")
        finally:
            done.set()
        for each in asking:
            each.result(DEADLINE)
        assert set(map(repr, answers)) == {repr(usual)}
        assert [(one.host, one.port) for one in node.addresses(self.listener)][:1] == [
            (address.host, address.port)
        ]

    def _answered(self, answers: list[object], count: int, asking: list[Future[None]]) -> bool:
        """Whether so many answers came, or somebody has given up asking."""
        return len(answers) >= count or any(future.done() for future in asking)

    def test_what_is_under_way_when_it_goes_is_answered(self, node: TestNode) -> None:
        address = self.address(node)
        usual = self.ask(address)
        gate = Gate(1)
        node.on(RequestComplete, gate.wait_for_release)
        asked = in_background(self.ask, address)
        eventually(lambda: gate.entered or asked.done(), "RequestComplete")
        going = in_background(node.unload, self.name)
        eventually(lambda: node.states(self.name) != ["active"], "the end of listening")
        gate.release()
        assert asked.result(DEADLINE) == usual
        going.result(DEADLINE)

    def test_unloading_closes_listeners_and_connections(self, node: TestNode) -> None:
        address = self.address(node)
        with self.open(address) as idle:
            self.ask(address)
            node.unload(self.name)
            idle.settimeout(DEADLINE)
            with contextlib.suppress(ConnectionError):
                while idle.recv(65536):
                    pass  # a goodbye
        assert self.is_closed(address)
        assert node.addresses(self.listener) == []

    def test_ends_by_itself_when_told_to(
        self, node: TestNode, caplog: pytest.LogCaptureFixture
    ) -> None:
        with self.open(self.address(node)):
            self.ask(self.address(node))
            node.unload(self.name)
        assert [
            record.getMessage() for record in caplog.records if record.levelname == "ERROR"
        ] == []
        assert not any("was drained no longer" in one.getMessage() for one in caplog.records)

    def test_nothing_of_a_generation_stays_in_memory(self, node: TestNode) -> None:
        for _ in range(2):
            self.ask(self.address(node))
            node.replace(self.name)
        self.ask(self.address(node))
        node.unload(self.name)
        eventually(lambda: node.states(self.name) in ([], ["leaked"]) or node.leaked(), "the end")
        assert node.leaked() == []


class Gate:
    """Holds requests, in the node's event loop."""

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self.entered = 0
        self._open = False

    def release(self) -> None:
        """Let everybody go."""
        self._open = True

    async def wait(self, _: RequestStart) -> None:
        """Wait until as many are here as are wanted, and then nobody any more."""
        self.entered += 1
        await self._until(lambda: self.entered >= self._wanted)

    async def wait_for_release(self, _: RequestComplete) -> None:
        """Wait for `release`, which may be called in any thread."""
        self.entered += 1
        await self._until(lambda: self._open)

    async def _until(self, holds: Callable[[], bool]) -> None:
        with anyio.move_on_after(DEADLINE / 2):
            while not holds():  # noqa: ASYNC110  # another thread says so
                await anyio.sleep(0.005)
