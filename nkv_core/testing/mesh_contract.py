"""The suite that every mesh passes. Needs pytest, and anyio's plugin for it.

    class TestMyMesh(MeshContract):
        plugin = "nkv_mesh_mine"

        def settings(self, join):
            return {"port": 0, "join": join}

It is that of keyspaces, over a mesh of one node, and one of meshes of several nodes, each a whole
node of its own on loopback.
"""

# ruff: noqa: D102, S101  # tests: their names say it, and asserting is their work

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest

from nkv_core.config import load_settings
from nkv_core.contracts.keyspace import Keyspace
from nkv_core.contracts.mesh import Member, Mesh
from nkv_core.contracts.watch import Changed
from nkv_core.events import PeerDown, PeerUp
from nkv_core.node import Node
from nkv_core.testing.keyspace_contract import KeyspaceContract
from nkv_core.testing.nodes import (
    DEADLINE,
    OTHERS,
    TestNode,
    eventually,
    in_background,
    node_settings,
    running,
)

Start = Callable[..., TestNode]


class MeshContract(KeyspaceContract):
    """Subclass it as `Test...`, and set `plugin` and `settings`."""

    plugin: ClassVar[str]  #: the SPEC by which it is loaded

    def settings(self, join: list[str]) -> dict[str, Any]:
        """The plugin's settings for a node on a free port that is to join nodes at these addresses,
        with the shortest waits that it has.
        """
        raise NotImplementedError("The suite needs `settings`.")

    # --- a mesh of one node -----------------------------------------------------------------------

    @pytest.fixture
    async def keyspace(self, tmp_path: Path) -> AsyncIterator[Keyspace]:
        """The mesh of a node that is alone."""
        settings = node_settings(
            tmp_path, keyspace__sweep_interval=0.05, plugins__disable=list(OTHERS)
        )
        async with Node(load_settings(flags=settings)) as node:
            await node.plugins.load(self.plugin, self.settings([]))
            assert node.keyspace is node.plugins.mesh
            yield node.keyspace

    # --- meshes of several ------------------------------------------------------------------------

    @pytest.fixture
    def start(self, tmp_path: Path) -> Iterator[Start]:
        """Starts a node of a mesh, which joins those that are given, and waits until it is one."""
        with ExitStack() as stack:

            def started(name: str, *others: TestNode, on: ExitStack = stack) -> TestNode:
                settings = node_settings(
                    tmp_path / name,
                    node__name=name,
                    keyspace__sweep_interval=0.05,
                    plugins__disable=list(OTHERS),
                    plugins__transport_drain_deadline=DEADLINE,
                )
                (tmp_path / name).mkdir(exist_ok=True)
                node = on.enter_context(running(settings))
                self.name = node.load(self.plugin, self.settings(list(map(self.address, others))))
                for other in others:
                    eventually(partial(self.meets, node, other), f"{name} meeting another node")
                return node

            yield started

    def mesh(self, node: TestNode) -> Mesh:
        """The mesh of a node."""
        mesh = node.inside.plugins.mesh
        assert mesh is not None, "the node has no mesh"
        return mesh

    def members(self, node: TestNode) -> tuple[Member, ...]:
        """The members that a node knows, itself first."""
        return node.in_loop(lambda: self.mesh(node).members)

    def address(self, node: TestNode) -> str:
        """Where other nodes reach a node."""
        return self.members(node)[0].address

    def meets(self, one: TestNode, two: TestNode) -> bool:
        """Whether both know the other as up."""
        ids = [node.inside.node.node_id for node in (one, two)]
        return all(
            any(member.node_id == wanted and member.state == "up" for member in self.members(node))
            for node, wanted in ((one, ids[1]), (two, ids[0]))
        )

    def equal(self, *nodes: TestNode) -> dict[str, bytes]:
        """What the nodes hold, once all hold the same and `end`."""

        def same() -> bool:
            found = [self.records(node) for node in nodes]
            return "end" in found[0] and all(one == found[0] for one in found)

        eventually(same, "all nodes holding the same")
        records = self.records(nodes[0])
        return {key: value for key, (value, *_) in records.items() if key != "end"}

    def records(self, node: TestNode) -> dict[str, tuple[bytes, int, int, int | None]]:
        """All that every node must have equal, by key."""
        page = node.call(node.inside.keyspace.scan, limit=10_000)
        return {one.key: (one.value, one.modified, one.origin, one.expires) for one in page.records}

    # --- members ----------------------------------------------------------------------------------

    def test_names_itself_first(self, start: Start) -> None:
        node = start("one")
        first = self.members(node)[0]
        assert (first.state, first.node_id) == ("self", node.inside.node.node_id)
        assert first.address.rpartition(":")[2].isdigit()
        assert isinstance(node.in_loop(lambda: self.mesh(node).status()), dict)

    def test_tells_of_nodes_that_come_and_go(self, start: Start) -> None:
        one = start("one")
        with ExitStack() as life:
            two = start("two", one, on=life)
            up = eventually(lambda: one.seen(PeerUp), "PeerUp")
            assert up[0].node_id == two.inside.node.node_id
            two.unload(self.name)
            down = eventually(lambda: one.seen(PeerDown), "PeerDown")
            assert down[0].node_id == two.inside.node.node_id

    def test_a_replacement_is_no_departure(self, start: Start) -> None:
        one = start("one")
        two = start("two", one)
        for number in range(2):
            two.replace(self.name)
            eventually(lambda: self.meets(one, two), "both meeting again")
            one.put(f"a.{number}", b"1")
            two.put(f"b.{number}", b"1")
        two.put("end", b"")
        assert sorted(self.equal(one, two)) == ["a.0", "a.1", "b.0", "b.1"]
        assert one.seen(PeerDown) == []
        assert self.address(two) == self.members(two)[0].address

    def test_writes_go_on_when_others_are_gone(self, start: Start) -> None:
        one = start("one")
        with ExitStack() as life:
            start("two", one, on=life)
        assert in_background(one.put, "a", b"1").result(DEADLINE)
        assert one.get("a") == b"1"

    # --- agreement --------------------------------------------------------------------------------

    def test_what_is_written_on_one_is_read_on_all(self, start: Start) -> None:
        one = start("one")
        two = start("two", one)
        one.put("a", b"1")
        two.put("b", bytes(range(256)))
        one.put("gone", b"1")
        eventually(lambda: two.get("gone"), "a put being replicated")
        two.delete("gone")
        two.put("end", b"")
        assert self.equal(one, two) == {"a": b"1", "b": bytes(range(256))}

    def test_what_was_written_on_both_at_once_ends_equal(self, start: Start) -> None:
        one = start("one")
        two = start("two", one)
        writing = [
            in_background(self._write_many, node, value)
            for node, value in ((one, b"1"), (two, b"2"))
        ]
        for each in writing:
            each.result(DEADLINE)
        one.put("end", b"")
        assert len(self.equal(one, two)) == 7

    def _write_many(self, node: TestNode, value: bytes) -> None:
        for number in range(150):
            node.put(f"k.{number % 7}", value * number)

    def test_who_comes_later_gets_everything(self, start: Start) -> None:
        one = start("one")
        for number in range(1500):
            one.put(f"k.{number}", b"%d" % number)
        one.put("end", b"")
        two = start("two", one)
        assert len(self.equal(one, two)) == 1500

    def test_what_was_deleted_meanwhile_is_not_brought_back(self, start: Start) -> None:
        one = start("one")
        two = start("two", one)
        for key in ("kept", "deleted", "cleared.1", "cleared.2"):
            one.put(key, b"1")
        eventually(lambda: two.get("cleared.2"), "puts being replicated")
        two.unload(self.name)
        one.delete("deleted")
        one.call(one.inside.keyspace.clear, "cleared.")
        cleared = time.time_ns() // 1_000_000
        eventually(lambda: time.time_ns() // 1_000_000 > cleared, "a later millisecond")
        two.put("cleared.3", b"later")  # on a node that has not heard of the clear
        two.load(self.plugin, self.settings([self.address(one)]))
        eventually(lambda: self.meets(one, two), "both meeting again")
        one.put("end", b"")
        assert self.equal(one, two) == {"kept": b"1", "cleared.3": b"later"}

    def test_an_expiry_is_the_same_everywhere(self, start: Start) -> None:
        one = start("one")
        two = start("two", one)
        one.put("a", b"1", expires=int(time.time() * 1000) + 400)
        one.put("b", b"1", expires=int(time.time() * 1000) + 3_600_000)
        one.put("end", b"")
        eventually(lambda: two.get("b"), "a put being replicated")
        eventually(lambda: two.get("a") is None and one.get("a") is None, "the expiry")
        assert self.equal(one, two) == {"b": b"1"}

    def test_watchers_of_another_node_are_told(self, start: Start) -> None:
        one = start("one")
        two = start("two", one)
        watcher = two.in_loop(two.inside.node.hub.watch, "a.*")
        try:
            for number in range(20):
                one.put(f"a.{number}", b"1")
            found: list[str] = []

            def all_told() -> bool:
                items = two.in_loop(watcher.take)
                found.extend(item.change.key for item in items if isinstance(item, Changed))
                return len(found) >= 20

            eventually(all_told, "all being told")
            assert found == [f"a.{number}" for number in range(20)]
        finally:
            two.in_loop(watcher.close)

    # --- ending -----------------------------------------------------------------------------------

    def test_one_that_leaves_has_told_everything_and_is_no_member_any_more(
        self, start: Start
    ) -> None:
        one = start("one")
        two = start("two", one)
        for number in range(100):
            two.put(f"a.{number}", b"1")
        two.call(self.mesh(two).leave)
        eventually(lambda: one.get("a.99"), "the last change being told")
        eventually(lambda: one.seen(PeerDown), "PeerDown")
        assert [member.state for member in self.members(two)] == ["self"]

    def test_reads_and_writes_go_on_when_it_is_unloaded(self, start: Start) -> None:
        one = start("one")
        two = start("two", one)
        one.put("a", b"1")
        eventually(lambda: two.get("a"), "a put being replicated")
        mesh = self.mesh(two)
        two.unload(self.name)
        assert two.get("a") == b"1"
        record = two.call(mesh.get, "a")  # for requests that began with it
        assert record is not None
        assert record.value == b"1"
        two.put("a", b"2")
        assert one.get("a") == b"1"

    def test_nothing_of_a_generation_stays_in_memory(self, start: Start) -> None:
        one = start("one")
        two = start("two", one)
        for _ in range(2):
            two.replace(self.name)
            eventually(lambda: self.meets(one, two), "both meeting again")
        two.unload(self.name)
        eventually(lambda: two.states(self.name) in ([], ["leaked"]) or two.leaked(), "the end")
        assert two.leaked() == []
