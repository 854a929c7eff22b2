"""Whole nodes that find each other, and tell each other of what is written."""

import json
import subprocess
import sys
from pathlib import Path

import httpx2

from ...ports import free_ports


def test_two_nodes_share_what_is_written_on_either(meshes):
    one, two = meshes.started(2, "memory")
    one.put("a", b"1")
    two.put("b", b"\xff\x00")
    one.put("gone", b"soon")
    meshes.eventually(lambda: two.get("gone") == b"soon")
    assert two.delete("gone") == 204
    meshes.eventually(lambda: one.get("gone") is None)
    records = meshes.all_equal([one, two])
    assert sorted(records) == ["a", "b"]
    two.clear()
    meshes.eventually(lambda: one.records() == {})


def test_five_nodes_go_on_without_the_first_and_a_sixth_joins_through_any(meshes):
    nodes = meshes.started(5, "memory")
    first, *others = nodes
    for number, node in enumerate(nodes):
        node.put(f"k{number}", node.name.encode())
    meshes.all_equal(nodes)
    first.kill()
    for number, node in enumerate(others):
        node.put(f"later{number}", b"x")
    sixth = meshes.node("n6").start("memory", join=[others[2].mesh_address])
    meshes.all_up([*others, sixth])
    records = meshes.all_equal([*others, sixth])
    assert len(records) == 9
    meshes.eventually(lambda: all(node.states()["n1"] == "down" for node in others))


def test_a_watcher_sees_a_put_elsewhere_once_and_resumes_after_a_restart(meshes):
    a, b, c = meshes.started(3)

    def watch(since=None):
        params = {"pattern": "*"} | ({} if since is None else {"since": since})
        return a.http.stream("GET", "/v1/watch", params=params)

    def told(lines, until):
        """Events up to the key `until`, as (token, event, key)."""
        found, event = [], {}
        for line in lines:
            name, _, value = line.partition(": ")
            if line == "" and "data" in event:
                data = json.loads(event["data"])
                found.append((event.get("id"), event["event"], data["key"]))
                if data["key"] == until:
                    return found
            event = {} if line == "" else {**event, name: value}
        raise AssertionError(found)

    with watch() as stream:
        lines = stream.iter_lines()
        c.put("from.c", b"1")
        events = told(lines, "from.c")
        assert [event[1:] for event in events] == [("put", "from.c")]
        b.put("from.b", b"2")
        meshes.eventually(lambda: a.get("from.b") == b"2")
        c.put("from.c.again", b"3")
        events = told(lines, "from.c.again")
    assert [event[2] for event in events] == ["from.b", "from.c.again"]
    a.kill()
    c.put("meanwhile", b"4")
    b.put("meanwhile.too", b"5")
    a.start()
    meshes.eventually(lambda: a.get("meanwhile") and a.get("meanwhile.too"))
    c.put("last", b"6")
    with watch(since=events[0][0]) as stream:
        keys = [event[2] for event in told(stream.iter_lines(), "last")]
    assert keys[0] == "from.c.again"
    assert sorted(keys) == ["from.c.again", "last", "meanwhile", "meanwhile.too"]


def test_a_node_that_stops_says_goodbye_and_is_known_when_it_returns(meshes):
    one, two = meshes.started(2)
    two.stop()
    meshes.eventually(lambda: one.states() == {"n2": "left"}, say=one.mesh)
    one.put("meanwhile", b"1")
    two.start()
    meshes.all_up([one, two])
    assert two.get("meanwhile") == b"1"
    assert two.mesh()["incarnation"] == 2


def test_nodes_on_either_event_loop_make_a_mesh(meshes):
    one = meshes.node("n1", **{"node.backend": "trio"}).start()
    two = meshes.node("n2").start("memory", join=[one.mesh_address])
    three = meshes.node("n3", **{"node.backend": "trio"}).start("memory", join=[two.mesh_address])
    meshes.all_up([one, two, three])
    for node in (one, two, three):
        node.put(node.name, b"x", acknowledge="all", deadline="30")
    assert len(meshes.all_equal([one, two, three])) == 3
    two.kill()
    meshes.eventually(lambda: one.states()["n2"] == three.states()["n2"] == "down")
    one.stop()
    meshes.eventually(lambda: three.states()["n1"] == "left", say=three.mesh)


def test_a_node_without_peers_serves_alone(meshes):
    alone = meshes.node("n1").start("memory", join=["127.0.0.1:9"])
    alone.put("a", b"1")
    assert alone.mesh()["members"][0]["state"] == "self"
    assert httpx2.get(f"{alone.url}/readyz").status_code == 200


def test_a_node_joins_by_the_url_of_anothers_http(meshes):
    one = meshes.node("n1").start("memory")
    two = meshes.node("n2").start("memory", join=[one.url])
    meshes.all_up([one, two])
    assert one.http.get("/v1/mesh").json() == {"address": one.mesh_address}


def test_an_address_that_is_none_is_refused_at_the_start(meshes):
    node = meshes.node("n1")
    node.start("memory", join=["ftp://x"], wait=False)
    assert node.process.wait(60) == 2
    assert "ftp://x" in node.log()


def test_all_that_a_node_in_the_mesh_says_of_it(meshes):
    one, two = meshes.started(2, "memory")
    shown = one.nkv("mesh")
    assert [line.split()[:3] for line in shown.stdout.splitlines()[-2:]] == [
        ["n1", one.mesh_address, "self"],
        ["n2", two.mesh_address, "up"],
    ]
    assert json.loads(one.nkv("mesh", "--json").stdout)["address"] == one.mesh_address
    wanted = (
        'nkv_mesh_members{state="up"} 1.0',
        f'nkv_mesh_lag{{peer="{two.mesh_address}"}} 0.0',
    )
    meshes.eventually(lambda: all(line in one.http.get("/metrics").text for line in wanted))


def test_five_nodes_run_by_one_command(meshes, tmp_path):
    """What `make mesh` runs, at ports of its own."""
    root = Path(__file__).parents[3]
    command = tmp_path / "nkv"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m nkv_core "$@"\n')
    command.chmod(0o700)
    base, mesh_base = free_ports(5), free_ports(5)
    with (tmp_path / "mesh.log").open("wb") as log:
        process = subprocess.Popen(
            [root / ".ci" / "mesh", command, str(base), str(mesh_base), tmp_path / "data"],
            stdout=log,
            stderr=log,
            env=meshes.environment,
        )
    try:

        def up():
            try:
                answers = [
                    httpx2.get(f"http://127.0.0.1:{base + number}/v1/status").json()["mesh"]
                    for number in range(5)
                ]
            except httpx2.HTTPError:
                return False
            return all(
                sum(member["state"] == "up" for member in one["members"]) == 4 for one in answers
            )

        meshes.eventually(up, say=(tmp_path / "mesh.log").read_text)
    finally:
        process.terminate()
        assert process.wait(60) == 0
