"""Meshes of whole nodes, each a process of its own, ended by its process id."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import pytest

from ...ports import free_port

DEADLINE = 60
NKV = (sys.executable, "-m", "nkv_core")
SECRET = "a secret of these tests"


class MeshNode:
    """A node of a mesh, that can be stopped, killed and started again at the same addresses."""

    def __init__(self, folder, name, settings, env, *, command=NKV, host="127.0.0.1"):
        self.name = name
        self.folder = folder
        self.host = host
        self.data = folder / name
        self.port, self.mesh_port = free_port(), free_port()
        self.mesh_address = f"{host}:{self.mesh_port}"
        self.url = f"http://{host}:{self.port}"
        self.environment = dict(env)
        self._settings, self._command = settings, command
        self._log = folder / f"{name}.log"
        self.process = None
        self.http = httpx2.Client(base_url=self.url, timeout=30)

    def start(self, *arguments, join=None, wait=True, **settings):
        given = {
            "mesh.full.host": self.host,
            "mesh.full.port": self.mesh_port,
            "node.name": self.name,
            **self._settings,
            **settings,
        }
        sets = [part for key, value in given.items() for part in ("--set", f"{key}={value}")]
        joins = [part for address in join or [] for part in ("--join", address)]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *self._command, "serve", "--host", self.host, "--port", str(self.port),
                    "--data-dir", str(self.data), "--storage", "memory" if "memory" in arguments
                    else "diskcache", "--plugin", "nkv_mesh_full",
                    *[one for one in arguments if one != "memory"], *joins, *sets,
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=self.folder,
                env=self.environment,
            )  # fmt: skip
        if wait:
            self.wait_until_it_serves()
        return self

    def wait_until_it_serves(self):
        timer = threading.Timer(DEADLINE, self.process.kill)
        timer.start()
        try:
            line = self.process.stdout.readline().decode()
        finally:
            timer.cancel()
        if not re.search(r"http://\S+:\d+", line):
            self.kill()
            raise AssertionError(f"{self.name} said {line!r} and then: {self.log()}")

    def log(self):
        return self._log.read_text()

    def signal(self, number):
        os.kill(self.process.pid, number)

    def stop(self):
        self.signal(signal.SIGTERM)
        self._ended()

    def kill(self):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        self._ended()

    def _ended(self):
        if self.process is not None:
            self.process.wait(DEADLINE)
            self.process.stdout.close()

    def close(self):
        self.kill()
        self.http.close()

    # --- what it is asked -------------------------------------------------------------------------

    def put(self, key, value, **params):
        answer = self.http.put(f"/v1/kv/{key}", content=value, params=params)
        assert answer.status_code in (200, 201, 202), answer.text
        return answer

    def get(self, key):
        answer = self.http.get(f"/v1/kv/{key}")
        return answer.content if answer.status_code == 200 else None

    def delete(self, key):
        return self.http.delete(f"/v1/kv/{key}").status_code

    def clear(self):
        assert self.http.get("/clear").status_code == 200

    def records(self):
        """All records, without what is each node's own."""
        found, after = {}, None
        while True:
            params = {"limit": "10000"} | ({} if after is None else {"after": after})
            page = self.http.get("/v1/kv", params=params).json()
            for one in page["records"]:
                value = one.get("value", one.get("value_base64"))
                found[one["key"]] = (value, one["modified"], one.get("expires"))
            after = page["after"]
            if after is None:
                return found

    def status(self):
        return self.http.get("/v1/status").json()

    def mesh(self):
        return self.status()["mesh"]

    def states(self):
        """The state of every other node, by name."""
        return {m["name"]: m["state"] for m in self.mesh()["members"] if m["state"] != "self"}

    def nkv(self, *arguments):
        return subprocess.run(
            [*self._command, *arguments],
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            env={**self.environment, "NKV_URL": self.url, "NKV_DATA_DIR": str(self.data)},
            check=False,
        )


def eventually(holds, deadline=DEADLINE, say=None):
    """Wait until `holds()` is true."""
    until = time.monotonic() + deadline
    while True:
        found = holds()
        if found:
            return found
        if time.monotonic() > until:
            raise AssertionError(f"it did not come to hold: {say() if say else found!r}")
        time.sleep(0.02)


class Meshes:
    """Makes nodes."""

    def __init__(self, folder, env):
        self.folder, self.environment = folder, env
        self.nodes = []
        self.settings = {"mesh.full.secret": SECRET}
        self.eventually = eventually

    def node(self, name, *, command=NKV, host="127.0.0.1", **settings):
        node = MeshNode(
            self.folder,
            name,
            {**self.settings, **settings},
            self.environment,
            command=command,
            host=host,
        )
        self.nodes.append(node)
        return node

    def started(self, count, *arguments):
        """So many nodes, joined by the address of the first."""
        nodes = [self.node(f"n{number}") for number in range(1, count + 1)]
        nodes[0].start(*arguments)
        for node in nodes[1:]:
            node.start(*arguments, join=[nodes[0].mesh_address])
        self.all_up(nodes)
        return nodes

    def all_up(self, nodes, deadline=DEADLINE):
        names = {node.name for node in nodes}

        def connected(node):
            mesh = node.mesh()
            up = {m["name"] for m in mesh["members"] if m.get("connected")}
            return up >= names - {node.name} and not mesh["catching_up"]

        def up():
            return all(connected(node) for node in nodes)

        eventually(up, deadline, lambda: json.dumps([n.mesh() for n in nodes], indent=1))

    def all_equal(self, nodes, deadline=DEADLINE):
        def equal():
            first, *rest = [node.records() for node in nodes]
            return all(one == first for one in rest)

        eventually(equal, deadline, lambda: self.differences(nodes))
        return nodes[0].records()

    def all_kept(self, node):
        """Wait until a node has all that the others have, and will go on from there."""

        def kept():
            others = [m for m in node.mesh()["members"] if m["state"] != "self"]
            return all(m["behind"] == 0 and m["kept"] == m["taken"] for m in others)

        eventually(kept, say=lambda: json.dumps(node.mesh(), indent=1))

    def differences(self, nodes):
        found = [node.records() for node in nodes]
        keys = sorted({key for records in found for key in records})
        differing = [
            (key, [records.get(key) for records in found])
            for key in keys
            if len({records.get(key) for records in found}) > 1
        ]
        return json.dumps(
            {"differing": differing[:10], "count": len(differing),
             "mesh": [node.mesh() for node in nodes]}, indent=1
        )  # fmt: skip


@pytest.fixture
def meshes(tmp_path):
    unwanted = ("NKV_", "PORT", "HOSTNAME", "MESH_NETWORK_URL")
    env = {key: value for key, value in os.environ.items() if not key.startswith(unwanted)}
    made = Meshes(tmp_path, env)
    yield made
    for node in made.nodes:
        node.close()


@pytest.fixture
def new_network():
    """Makes networks of namespaces; skips the test where there can be none."""
    path = Path(__file__).with_name("networks.py")
    spec = importlib.util.spec_from_file_location("mesh_networks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    why_not = module.missing()
    if why_not:
        pytest.skip(why_not)
    return module.Network
