"""Plugins come, change and go while clients never stop asking."""

import json
import threading
import time

import httpx2
import pytest

HELLO = """
from nkv_core import hookimpl

@hookimpl
def nkv_handlers(handlers):
    handlers.add("/hello", hello)

async def hello(request):
    return {{"hello": "{answer}"}}
"""


#: More than people make in a minute.
MANY_CHANGES = ("--set", "plugins.max_changes_per_minute=100000")


class Asking(threading.Thread):
    """A client that sets and gets without pause, over a kept and over new connections."""

    def __init__(self, url, kept):
        super().__init__(daemon=True)
        self.url, self.kept = url, kept
        self.asked, self.failed = 0, []
        self.done = threading.Event()

    def run(self):
        while not self.done.is_set():
            with httpx2.Client(base_url=self.url, timeout=30) as client:
                for _ in range(1000 if self.kept else 1):
                    self.ask(client)
                    if self.done.is_set():
                        break

    def ask(self, client):
        try:
            answer = client.get("/set", params={"k": f"key.{self.asked % 10}", "v": "v"})
            if answer.status_code != 200:
                self.failed.append(answer.text)
        except httpx2.HTTPError as error:
            self.failed.append(repr(error))
        self.asked += 1

    def stop(self):
        self.done.set()
        self.join(30)


@pytest.fixture
def asking(request):
    threads = []

    def start(url, kept):
        thread = Asking(url, kept)
        thread.start()
        threads.append(thread)
        return thread

    yield start
    for thread in threads:
        thread.stop()


def test_app_swap_zero_errors(serve, asking, tmp_path):
    node = serve(*MANY_CHANGES)
    threads = [asking(node.url, kept=True), asking(node.url, kept=False)]
    plugin = tmp_path / "hello.py"
    with node.client() as client:
        assert client.get("/hello").status_code == 404

        plugin.write_text(HELLO.format(answer="one"))
        node.nkv("plugins", "load", str(plugin))
        assert client.get("/hello").json() == {"hello": "one"}

        plugin.write_text(HELLO.format(answer="two"))
        node.nkv("plugins", "replace", "hello", str(plugin))
        assert client.get("/hello").json() == {"hello": "two"}

        node.nkv("plugins", "unload", "hello")
        assert client.get("/hello").status_code == 404
    for thread in threads:
        thread.stop()
        assert thread.asked > 0
        assert thread.failed == []


def test_failed_load_changes_nothing(serve, tmp_path):
    node = serve(*MANY_CHANGES)
    plugin = tmp_path / "hello.py"
    plugin.write_text(HELLO.format(answer="one"))
    node.nkv("plugins", "load", str(plugin))
    before = json.loads(node.nkv("plugins", "list", "--json").stdout)

    plugin.write_text("def broken(:\n")
    refused = node.nkv("plugins", "replace", "hello", str(plugin), check=False)

    assert refused.returncode == 1
    assert b"SyntaxError" in refused.stderr
    assert b"hello.py:1" in refused.stderr
    after = json.loads(node.nkv("plugins", "list", "--json").stdout)
    assert "its replacement failed" in after[-1]["error"]
    assert after == [*before[:-1], {**before[-1], "error": after[-1]["error"]}]
    with node.client() as client:
        assert client.get("/hello").json() == {"hello": "one"}


def test_rebind_zero_errors(serve, asking):
    node = serve(*MANY_CHANGES)
    new = asking(node.url, kept=False)
    for _ in range(5):
        node.nkv("plugins", "replace", "nkv_transport_http", "nkv_transport_http")
    deadline = time.monotonic() + 30
    asked = new.asked
    while new.asked < asked + 10 and time.monotonic() < deadline:
        time.sleep(0.01)
    new.stop()
    assert new.asked >= asked + 10
    assert new.failed == []


def test_storage_unload_refused_when_authoritative(serve):
    node = serve(*MANY_CHANGES)
    refused = node.nkv("plugins", "unload", "nkv_storage_diskcache", check=False)
    assert refused.returncode == 1
    assert b"plugin_in_use" in refused.stderr


LOGGER = """
import os
from nkv_core import hookimpl

OUT = {path!r}

def note(*words):
    with open(OUT, "a") as out:
        print(*words, file=out)

@hookimpl
def nkv_request_start(event): note("start", event.path)

@hookimpl
def nkv_request_complete(event): note("complete", event.path, getattr(event.error, "code", None))

@hookimpl
def nkv_request_end(event): note("end", event.path, getattr(event.error, "code", None))

@hookimpl
def nkv_connect(event): note("connect", event.transport)

@hookimpl
def nkv_disconnect(event): note("disconnect", event.transport, event.error)

@hookimpl
def nkv_handlers(handlers):
    handlers.add("/fails", fails)

def fails(request):
    raise ZeroDivisionError
"""


def test_a_plugin_sees_every_event_in_order(serve, tmp_path):
    out = tmp_path / "events"
    plugin = tmp_path / "event_logger.py"
    plugin.write_text(LOGGER.format(path=str(out)))
    node = serve("--plugin", str(plugin))
    with node.client() as client:
        assert client.get("/set", params={"k": "a", "v": "1"}).status_code == 200
        assert client.get("/fails").status_code == 500
        assert client.get("/nowhere").status_code == 404
    assert node.stop() == 0

    lines = out.read_text().splitlines()
    # The plugin comes after the transport or before it: a listener opened earlier is not told anew.
    requests = [line for line in lines if "connect" not in line]
    assert requests == [
        "start /set",
        "complete /set None",
        "end /set None",
        "start /fails",
        "complete /fails handler_failed",
        "end /fails handler_failed",
        "start /nowhere",
        "complete /nowhere no_handler",
        "end /nowhere no_handler",
    ]
    assert lines[0] == "connect http"
    assert lines[-1] == "disconnect http None"
