"""nkvd nodes as members, played by one that has their faults."""

import importlib.util
from pathlib import Path

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nkv_core.errors import BadRequest
from nkv_core.records import Change
from nkv_mesh_full.nkvd_form import addresses_of, operation_of, path_of, ping_answer


@pytest.fixture
def new_nkvd():
    path = Path(__file__).with_name("fake_nkvd.py")
    spec = importlib.util.spec_from_file_location("fake_nkvd", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = []

    def new(*arguments, **options):
        made.append(module.FakeNkvd(*arguments, **options))
        return made[-1]

    yield new
    for one in made:
        one.close()


def nkvd_of(node):
    return [member for member in node.mesh()["members"] if member["kind"] == "nkvd"]


def asks_of(node, path):
    """As an nkvd node would."""
    return httpx2.get(f"http://{node.mesh()['nkvd']['address']}{path}")


@pytest.fixture
def mixed(meshes, new_nkvd):
    """Two nodes of ours, and two of nkvd's that joined through the first."""
    first = new_nkvd()
    second = new_nkvd()
    settings = {"mesh.full.nkvd": f"{first.address},{second.address}", "mesh.full.nkvd_port": 0}
    one, two = meshes.node("n1", **settings), meshes.node("n2", **settings)
    one.start("memory")
    two.start("memory", join=[one.mesh_address])
    for fake in (first, second):
        fake._network_url = one.mesh()["nkvd"]["address"]
    meshes.all_up([one, two])
    meshes.eventually(lambda: all(m["state"] == "up" for n in (one, two) for m in nkvd_of(n)))
    ours = {node.mesh()["nkvd"]["address"] for node in (one, two)}
    for fake in (first, second):
        meshes.eventually(lambda: ours <= set(fake.nodes))  # noqa: B023
    return one, two, first, second


def test_what_is_written_on_either_side_is_told_to_the_other(meshes, mixed):
    one, two, first, second = mixed
    one.put("from.one", b"1")
    two.put("from.two", "ü 2&=".encode())
    httpx2.get(f"http://{first.address}/set?k=from.nkvd&v=3")
    everything = {"from.one": "1", "from.two": "ü 2&=", "from.nkvd": "3"}
    for fake in (first, second):
        meshes.eventually(lambda: fake.records == everything, say=lambda: fake.records)  # noqa: B023
    for node in (one, two):
        meshes.eventually(
            lambda: {k: v[0] for k, v in node.records().items()} == everything  # noqa: B023
        )
    meshes.all_equal([one, two])
    httpx2.get(f"http://{second.address}/rm?k=from.one")
    two.delete("from.two")
    meshes.eventually(lambda: set(one.records()) == set(two.records()) == {"from.nkvd"})
    meshes.eventually(lambda: set(first.records) == set(second.records) == {"from.nkvd"})
    one.clear()
    meshes.eventually(lambda: not (two.records() or first.records or second.records))


def test_what_nkvd_cannot_hold_is_counted_and_listed(meshes, mixed):
    one, _, first, _ = mixed
    one.put("was.short", b"x")
    meshes.eventually(lambda: first.records.get("was.short") == "x")
    one.put("was.short", b"x" * 256)
    one.put("k" * 64, b"x")
    one.put("binary", b"\xff")
    one.put("expires", b"x", ttl="60")
    one.put("last", b"x")
    meshes.eventually(lambda: first.records == {"last": "x"}, say=lambda: first.records)
    (shown, _) = nkvd_of(one)
    assert shown["not_replicated"] == 4
    assert shown["not_replicated_keys"] == {
        "was.short": "value too long",
        "k" * 64: "key too long",
        "binary": "not text",
        "expires": "it expires",
    }


def test_a_node_of_nkvd_that_was_away_is_told_everything_it_lacks(meshes, new_nkvd):
    gone = new_nkvd()
    address = gone.address
    one = meshes.node("n1", **{"mesh.full.nkvd": address, "mesh.full.nkvd_port": 0})
    one.start("memory")
    meshes.eventually(lambda: nkvd_of(one)[0]["state"] == "up")
    one.put("early", b"1")
    meshes.eventually(lambda: gone.records == {"early": "1"})
    gone.close()
    meshes.eventually(lambda: nkvd_of(one)[0]["state"] == "down")
    for number in range(20):
        assert one.put(f"away.{number}", b"x").status_code == 201
    one.delete("early")
    again = new_nkvd(port=int(address.rpartition(":")[2]))
    meshes.eventually(lambda: nkvd_of(one)[0]["state"] == "up")
    meshes.eventually(lambda: len(again.records) == 20, say=lambda: again.records)


def test_only_replicated_requests_of_those_named_are_taken(meshes, new_nkvd):
    named = new_nkvd()
    one = meshes.node("n1", **{"mesh.full.nkvd": named.address, "mesh.full.nkvd_port": 0})
    one.start("memory")
    meshes.eventually(lambda: nkvd_of(one)[0]["state"] == "up")
    one.put("a", b"1")
    for path in ("/set?k=b&v=1", "/rm?k=a", "/clear", "/get?k=a", "/getAll", "/v1/kv/a", "/x"):
        assert asks_of(one, path).status_code == 400, path
    for path in ("/set?noReplicate=true", "/set?k=b&noReplicate=true", "/rm?k=&noReplicate=true"):
        assert asks_of(one, path).status_code == 400, path
    assert asks_of(one, "/rm?k=missing&noReplicate=true").json() == {"error": "MISSING_RECORD"}
    assert list(one.records()) == ["a"]
    assert asks_of(one, "/set?k=b&v=2&noReplicate=true").json() == {"success": True}
    assert one.get("b") == b"2"
    elsewhere = meshes.node("n2", **{"mesh.full.nkvd": "192.0.2.1:8080", "mesh.full.nkvd_port": 0})
    elsewhere.start("memory")
    answer = asks_of(elsewhere, "/set?k=b&v=2&noReplicate=true")
    assert answer.status_code == 403
    assert elsewhere.records() == {}


def test_a_ping_is_answered_with_this_node_and_all_its_peers(meshes, mixed):
    one, two, first, second = mixed
    nodes = asks_of(one, "/ping?nodes=10.0.0.1:1").json()["nodes"]
    addresses = {f"{node['host']}:{node['port']}" for node in nodes}
    ours = {node.mesh()["nkvd"]["address"] for node in (one, two)}
    assert addresses == ours | {first.address, second.address}
    assert nodes[0]["source"] == "init"
    assert not any(node["isDown"] for node in nodes)


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@given(key=texts, value=texts)
def test_what_is_told_can_be_read_back(key, value):
    from urllib.parse import parse_qsl, unquote, urlsplit

    change = Change("put", "put", key, 1, 1, 1, value.encode())
    url = urlsplit(path_of(change)[0])
    operation = operation_of(unquote(url.path), dict(parse_qsl(url.query, keep_blank_values=True)))
    assert (operation.key, operation.value) == (key, value.encode())


def test_lengths_are_counted_as_nkvd_does():
    def why(key, value):
        return path_of(Change("put", "put", key, 1, 1, 1, value.encode()))[1]

    assert why("k" * 63, "v" * 255) == ""
    assert why("k" * 64, "") == "key too long"
    assert why("\U0001f511" * 32, "") == "key too long"
    assert why("k", "\U0001f511" * 128) == "value too long"
    assert path_of(Change("clear", "clear", "a.", 1, 1, 1)) == ("", "clear of a prefix")


def test_answers_to_pings_are_read_strictly():
    answer = b'{"nodes":[{"host":"::1","port":1,"isDown":false,"source":"init"}]}'
    assert addresses_of(answer) == ["[::1]:1"]
    for bad in (b"", b"[]", b'{"nodes":[{"host":1,"port":1}]}', b'{"nodes":[1]}', b"\xff"):
        with pytest.raises(BadRequest):
            addresses_of(bad)
    assert ping_answer("a:1", [("b:2", True)])["nodes"][1] == {
        "host": "b",
        "port": 2,
        "isDown": True,
        "source": "a:1",
    }
