"""A node with every transport and notifier, at an address that it keeps over restarts."""

import json
import ssl
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anyio
import httpx2

from ...ports import free_port

#: Nothing here is TLS, and to load the authorities takes a client a tenth of a second.
NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
DEADLINE = 90  # seconds: nothing here takes as long unless it hangs
PLUGINS = (
    "nkv_transport_socket",
    "nkv_transport_nats",
    "nkv_transport_resp",
    "nkv_notifier_socketio",
    "nkv_notifier_zeromq",
    "nkv_notifier_nats",
    "nkv_notifier_webhook",
)


class Receiver(ThreadingHTTPServer):
    """Takes the POSTs of a webhook, each once: what is sent again is known by its key."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.taken = {}  #: idempotency key to body, in the order of arrival
        self._thread = threading.Thread(target=self.serve_forever)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/hook"

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # as those of a killed node end
            super().handle_error(request, client_address)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        size = int(self.headers["content-length"])
        body = self.rfile.read(size)
        if len(body) < size:  # the node was killed within it
            self.close_connection = True
            return
        self.server.taken.setdefault(self.headers["idempotency-key"], json.loads(body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


@dataclass
class Place:
    """Where a node serves, and with what. `start` starts it, and starts it again."""

    serve: object
    tmp_path: object
    env: dict
    receiver: Receiver
    broker: object
    broker_payload: int
    settings: dict = field(default_factory=dict)
    node: object = None
    url: str = ""
    starts: int = 0
    zeromq_port: int = field(default_factory=free_port)
    resp_port: int = field(default_factory=free_port)

    @property
    def max_value(self):
        """The bytes of the largest value."""
        return int(self.settings.get("keyspace.max_value_bytes", 1024 * 1024))

    @property
    def socket_path(self):
        return str(self.tmp_path / "nkv.sock")

    def start(self):
        settings = {
            "transport.socket.path": self.socket_path,
            "transport.nats.servers": self.broker.url,
            "transport.resp.port": self.resp_port,
            "notifier.nats.servers": self.broker.url,
            "notifier.zeromq.port": self.zeromq_port,
            "notifier.zeromq.heartbeat": "0.1",
            "notifier.webhook.url": self.receiver.url,
            "notifier.webhook.allow_private": "true",
            "notifier.webhook.backoff": "0.05",
            "notifier.webhook.max_backoff": "0.2",
            **self.settings,
        }
        arguments = [each for name in PLUGINS for each in ("--plugin", name)]
        for name, value in settings.items():
            arguments += ["--set", f"{name}={value}"]
        if self.node is not None:
            arguments += ["--port", str(self.node.port)]
        self.starts += 1
        self.node = self.serve(*arguments)
        self.url = self.node.url

    async def restart(self):
        """Kill it, with no word to anybody, and start it again at the same address."""
        self.node.kill()
        await anyio.to_thread.run_sync(self.start)

    def http(self):
        return httpx2.AsyncClient(
            base_url=self.url, timeout=DEADLINE, trust_env=False, verify=NO_AUTHORITIES
        )

    async def connect(self):
        return await anyio.connect_unix(self.socket_path)


async def until(condition, what="it"):
    """Wait until a condition holds; what it says of itself is shown where it never does."""
    with anyio.move_on_after(DEADLINE):
        while not condition():
            await anyio.sleep(0.005)
        return
    raise AssertionError(f"waited in vain for {what() if callable(what) else what}")


async def until_told(subscriber, count):
    """Wait until a subscriber was told of so many changes."""
    await until(
        lambda: len(subscriber.told) >= count,
        lambda: f"{subscriber.name}, which was told of {len(subscriber.told)} of {count}",
    )
