"""The suite of notifiers, with a client that resumes where it was, as browsers do."""

import base64
import json
import threading
import time
from contextlib import contextmanager

import httpx2

from nkv_core.testing import NotifierContract, Receiver, Told


class EventSource(Receiver):
    def __init__(self):
        super().__init__()
        self._told, self._last, self._client = [], None, None
        self._connected, self._closed = threading.Event(), threading.Event()

    def begin(self, node):
        self._client = httpx2.Client(
            base_url=node.addresses("http")[0].url, timeout=httpx2.Timeout(30)
        )
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._connected.wait(30)

    def _run(self):
        while not self._closed.is_set():
            headers = {} if self._last is None else {"Last-Event-ID": self._last}
            try:
                with self._client.stream("GET", "/v1/watch", headers=headers) as answer:
                    if answer.status_code == 200:
                        self._read(lines(answer.iter_bytes()))
            except (httpx2.HTTPError, httpx2.StreamError):
                pass
            time.sleep(0.01)

    def _read(self, lines):
        event = {}
        for line in lines:
            if line:
                name, _, value = line.partition(":")
                event[name] = value.removeprefix(" ")
                continue
            if "id" in event:
                self._last = event["id"]
                self._connected.set()
            if event.get("event") in ("put", "delete", "expire", "clear"):
                self._told.append(told(event["event"], json.loads(event["data"])))
            event = {}

    def told(self):
        return list(self._told)

    def close(self):
        self._closed.set()
        if self._client is not None:
            self._client.close()
            self._thread.join(30)


def lines(chunks):
    """Lines as the format has them, which end with a line feed and nothing else here."""
    left = b""
    for chunk in chunks:
        *whole, left = (left + chunk).split(b"\n")
        yield from (line.decode() for line in whole)


def told(kind, data):
    key = data["prefix"] if kind == "clear" else data["key"]
    if kind != "put":
        return Told(kind, key)
    value = data.get("value")
    encoded = base64.b64decode(data["value_base64"]) if value is None else value.encode()
    return Told(kind, key, encoded)


class TestSse(NotifierContract):
    plugin = "nkv_notifier_sse"

    @contextmanager
    def receiver(self, path):
        source = EventSource()
        try:
            yield source
        finally:
            source.close()
