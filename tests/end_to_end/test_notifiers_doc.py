"""What docs/notifiers.md shows runs as it stands there, against real nodes and servers."""

import hashlib
import hmac
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "notifiers.md").read_text()
LINES_DEADLINE = 60


def program(title):
    """The one block of Python in a section."""
    section = DOCUMENT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    (found,) = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return found


@contextmanager
def running(source, folder, env):
    """A program that runs while the block does."""
    path = folder / "program.py"
    path.write_text(source)
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-u", path], stdout=subprocess.PIPE, stderr=stderr, env=env, cwd=folder
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def put_until_told(client, process, said):
    """Put until the program, which connects at a time of its own, prints the first line."""
    told = []
    reader = threading.Thread(target=lambda: told.append(process.stdout.readline().decode()))
    reader.start()
    end = time.monotonic() + LINES_DEADLINE
    number = 0
    while reader.is_alive() and time.monotonic() < end:
        client.put("/v1/kv/service.a", content=f"value {number}").raise_for_status()
        number += 1
        reader.join(0.1)
    if reader.is_alive():
        process.kill()
    reader.join()
    assert re.search(said, told[0]), told


def test_the_client_of_socket_io_prints_updates(serve, tmp_path, clean_env):
    node = serve("--plugin", "nkv_notifier_socketio")
    source = program("Socket.IO").replace("http://127.0.0.1:8080", node.url)
    with node.client() as client, running(source, tmp_path, clean_env) as process:
        put_until_told(client, process, r"^Key: service\.a set with value: value \d+$")


def test_the_subscriber_of_zeromq_prints_changes(serve, tmp_path, clean_env):
    node = serve("--plugin", "nkv_notifier_zeromq", "--set", "notifier.zeromq.port=0")
    with node.client() as client:
        address = re.search(r"tcp://127\.0\.0\.1:\d+", client.get("/v1/status").text).group()
        source = program("ZeroMQ").replace("tcp://127.0.0.1:5556", address)
        with running(source, tmp_path, clean_env) as process:
            put_until_told(client, process, r'^put service\.a \{"key":"service\.a",.*"value \d+"')


def test_the_subscriber_of_nats_prints_changes(serve, nats_server, tmp_path, clean_env):
    server = nats_server()
    node = serve("--plugin", "nkv_notifier_nats", "--set", f"notifier.nats.servers={server.url}")
    source = program("NATS").replace("nats://127.0.0.1:4222", server.url)
    with node.client() as client, running(source, tmp_path, clean_env) as process:
        put_until_told(client, process, r'^1\.[0-9a-f]+\.\d+ nkv\.key\.service\.a \{"key":')


def test_the_receiver_of_webhooks_knows_the_genuine_signature():
    names = {}
    exec(program("Webhook"), names)  # the document's own
    signature = "sha256=" + hmac.new(b"secret", b"body", hashlib.sha256).hexdigest()
    assert names["is_genuine"](b"secret", b"body", signature)
    assert not names["is_genuine"](b"secret", b"another", signature)
    assert not names["is_genuine"](b"wrong", b"body", signature)


@pytest.fixture(autouse=True)
def needs_its_libraries():
    for library in ("socketio", "zmq", "nats"):
        pytest.importorskip(library)
