"""The whole plugin, in a node on a real port."""

import httpx2
import pytest

from nkv_core import Node, load_settings


@pytest.fixture
def url(tmp_path):
    settings = load_settings(
        flags={
            "node.data_dir": str(tmp_path / "data"),
            "transport.http.port": 0,
            "plugins.load": ["nkv_example"],
            "storage.name": "sqlite",
        }
    )
    with Node.in_thread(settings) as node:
        yield node.addresses[0]


def test_the_handler_reads_what_was_written(url):
    with httpx2.Client(base_url=url) as client:
        assert client.get("/set?k=greeting&v=hello").json() == {"success": True}
        assert client.get("/shout?k=greeting").json() == {"shout": "HELLO"}
        assert client.get("/shout?k=nothing").json() == {"shout": None}


def test_the_listener_refuses_what_it_forbids(url):
    with httpx2.Client(base_url=url) as client:
        answer = client.get("/set?k=forbidden.fruit&v=1")
        assert answer.status_code == 403
        assert answer.json() == {"error": "forbidden_key"}
        assert client.get("/get?k=forbidden").status_code == 404
