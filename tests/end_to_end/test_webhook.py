"""A node that is killed while it delivers: every acknowledged write reaches the receiver."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

DEADLINE = 60


class Receiver(ThreadingHTTPServer):
    """Takes two of three POSTs, and notes these."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.taken, self.asked = [], 0
        self.news = threading.Condition()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/hook"

    def until(self, condition):
        with self.news:
            assert self.news.wait_for(condition, DEADLINE), self.taken[-3:]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.news:
            self.server.asked += 1
            took = self.server.asked % 3 != 0
            if took:
                self.server.taken.append((self.headers["idempotency-key"], body))
            self.server.news.notify_all()
        self.send_response(204 if took else 503)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def receiver():
    with Receiver() as receiver:
        thread = threading.Thread(target=receiver.serve_forever)
        thread.start()
        yield receiver
        receiver.shutdown()
        thread.join()


@pytest.mark.one_python
def test_kills_lose_nothing_and_keep_the_order(serve, receiver):
    settings = {
        "url": receiver.url,
        "allow_private": "true",
        "backoff": "0.01",
        "max_backoff": "0.05",
    }
    arguments = ["--plugin", "nkv_notifier_webhook"]
    for name, value in settings.items():
        arguments += ["--set", f"notifier.webhook.{name}={value}"]
    written = 0
    for _ in range(3):
        node = serve(*arguments)
        with node.client() as client:
            for _ in range(40):
                client.put("/v1/kv/k", content=str(written)).raise_for_status()
                written += 1
        node.kill()
    node = serve(*arguments)
    last = str(written - 1)
    receiver.until(lambda: receiver.taken and receiver.taken[-1][1]["data"]["value"] == last)
    assert node.stop() == 0
    first_of_each = dict(reversed(receiver.taken))
    order = list(dict.fromkeys(known_by for known_by, _ in receiver.taken))
    assert [first_of_each[each]["data"]["value"] for each in order] == [
        str(number) for number in range(written)
    ]
