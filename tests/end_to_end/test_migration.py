"""`nkv storage`: the storage of a running node is exchanged by command."""

import json

import pytest


@pytest.fixture
def node(serve):
    return serve("--storage", "memory")


def status_of(node):
    return json.loads(node.nkv("storage", "status", "--json").stdout)


def test_memory_to_diskcache_and_back_and_on_by_command(node, serve, nkv):
    versions = {}
    with node.client() as client:
        for number in range(50):
            answer = client.put(f"/v1/kv/k{number}", content=str(number))
            versions[f"k{number}"] = answer.headers["ETag"]
        done = node.nkv("storage", "migrate", "diskcache")
        assert done.stdout.decode() == "diskcache is in charge: 50 records copied\n"
        assert client.get("/v1/status").json()["storage"] == "diskcache"
        assert client.get("/v1/status").json()["migration"]["phase"] == "baking"
        assert client.put("/v1/kv/late", content="1").status_code == 201

        node.nkv("storage", "rollback")
        assert status_of(node)["in_charge"] == "memory"
        assert client.get("/v1/kv/late").text == "1"

        node.nkv("storage", "migrate", "diskcache")
        node.nkv("storage", "commit")
        assert status_of(node)["migration"]["phase"] == "done"
        node.nkv("plugins", "unload", "nkv_storage_memory")
        for key, version in versions.items():
            assert client.get(f"/v1/kv/{key}").headers["ETag"] == version
    node.kill()

    refused = nkv("serve", "--data-dir", str(node.data_dir), "--storage", "memory", "--port", "0")
    assert refused.returncode == 1
    assert "(other_storage)" in refused.stderr
    assert "nkv storage migrate memory" in refused.stderr

    again = serve(data_dir=node.data_dir)
    with again.client() as client:
        assert client.get("/v1/kv/late").text == "1"
        assert client.get("/v1/kv/k7").headers["ETag"] == versions["k7"]


def test_a_target_that_keeps_nothing_has_to_be_meant(serve):
    node = serve()
    refused = node.nkv("storage", "migrate", "memory", check=False)
    assert refused.returncode == 1
    assert b"(volatile_target)" in refused.stderr
    node.nkv("storage", "migrate", "memory", "--allow-volatile", "--bake", "0")
    assert status_of(node)["in_charge"] == "memory"


def test_what_cannot_be_done_is_refused_and_changes_nothing(node):
    for arguments, code in [
        (("migrate", "memory"), b"(bad_request)"),
        (("migrate", "nothing"), b"(invalid_settings)"),
        (("migrate", "diskcache", "--set", "colour=red"), b"(invalid_settings)"),
        (("rollback",), b"(no_migration)"),
        (("commit",), b"(no_migration)"),
    ]:
        refused = node.nkv("storage", *arguments, check=False)
        assert refused.returncode in (1, 2)
        assert code in refused.stderr
    assert status_of(node)["in_charge"] == "memory"
    assert not (node.data_dir / "storage.json").exists()


def test_there_are_no_verbs_over_http(node):
    with node.client() as client:
        for path in ("/v1/storage/migrate", "/v1/storage", "/v1/migrate"):
            assert client.post(path, json={"name": "diskcache"}).status_code == 404
