"""The suite of transports."""

import httpx2

from nkv_core.testing import TransportContract


class TestHttpTransport(TransportContract):
    plugin = "nkv_transport_http"
    listener = "http"

    def prepare(self, node):
        node.put("a", b"1")

    def ask(self, address):
        with httpx2.Client(base_url=address.url, timeout=30) as client:
            answer = client.get("/v1/kv/a")
            return answer.status_code, answer.content
