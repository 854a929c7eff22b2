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


def test_a_watch_goes_on_from_its_token_and_its_settings_are_kept(node, serve, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    with node.client() as client:
        token = client.get("/v1/status").json()["token"]
        for number in range(20):
            client.put("/v1/kv/k.a", content=str(number))
        node.nkv("storage", "migrate", "diskcache", "--set", f"directory={elsewhere}")
        for number in range(20, 40):
            client.put("/v1/kv/k.a", content=str(number))
        node.nkv("storage", "rollback")
        for number in range(40, 60):
            client.put("/v1/kv/k.a", content=str(number))
        node.nkv("storage", "migrate", "diskcache", "--set", f"directory={elsewhere}")
        assert values_since(client, token, 60) == list(range(60))
    node.stop()

    again = serve(data_dir=node.data_dir)
    assert any(elsewhere.iterdir())
    with again.client() as client:
        assert values_since(client, token, 60) == list(range(60))


def values_since(client, token, count):
    """The values that a watch tells from a token on."""
    found = []
    with client.stream("GET", "/v1/watch", params={"pattern": "k.*", "since": token}) as answer:
        for line in answer.iter_lines():
            assert not line.startswith("event: gap")
            if line.startswith("data: "):
                found.append(int(json.loads(line.removeprefix("data: "))["value"]))
            if len(found) == count:
                return found
    raise AssertionError(f"the watch ended after {found}")


def test_a_target_whose_disk_fills_is_left_and_nothing_is_lost(serve, small_disk):
    node = serve()
    values = {f"k{number}": bytes([number]) * 1_000_000 for number in range(30)}
    with node.client() as client:
        for key, value in values.items():
            assert client.put(f"/v1/kv/{key}", content=value).status_code == 201
        refused = node.nkv(
            "storage", "migrate", "diskcache", "--set", f"directory={small_disk}/data", check=False
        )
        assert refused.returncode == 1
        assert b"(migration_failed)" in refused.stderr
        status = status_of(node)
        assert status["migration"]["phase"] == "failed"
        for key, value in values.items():
            assert client.get(f"/v1/kv/{key}").content == value
        assert client.put("/v1/kv/later", content="1").status_code == 201
    node.kill()
    again = serve(data_dir=node.data_dir)
    with again.client() as client:
        assert client.get("/v1/kv/later").text == "1"
