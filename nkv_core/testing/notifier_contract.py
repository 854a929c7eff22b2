"""The suite that every notifier passes. Needs pytest.

    class TestMyNotifier(NotifierContract):
        plugin = "nkv_notifier_mine"
        resumes = True

        @contextmanager
        def receiver(self, path):
            with my_server() as server:
                yield MyReceiver(server)

A `Receiver` is who is told: a server that the notifier sends to, or a client that connects to the
node. It is the one thing that the suite cannot know.
"""

# ruff: noqa: D102, S101  # tests: their names say it, and asserting is their work

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec
import pytest

from nkv_core.contracts.keyspace import Delete, Put
from nkv_core.testing.nodes import (
    DEADLINE,
    TestNode,
    eventually,
    in_background,
    node_settings,
    running,
)

Kind = Literal["put", "delete", "expire", "clear"]


class Told(msgspec.Struct, frozen=True):
    """One change, as the receiver was told of it. A put has its value; a protocol without a word
    for an expiry or a clear tells a delete.
    """

    kind: Kind
    key: str
    value: bytes | None = None


class Receiver:
    """Who is told. Subclass it for a notifier's protocol."""

    settings: dict[str, Any]  #: the plugin's, so that it reaches this one

    def __init__(self) -> None:
        self.settings = {}

    def begin(self, node: TestNode) -> None:
        """Called once the node serves with the notifier: connect, where that is who does."""

    def told(self) -> list[Told]:
        """All that it was told so far, in order, over all its connections."""
        raise NotImplementedError("A receiver needs `told`.")

    def stall(self) -> None:
        """Stop reading, as a receiver that hangs."""
        pytest.skip("its receiver cannot hang")

    def go_on(self) -> None:
        """Read again."""


class NotifierContract:
    """Subclass it as `Test...`, and set `plugin` and `receiver`."""

    plugin: ClassVar[str]  #: the SPEC by which it is loaded
    #: Whether a receiver is told what changed while the node was away.
    resumes: ClassVar[bool] = False
    #: Plugins of the default set that the node is to go without.
    without: ClassVar[tuple[str, ...]] = ()
    backends: ClassVar[tuple[str, ...]] = ("asyncio", "trio")  #: that it runs on

    @contextlib.contextmanager
    def receiver(self, path: Path) -> Iterator[Receiver]:
        """Somebody to tell, who may keep files in this folder."""
        raise NotImplementedError("The suite needs `receiver`.")

    # --- what the tests stand on ------------------------------------------------------------------

    @contextlib.contextmanager
    def serving(
        self, path: Path, receiver: Receiver, backend: str = "", **over: Any
    ) -> Iterator[TestNode]:
        """A node with the notifier, which tells this receiver."""
        settings = node_settings(
            path,
            node__backend=backend or self.backends[0],
            plugins__disable=list(self.without),
            keyspace__sweep_interval=0.05,
            **over,
        )
        with running(settings) as node:
            self.name = self.plugin.rpartition(".")[2].rpartition("/")[2].removesuffix(".py")
            if not node.states(self.name):
                assert node.load(self.plugin, receiver.settings) == self.name
            receiver.begin(node)
            yield node

    @pytest.fixture
    def told(self, tmp_path: Path) -> Iterator[Receiver]:
        """The receiver of `node`."""
        with self.receiver(tmp_path) as receiver:
            yield receiver

    @pytest.fixture
    def node(self, tmp_path: Path, told: Receiver) -> Iterator[TestNode]:
        """A node with the notifier."""
        with self.serving(tmp_path, told) as node:
            yield node

    def wait_for(self, receiver: Receiver, key: str) -> list[Told]:
        """All that it was told, once it was told of this key."""
        eventually(lambda: any(one.key == key for one in receiver.told()), f"{key} being told")
        return receiver.told()

    # --- what is told -----------------------------------------------------------------------------

    @pytest.mark.parametrize("backend", ["asyncio", "trio"])
    def test_tells_on_the_backends_that_it_runs_on(self, tmp_path: Path, backend: str) -> None:
        if backend not in self.backends:
            pytest.skip(f"does not run on {backend}, and says so")
        with self.receiver(tmp_path) as told, self.serving(tmp_path, told, backend) as node:
            node.put("a", b"1")
            assert self.wait_for(told, "a") == [Told("put", "a", b"1")]

    def test_tells_every_change_in_order(self, node: TestNode, told: Receiver) -> None:
        node.put("a", b"1")
        node.put("a", b"2")
        node.put("b.c", b"")
        node.delete("a")
        node.put("a", b"3")
        node.put("end", b"")
        assert self.wait_for(told, "end") == [
            Told("put", "a", b"1"),
            Told("put", "a", b"2"),
            Told("put", "b.c", b""),
            Told("delete", "a"),
            Told("put", "a", b"3"),
            Told("put", "end", b""),
        ]

    @pytest.mark.parametrize(
        "value", ["é\u2028\U0001f511", 'say "no"', "one\ntwo\r\n\ttabbed\n\n", "x" * 100_000]
    )
    def test_tells_a_value_as_it_was_written(
        self, node: TestNode, told: Receiver, value: str
    ) -> None:
        node.put("a", value.encode())
        node.put("end", b"")
        assert self.wait_for(told, "end")[0] == Told("put", "a", value.encode())

    def test_tells_a_batch_in_the_order_of_its_operations(
        self, node: TestNode, told: Receiver
    ) -> None:
        node.call(
            node.inside.keyspace.batch,
            [Put("b", b"1"), Put("a", b"1"), Delete("b"), Put("end", b"")],
        )
        found = [(one.kind, one.key) for one in self.wait_for(told, "end")]
        assert found == [("put", "b"), ("put", "a"), ("delete", "b"), ("put", "end")]

    def test_tells_that_a_record_has_expired(self, node: TestNode, told: Receiver) -> None:
        node.put("a", b"1", expires=int(time.time() * 1000) + 50)
        eventually(lambda: len(told.told()) > 1, "the expiry")
        assert [(one.kind, one.key) for one in told.told()] in (
            [("put", "a"), ("expire", "a")],
            [("put", "a"), ("delete", "a")],
        )

    def test_tells_a_clear_as_one_or_as_deletes(self, node: TestNode, told: Receiver) -> None:
        for key in ("a.1", "a.2", "b"):
            node.put(key, b"1")
        node.call(node.inside.keyspace.clear, "a.")
        node.put("end", b"")
        found = [one for one in self.wait_for(told, "end") if one.kind != "put"]
        assert found == [Told("clear", "a.")] or sorted(found, key=lambda one: one.key) == [
            Told("delete", "a.1"),
            Told("delete", "a.2"),
        ]

    def test_does_not_tell_what_was_refused(self, node: TestNode, told: Receiver) -> None:
        node.put("a", b"1")
        with pytest.raises(Exception, match="key"):
            node.put("a\n", b"1")
        node.delete("never there")
        node.put("end", b"")
        assert [one.key for one in self.wait_for(told, "end")] == ["a", "end"]

    # --- receivers that are slow or away ----------------------------------------------------------

    def test_a_receiver_that_hangs_delays_no_write(self, node: TestNode, told: Receiver) -> None:
        node.put("a", b"1")
        self.wait_for(told, "a")
        told.stall()
        try:
            written = in_background(
                lambda: [node.put(f"b.{number}", b"x" * 10_000) for number in range(300)]
            )
            assert len(written.result(DEADLINE)) == 300
        finally:
            told.go_on()

    def test_tells_what_changed_while_the_node_was_away(self, tmp_path: Path) -> None:
        if not self.resumes:
            pytest.skip("tells what changes while it runs, and says so")
        pytest.importorskip("diskcache")
        with self.receiver(tmp_path) as told:
            with self.serving(tmp_path, told, storage__name="diskcache") as node:
                node.put("a", b"1")
                self.wait_for(told, "a")
                node.unload(self.name)
                node.put("b", b"2")
            with self.serving(tmp_path, told, storage__name="diskcache") as node:
                node.put("end", b"")
                found = [one.key for one in self.wait_for(told, "end")]
        assert list(dict.fromkeys(found)) == ["a", "b", "end"]

    # --- replacing and ending ---------------------------------------------------------------------

    def test_a_replacement_misses_nothing(self, node: TestNode, told: Receiver) -> None:
        done = threading.Event()
        written: list[str] = []

        def keep_writing() -> None:
            while not done.is_set():
                node.put(key := f"a.{len(written)}", b"1")
                written.append(key)

        writing = in_background(keep_writing)
        try:
            for wanted in (10, 20, 30):
                node.replace(self.name)
                eventually(partial(self._written, written, wanted, writing), "writes")
        finally:
            done.set()
        writing.result(DEADLINE)
        node.put("end", b"")
        found = dict.fromkeys(one.key for one in self.wait_for(told, "end"))
        assert list(found) == [*written, "end"]

    def _written(self, written: list[str], count: int, writing: Future[None]) -> bool:
        return len(written) >= count or writing.done()

    def test_tells_nothing_once_it_is_unloaded(self, node: TestNode, told: Receiver) -> None:
        node.put("a", b"1")
        self.wait_for(told, "a")
        before = len(node.in_loop(node.inside.node.hub.watchers))
        node.unload(self.name)
        assert len(node.in_loop(node.inside.node.hub.watchers)) < max(before, 1)
        node.put("b", b"1")
        assert [one.key for one in told.told()] == ["a"]

    def test_nothing_of_a_generation_stays_in_memory(self, node: TestNode, told: Receiver) -> None:
        for number in range(2):
            node.put(f"a.{number}", b"1")
            self.wait_for(told, f"a.{number}")
            node.replace(self.name)
        node.unload(self.name)
        eventually(lambda: node.states(self.name) in ([], ["leaked"]) or node.leaked(), "the end")
        assert node.leaked() == []
