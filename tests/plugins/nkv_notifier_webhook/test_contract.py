"""The suite of notifiers, with a server that can hang."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from nkv_core.testing import NotifierContract, Receiver, Told


class Hook(Receiver):
    def __init__(self):
        super().__init__()
        self._told, self._seen, self._reads = [], set(), threading.Event()
        self._reads.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer._reads.wait(60)
                outer._note(self.headers["Idempotency-Key"], json.loads(body))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        self.settings = {"url": url, "allow_private": True, "backoff": 0.01}

    def _note(self, known_as, message):
        if known_as in self._seen or message["event"] not in ("put", "delete", "expire", "clear"):
            return
        self._seen.add(known_as)
        kind, data = message["event"], message["data"]
        key = data["prefix"] if kind == "clear" else data["key"]
        value = None
        if kind == "put":
            text = data.get("value")
            value = base64.b64decode(data["value_base64"]) if text is None else text.encode()
        self._told.append(Told(kind, key, value))

    def told(self):
        return list(self._told)

    def stall(self):
        self._reads.clear()

    def go_on(self):
        self._reads.set()

    def close(self):
        self.go_on()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class TestWebhook(NotifierContract):
    plugin = "nkv_notifier_webhook"
    resumes = True

    @contextmanager
    def receiver(self, path):
        hook = Hook()
        try:
            yield hook
        finally:
            hook.close()
