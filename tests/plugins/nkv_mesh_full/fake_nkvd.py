"""A node that behaves as an nkvd node was observed to, its faults among it (`wire/nkvd.md`).

It learns of others only from the answers to its own pings; one that refuses a connection is down
for ever; it tells others what was written without waiting for them, itself too; there are no
versions; a node that joins is sent nothing that was there before.
"""

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2


class FakeNkvd:
    def __init__(self, network_url=None, interval=0.2, port=0):
        self.records, self.asked = {}, []
        self.nodes, self.down = [], set()
        self._network_url, self._interval = network_url, interval
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._pool = ThreadPoolExecutor(4)
        self._http = httpx2.Client(timeout=1)
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                status, body = fake.answer(self.path)
                packed = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/json")
                self.send_header("Content-Length", str(len(packed)))
                self.end_headers()
                self.wfile.write(packed)

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            connections: ClassVar = []

            def get_request(self):
                accepted = super().get_request()
                self.connections.append(accepted[0])
                return accepted

            def handle_error(self, *_):
                pass  # whoever asked is gone

        self._server = Server(("127.0.0.1", port), Handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self.nodes.append(self.address)
        self._threads = [
            threading.Thread(target=self._server.serve_forever, args=(0.01,)),
            threading.Thread(target=self._ping_forever),
        ]
        for thread in self._threads:
            thread.start()

    def close(self):
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()
        for connected in self._server.connections:
            with suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._pool.shutdown()
        self._http.close()

    # --- what it answers --------------------------------------------------------------------------

    def answer(self, target):
        url = urlsplit(target)
        params = {name: values[0] for name, values in parse_qs(
            url.query, keep_blank_values=True).items()}  # fmt: skip
        self.asked.append((url.path, params))
        with self._lock:
            status, body = self._carry_out(url.path, params)
        changing = url.path in ("/set", "/rm", "/clear")
        if status == 200 and changing and "noReplicate" not in params:
            self._replicate(url.path, params)
        return status, body

    def _carry_out(self, path, params):
        key = params.get("k")
        if path == "/ping":
            nodes = [address.rpartition(":") for address in self.nodes]
            return 200, {"nodes": [
                {"host": host, "port": int(port), "isDown": f"{host}:{port}" in self.down,
                 "source": "init"} for host, _, port in nodes
            ]}  # fmt: skip
        if path == "/clear":
            self.records.clear()
            return 200, {"success": True}
        if path not in ("/set", "/rm", "/get"):
            return 404, {"error": f"No register handler for [{path}]"}
        if key is None or len(key) >= 64:
            return 400, {"error": "MAXIMUM_KEY_LENGTH_REACHED"}
        if path == "/set":
            if len(params["v"]) >= 256:
                return 400, {"error": "MAXIMUM_VALUE_LENGTH_REACHED"}
            self.records[key] = params["v"]
            return 200, {"success": True}
        if key not in self.records:
            return 404, {"error": "MISSING_RECORD"}
        if path == "/rm":
            del self.records[key]
            return 200, {"success": True}
        return 200, self.records[key]

    # --- what it asks -----------------------------------------------------------------------------

    def _replicate(self, path, params):
        query = urlencode({**params, "noReplicate": "true"})
        for address in self.nodes:
            if address not in self.down:
                self._pool.submit(self._ask, address, f"{path}?{query}")

    def _ask(self, address, target):
        try:
            return self._http.get(f"http://{address}{target}").json()
        except httpx2.ConnectError:
            self.down.add(address)
        except (httpx2.HTTPError, ValueError):
            pass
        return None

    def _ping_forever(self):
        while not self._ended.wait(self._interval):
            working = [address for address in self.nodes if address not in self.down]
            targets = [one for one in working if one != self.address]
            if self._network_url and self._network_url not in targets:
                targets.append(self._network_url)
            for address in targets:
                answer = self._ask(address, "/ping?" + urlencode({"nodes": "|".join(working)}))
                for node in (answer or {}).get("nodes", ()):
                    joined = f"{node['host']}:{node['port']}"
                    if joined not in self.nodes:
                        self.nodes.append(joined)
