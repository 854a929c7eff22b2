"""What is promised of a node whose plugins are exchanged, shown of whole nodes."""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx2
import msgspec
import pytest

HELLO = """
from pathlib import Path
from nkv_core import hookimpl

Path({canary!r}).write_text("executed")

@hookimpl
def nkv_handlers(handlers):
    handlers.add("/hello", lambda request: "hello")
"""
SOCKET = "transport.socket.port=0"
#: More than people make in a minute; and a drain deadline that nothing here is to wait for.
MANY_CHANGES = ("--set", "plugins.max_changes_per_minute=100000")
NO_HURRY = ("--set", "plugins.transport_drain_deadline=300", "--set", "plugins.drain_deadline=300")


@pytest.fixture
def hello(tmp_path):
    """A plugin that leaves a file behind when it is executed: its path, and that of the file."""
    canary, path = tmp_path / "canary", tmp_path / "hello.py"
    path.write_text(HELLO.format(canary=str(canary)))
    return path, canary


def address_of(node, scheme):
    """Where a node listens for a protocol besides HTTP: it says so once it serves."""
    host, port = re.search(rf"{scheme}://([^:/\s]+):(\d+)", node.said).groups()
    return host, int(port)


def ask_lines(address, *lines, end=b"\n"):
    """What a node answers to lines, each before the next is sent."""
    with socket.create_connection(address, timeout=30) as peer, peer.makefile("rwb") as stream:
        answers = []
        for line in lines:
            stream.write(line + end)
            stream.flush()
            answers.append(stream.readline())
        return answers


def audited(node):
    lines = (node.data_dir / "audit.jsonl").read_text().splitlines()
    return [(each["verb"], each["outcome"]) for each in map(json.loads, lines)]


def test_one_listener_stop_keeps_storage_open(serve, tmp_path):
    path = f"transport.socket.path={tmp_path / 'nkv.sock'}"
    node = serve("--plugin", "nkv_transport_socket", "--set", SOCKET, "--set", path)
    address = address_of(node, "nkv")
    with node.client() as client:
        assert client.put("/v1/kv/k", content="kept").status_code == 201
    node.nkv("plugins", "unload", "nkv_transport_http")
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{node.url}/healthcheck")
    get = b"GET 1 me k"
    assert ask_lines(address, get) == [b"1 OK a2VwdA==\n"]
    node.nkv("plugins", "load", "nkv_transport_http", f"--set=port={node.port}")
    with node.client() as client:
        assert client.get("/v1/kv/k").text == "kept"
    assert ask_lines(address, get) == [b"1 OK a2VwdA==\n"]


def test_tcp_has_no_plugin_verbs(serve, hello, tmp_path):
    plugin, canary = hello
    path = f"transport.socket.path={tmp_path / 'nkv.sock'}"
    plugins = [f"--plugin=nkv_transport_{name}" for name in ("socket", "resp")]
    node = serve(*plugins, "--set", SOCKET, "--set", path, "--set", "transport.resp.port=0")
    before = node.nkv("plugins", "list", "--json").stdout
    with node.client() as client:
        for verb in ("", "/list", "/load", "/replace", "/unload", "/nkv_transport_http"):
            for root in ("/plugins", "/v1/plugins", "/admin", "/v1/admin/plugins"):
                for method in ("GET", "POST", "PUT", "DELETE"):
                    body = {"spec": str(plugin), "name": "nkv_transport_http"}
                    answer = client.request(method, root + verb, json=body)
                    assert answer.status_code in (404, 405), (method, root + verb)
    request = json.dumps({"verb": "plugins.load", "params": {"spec": str(plugin)}}).encode()
    load = b"LOAD 1 me " + str(plugin).encode()
    for answer in ask_lines(address_of(node, "nkv"), request, load):
        assert b"OK" not in answer
    resp = address_of(node, "resp|redis")
    for line in (b"MODULE LOAD ", b"PLUGINS LOAD ", b"plugins.load ", b"FUNCTION LOAD "):
        (answer,) = ask_lines(resp, line + str(plugin).encode(), end=b"\r\n")
        assert answer.startswith(b"-"), answer
    assert not canary.exists()
    assert node.nkv("plugins", "list", "--json").stdout == before
    assert not (node.data_dir / "audit.jsonl").exists()


def test_mesh_peer_cannot_load(serve, hello):
    plugin, canary = hello
    node = serve("--plugin", "nkv_mesh_full", "--set", "mesh.full.port=0")
    before = node.nkv("plugins", "list", "--json").stdout
    address = address_of(node, "nkv-mesh")
    for message in (["PluginsLoad", str(plugin)], {"verb": "plugins.load", "spec": str(plugin)}):
        body = msgspec.msgpack.encode(message)
        frame = len(body).to_bytes(4, "big") + bytes(16) + body
        with socket.create_connection(address, timeout=30) as peer, suppress(ConnectionError):
            peer.sendall(frame)
            while peer.recv(65536):
                pass  # why it is not heard; then the node closes the connection
    assert not canary.exists()
    assert node.nkv("plugins", "list", "--json").stdout == before
    assert not (node.data_dir / "audit.jsonl").exists()


def test_bad_hash_symlink_writable_denied(serve, hello, tmp_path):
    plugin, canary = hello
    node = serve()
    link, writable = tmp_path / "link.py", tmp_path / "writable"
    link.symlink_to(plugin)
    writable.mkdir()
    (writable / "hello.py").write_text(plugin.read_text())
    writable.chmod(0o777)
    pin = ("--sha256", hashlib.sha256(b"something else").hexdigest())
    for arguments in ((str(link),), (str(writable / "hello.py"),), (str(plugin), *pin)):
        done = node.nkv("plugins", "load", *arguments, check=False)
        assert (done.returncode, b"(untrusted_file)" in done.stderr) == (1, True), done.stderr
    assert not canary.exists()


def test_wrong_uid_denied(serve, hello, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    plugin, canary = hello
    with tempfile.TemporaryDirectory() as folder:  # the modes above it let everybody through
        Path(folder).chmod(0o755)
        node = serve(data_dir=Path(folder) / "data")
        admin = node.data_dir / "admin.sock"
        node.data_dir.chmod(0o755)
        admin.chmod(0o666)
        stranger = (
            "import os, socket, sys\n"
            "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            "peer = socket.socket(socket.AF_UNIX); peer.settimeout(30); peer.connect(sys.argv[1])\n"
            # It is turned away at the door, and may hear that before it has asked for anything.
            "try: peer.sendall(sys.argv[2].encode() + b'\\n'); peer.recv(65536); peer.recv(1)\n"
            "except ConnectionError: pass\n"
        )
        load = json.dumps({"id": 1, "verb": "plugins.load", "params": {"spec": str(plugin)}})
        subprocess.run([sys.executable, "-c", stranger, str(admin), load], check=True, timeout=60)
        assert not canary.exists()
        assert audited(node) == [("connect", "forbidden")]


def test_every_attempt_audited(serve, hello, tmp_path):
    plugin, canary = hello
    node = serve()
    link, pinned = tmp_path / "link.py", hashlib.sha256(b"something else").hexdigest()
    link.symlink_to(plugin)
    successor = tmp_path / "nkv_notifier_sse.py"
    successor.symlink_to(plugin)
    writable = tmp_path / "writable"
    writable.mkdir()
    (writable / "hello.py").write_text(plugin.read_text())
    writable.chmod(0o777)
    refused = [
        ("load", str(link)),
        ("load", str(writable / "hello.py")),
        ("load", str(plugin), "--sha256", pinned),
        ("load", str(tmp_path / "nothing.py")),
        ("replace", "nkv_notifier_sse", str(successor)),
        ("unload", "nkv_storage_diskcache"),
        ("unload", "nothing"),
    ]
    for arguments in refused:
        assert node.nkv("plugins", *arguments, check=False).returncode in (1, 2), arguments
    assert not canary.exists()
    node.nkv("plugins", "load", str(plugin))
    assert canary.exists()
    assert audited(node) == [
        ("plugins.load", "untrusted_file"),
        ("plugins.load", "untrusted_file"),
        ("plugins.load", "untrusted_file"),
        ("plugins.load", "plugin_not_found"),
        ("plugins.replace", "untrusted_file"),
        ("plugins.unload", "plugin_in_use"),
        ("plugins.unload", "plugin_not_found"),
        ("plugins.load", "done"),
    ]


def test_two_who_replace_at_once_both_take_their_turn(serve, hello):
    plugin, _ = hello
    node = serve()
    node.nkv("plugins", "load", str(plugin))
    done = []

    def replace():
        done.append(node.nkv("plugins", "replace", "hello", str(plugin), check=False))

    threads = [threading.Thread(target=replace) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [each.returncode for each in done] == [0, 0, 0]
    listed = json.loads(node.nkv("plugins", "list", "--json").stdout)
    assert [each["generation"] for each in listed if each["state"] == "active"][-1] == 4


@pytest.mark.parametrize("plugin", ["nkv_notifier_sse", "nkv_transport_http"])
def test_sse_drain_bounded(serve, plugin):
    """Nothing waits for the deadline, which is longer than the test may take."""
    node = serve(*NO_HURRY)
    streams, ends = 10, []
    opened = threading.Barrier(streams + 1)

    def follow():
        with node.client() as client, client.stream("GET", "/v1/watch") as answer:
            lines = answer.iter_lines()
            next(lines)
            opened.wait(60)
            ends.append(list(lines))  # raises where the last chunk is missing

    threads = [threading.Thread(target=follow) for _ in range(streams)]
    for thread in threads:
        thread.start()
    opened.wait(60)
    node.nkv("plugins", "unload", plugin)
    for thread in threads:
        thread.join(60)
    assert len(ends) == streams
    assert all("event: end" in lines for lines in ends)


class Following(threading.Thread):
    """Watches and resumes by `Last-Event-ID`, as a browser does; notes each value it is told."""

    def __init__(self, node, last):
        super().__init__(daemon=True)
        self._node, self._last = node, last
        self.values, self.connections, self.gaps = [], 0, 0

    def run(self):
        token, end = None, time.monotonic() + 120
        while self.values[-1:] != [self._last] and time.monotonic() < end:
            with suppress(httpx2.TransportError), self._node.client() as client:
                headers = {} if token is None else {"Last-Event-ID": token}
                params = {"pattern": "told.*"}
                with client.stream("GET", "/v1/watch", params=params, headers=headers) as answer:
                    if answer.status_code != 200:  # the notifier is between two generations
                        continue
                    self.connections += 1
                    for line in answer.iter_lines():
                        self.gaps += line == "event: gap"
                        if line.startswith("id:"):
                            token = line.removeprefix("id:").strip()
                        elif line.startswith("data:") and '"value"' in line:
                            self.values.append(int(json.loads(line.removeprefix("data:"))["value"]))
                            if self.values[-1] == self._last:
                                return


def test_sse_resume_across_swaps(serve):
    node, last = serve(*MANY_CHANGES, "--storage", "memory"), 1_000_000
    watchers = [Following(node, last) for _ in range(3)]
    over, written = threading.Event(), []

    def write():
        with node.client() as client:
            while not over.is_set():
                answer = client.put("/v1/kv/told.k", content=str(len(written)))
                assert answer.status_code in (200, 201)
                written.append(len(written))
                time.sleep(0.001)
            client.put("/v1/kv/told.k", content=str(last))

    for watcher in watchers:
        watcher.start()
    while any(not watcher.connections for watcher in watchers):
        time.sleep(0.01)
    writer = threading.Thread(target=write)
    writer.start()
    for _ in range(2):
        node.nkv("plugins", "replace", *2 * ["nkv_notifier_sse"])
        node.nkv("plugins", "replace", *2 * ["nkv_transport_http"])
        node.nkv("storage", "migrate", "diskcache")
        node.nkv("storage", "rollback")
    over.set()
    writer.join(60)
    for watcher in watchers:
        watcher.join(120)
        assert watcher.values == [*written, last]
        assert watcher.gaps == 0
        assert watcher.connections >= 4
