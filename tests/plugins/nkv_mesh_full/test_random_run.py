"""A randomised run: whatever befalls the nodes, they agree, and nothing acknowledged is lost.

Keys are of families of which each has a rule that can be checked without knowing the order of what
happened: who may be absent at the end, and who must be.
"""

import logging
import random
import signal
import sys
import threading
import time
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path

import httpx2
import pytest

from nkv_core.times import parse_timestamp

log = logging.getLogger("random run")

NKV = (sys.executable, "-m", "nkv_core")
SECONDS = 10
SKEW = 2000  # milliseconds, at most; the bound is twice that and some
SETTINGS = {"mesh.full.max_skew": 6, "mesh.full.compare_interval": 20}


class Oracle:
    """What was acknowledged, and what must hold of it in the end."""

    def __init__(self):
        self.lock = threading.Lock()
        self.puts = defaultdict(list)  # of keys that are only put: timestamp and value
        self.maybe = defaultdict(set)  # values that may have been put
        self.there, self.gone = set(), set()  # of keys that are put once, and perhaps deleted
        self.cleared, self.behind = set(), set()
        self.expired, self.lasting = set(), set()

    def check(self, records):
        for key, acknowledged in self.puts.items():
            latest = max(acknowledged)
            assert key in records, f"{key} is lost: {latest}"
            value, modified, _ = records[key]
            if value != latest[1]:
                assert value in self.maybe[key], f"{key} has {value}, not {latest}"
                # Of two writes of one time the greater node id decides.
                assert parse_timestamp(modified) >= latest[0]
        for name, wanted in (("there", self.there), ("behind", self.behind),
                             ("lasting", self.lasting)):  # fmt: skip
            lost = sorted(wanted - set(records))
            assert not lost, f"{name}: lost are {lost[:5]} ({len(lost)})"
        for name, unwanted in (("gone", self.gone), ("cleared", self.cleared),
                               ("expired", self.expired)):  # fmt: skip
            back = sorted(unwanted & set(records))
            assert not back, f"{name}: back are {back[:5]} ({len(back)})"


class Writer:
    """Writes at one node after the other, and tells the oracle what was acknowledged."""

    def __init__(self, oracle, nodes, seed, number):
        self.oracle, self.nodes, self.number = oracle, nodes, number
        self.random = random.Random(f"{seed} {number}")
        self.count = 0
        self.mine = []  # keys of this writer that may be deleted, with the node that has them
        self.at = []  # the nodes that it is talking to
        self.error = None

    def run(self, stop):
        try:
            with httpx2.Client(timeout=5) as self.http:
                while not stop.is_set():
                    self.count += 1
                    self.at = [node := self.random.choice(self.nodes)]
                    if node not in self.nodes:
                        continue  # it leaves
                    action = self.random.choices(
                        (self.put, self.once, self.delete, self.clear, self.expire),
                        (8, 4, 3, 1, 2),
                    )[0]
                    try:
                        action(node)
                    except httpx2.HTTPError:
                        time.sleep(0.01)  # the node is away
                    self.at = []
        except Exception as error:  # noqa: BLE001  # raised where it is seen
            self.error = error

    def _put(self, node, key, value, **params):
        answer = self.http.put(f"{node.url}/v1/kv/{key}", content=value, params=params)
        if answer.status_code not in (200, 201):
            raise httpx2.HTTPError(answer.text)
        return parse_timestamp(answer.headers["nkv-modified"])

    def put(self, node):
        key, value = f"put.{self.random.randrange(20)}", f"{self.number}-{self.count}"
        with self.oracle.lock:
            self.oracle.maybe[key].add(value)
        modified = self._put(node, key, value)
        with self.oracle.lock:
            self.oracle.puts[key].append((modified, value))

    def once(self, node):
        key = f"once.{self.number}.{self.count}"
        self._put(node, key, "x")
        self.mine.append((key, node))
        with self.oracle.lock:
            self.oracle.there.add(key)

    def delete(self, node):
        """Delete a key, at any node that has it."""
        if not self.mine:
            return
        key, writer = self.mine.pop(self.random.randrange(len(self.mine)))
        self.at.append(writer)
        if writer not in self.nodes:
            writer = node
        at = node if self.http.get(f"{node.url}/v1/kv/{key}").status_code == 200 else writer
        with self.oracle.lock:
            self.oracle.there.discard(key)
        if self.http.delete(f"{at.url}/v1/kv/{key}").status_code == 204:
            with self.oracle.lock:
                self.oracle.gone.add(key)

    def clear(self, node):
        """Put a key, clear its prefix and put another, all at one node."""
        prefix = f"clear.{self.number}.{self.count}."
        self._put(node, prefix + "before", "x")
        batch = {"operations": [{"op": "clear", "prefix": prefix}]}
        if self.http.post(f"{node.url}/v1/batch", json=batch).status_code == 200:
            with self.oracle.lock:
                self.oracle.cleared.add(prefix + "before")
            self._put(node, prefix + "after", "x")
            with self.oracle.lock:
                self.oracle.behind.add(prefix + "after")

    def expire(self, node):
        key = f"expire.{self.number}.{self.count}"
        self._put(node, key, "x", ttl="0.5")
        if self.random.random() < 0.5:
            with self.oracle.lock:
                self.oracle.expired.add(key)
        else:
            self._put(node, key, "lasts")
            with self.oracle.lock:
                self.oracle.lasting.add(key)


class Chaos:
    """What befalls the nodes."""

    def __init__(self, meshes, nodes, network, seed):
        self.meshes, self.nodes, self.network = meshes, nodes, network
        self.random = random.Random(seed)
        self.made = 0
        self.down, self.paused, self.writers = [], [], []

    def make(self):
        """A node, with a clock of its own."""
        self.made += 1
        skew = self.random.randrange(-SKEW // 2, SKEW // 2)
        command, host, namespace = NKV, "127.0.0.1", None
        if self.network is not None:
            namespace, host = self.network.host()
            command = ("ip", "netns", "exec", namespace, *NKV)
        node = self.meshes.node(f"n{self.made}", command=command, host=host, **SETTINGS)
        node.namespace = namespace
        node.environment |= {
            "PYTHONPATH": str(Path(__file__).with_name("skew")),
            "TEST_CLOCK_SKEW": str(skew),
        }
        return node

    def start(self, node, *, wait=True):
        others = [one for one in self.nodes if one is not node and one not in self.down]
        node.start("--insecure", join=[one.mesh_address for one in others[:2]], wait=wait)

    def step(self):
        whole = [one for one in self.nodes if one not in (*self.down, *self.paused)]
        step = self.random.choice(
            (self.kill, self.kill, self.restart, self.pause, self.go_on, self.cut, self.heal,
             self.halt, self.join, self.leave)
        )  # fmt: skip
        log.info("%s of %s", step.__name__, [node.name for node in whole])
        step(whole)

    def kill(self, whole):
        if len(whole) > 2:
            node = self.random.choice(whole)
            node.kill()
            self.down.append(node)

    def halt(self, whole):
        if len(whole) > 2:
            node = self.random.choice(whole)
            node.stop()
            self.down.append(node)

    def restart(self, _):
        if self.down:
            node = self.down.pop(0)
            self.start(node)

    def pause(self, whole):
        if len(whole) > 2:
            node = self.random.choice(whole)
            node.signal(signal.SIGSTOP)
            self.paused.append(node)

    def go_on(self, _):
        if self.paused:
            self.paused.pop(0).signal(signal.SIGCONT)

    def cut(self, whole):
        if self.network is not None and len(whole) > 1:
            side = self.random.sample(whole, len(whole) // 2)
            for node in side:
                others = [one.host for one in self.nodes if one not in side]
                self.network.cut(node.namespace, *others)
                if self.random.random() < 0.5:
                    break  # one node alone, and in one direction

    def heal(self, _=None):
        if self.network is not None:
            self.network.heal()

    def join(self, _):
        if len(self.nodes) < 6:
            node = self.make()
            self.start(node)
            self.nodes.append(node)

    def leave(self, whole):
        """A node leaves for good, if it can hand over all that it has."""
        if len(self.nodes) > 3 and len(whole) > 2:
            node = self.random.choice(whole)
            self.nodes.remove(node)  # what is written there from now on is nobody's
            self.meshes.eventually(lambda: not any(node in writer.at for writer in self.writers))
            if node.nkv("mesh", "leave").returncode == 0:
                node.stop()
            else:
                self.nodes.append(node)

    def end(self):
        """All is well again."""
        self.heal()
        while self.paused:
            self.go_on(None)
        while self.down:
            self.restart(None)


def run(meshes, network, seed):
    nodes = []
    chaos = Chaos(meshes, nodes, network, seed)
    for _ in range(4):
        node = chaos.make()
        chaos.start(node)
        nodes.append(node)
    meshes.all_up(nodes)
    oracle, stop = Oracle(), threading.Event()
    writers = [Writer(oracle, nodes, seed, number) for number in range(3)]
    chaos.writers += writers
    threads = [threading.Thread(target=writer.run, args=(stop,)) for writer in writers]
    for thread in threads:
        thread.start()
    try:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            time.sleep(chaos.random.uniform(0.1, 0.8))
            chaos.step()
    finally:
        chaos.heal()
        while chaos.paused:
            chaos.go_on(None)
        stop.set()
        for thread in threads:
            thread.join()
    assert [writer.error for writer in writers if writer.error] == []
    chaos.end()
    healed = time.monotonic()
    meshes.all_equal(nodes)
    equal = time.monotonic()
    # An expiry that was cut short by a kill is swept within a second, and may be told until then.
    meshes.eventually(lambda: not oracle.expired & set(nodes[0].records()))
    records = meshes.all_equal(nodes)
    writes = sum(writer.count for writer in writers)
    log.info(
        "seed %d: %d nodes, %d writes, %d records, equal after %.1f s",
        seed, len(nodes), writes, len(records), equal - healed,
    )  # fmt: skip
    oracle.check(records)
    assert oracle.puts
    assert writes > 30


def whole_run(meshes, request, seed):
    try:
        network = request.getfixturevalue("new_network")()
    except pytest.skip.Exception as why:
        log.info("without partitions: %s", why)
        network = nullcontext()
    with network as cuts:
        try:
            run(meshes, cuts, seed)
        finally:
            for node in meshes.nodes:
                node.close()


def test_after_a_random_run_all_nodes_are_equal_and_nothing_is_lost_or_back(meshes, request):
    whole_run(meshes, request, 1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 22))
def test_after_twenty_random_runs_all_nodes_are_equal(meshes, request, seed):
    whole_run(meshes, request, seed)
