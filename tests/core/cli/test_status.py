"""`nkv status`: shows what the node answers."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from nkv_core.cli import main

STATUS = {"name": "alpha", "keyspace": {"storage": "memory", "queued": 0}, "ready": True}


@pytest.fixture
def node():
    """An address where `/v1/status` is answered."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps(STATUS if self.path == "/v1/status" else {}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(20)


def test_the_status_is_fields_for_programs(node, capsys):
    assert main(["status", "--url", node]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "name\talpha",
        "keyspace.storage\tmemory",
        "keyspace.queued\t0",
        "ready\ttrue",
    ]


def test_the_status_as_json_is_whole(node, capsys, monkeypatch):
    monkeypatch.setenv("NKV_URL", node)
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == STATUS


def test_without_a_node_the_address_is_named(capsys):
    try:
        code = main(["status", "--url", "http://127.0.0.1:1"])
    except SystemExit as ended:
        code = ended.code
    assert code == 3
    assert "127.0.0.1:1" in capsys.readouterr().err
