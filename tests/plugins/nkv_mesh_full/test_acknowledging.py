"""Writes that wait until enough nodes have them, and say so where they do not."""

import anyio
import pytest

from nkv_mesh_full.acks import Acks

FAST = {"deadline": "0.3"}
PATIENT = {"deadline": "30"}


def test_a_write_is_answered_once_as_many_nodes_have_it_as_it_asks_for(meshes):
    one, two, three = meshes.started(3, "memory")
    for level in ("majority", "all"):
        answer = one.put(f"a.{level}", b"x", acknowledge=level, **PATIENT)
        assert answer.status_code == 201
    assert two.get("a.all") == three.get("a.all") == b"x"
    batch = {"operations": [{"op": "put", "key": "b", "value": "x"}, {"op": "delete", "key": "b"}]}
    answer = one.http.post("/v1/batch", json=batch, params={"acknowledge": "all", **PATIENT})
    assert answer.status_code == 200
    answer = one.http.delete("/v1/kv/a.all", params={"acknowledge": "all", **PATIENT})
    assert answer.status_code == 204
    assert two.get("a.all") is three.get("a.all") is None


def test_where_too_few_are_reached_the_write_stands_and_the_answer_says_so(meshes):
    one, two, three = meshes.started(3)
    three.kill()
    assert one.put("with.one.down", b"x", acknowledge="majority", **PATIENT).status_code == 201
    answer = one.put("wants.all", b"x", acknowledge="all", **FAST)
    assert answer.status_code == 202
    assert answer.json()["code"] == "not_acknowledged"
    assert "2 of 3 nodes" in answer.json()["detail"]
    two.kill()
    answer = one.put("wants.majority", b"x", acknowledge="majority", **FAST)
    assert (answer.status_code, answer.json()["code"]) == (202, "not_acknowledged")
    assert one.get("wants.majority") == b"x"
    assert one.put("local", b"x").status_code == 201, "the others cost nothing"
    for node in (two, three):
        node.start()
    meshes.all_up([one, two, three])
    records = meshes.all_equal([one, two, three])
    assert set(records) == {"with.one.down", "wants.all", "wants.majority", "local"}


def test_what_the_settings_ask_for_holds_for_every_dialect(meshes):
    one = meshes.node("n1", **{"mesh.full.acknowledge": "all", "mesh.full.acknowledge_deadline": 1})
    two = meshes.node("n2")
    one.start("memory")
    two.start("memory", join=[one.mesh_address])
    meshes.all_up([one, two])
    assert one.http.get("/set", params={"k": "a", "v": "1"}).json() == {"success": True}
    assert two.get("a") == b"1"
    two.kill()
    answer = one.http.get("/set", params={"k": "a", "v": "2"})
    assert (answer.status_code, answer.json()) == (202, {"error": "NOT_ACKNOWLEDGED"})
    assert one.get("a") == b"2"
    put = one.nkv("put", "a", "3")
    assert put.returncode != 0
    assert "1 of 2 nodes" in put.stderr
    assert one.put("a", b"4", acknowledge="local").status_code == 200


@pytest.mark.parametrize(
    "params", [{"acknowledge": "some"}, {"deadline": "0"}, {"deadline": "-1"}, {"deadline": "1e9"}]
)
def test_what_cannot_be_asked_for_is_refused(meshes, params):
    one = meshes.node("n1").start("memory")
    answer = one.http.put("/v1/kv/a", content=b"x", params=params)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert one.get("a") is None


@pytest.mark.anyio
async def test_who_waits_is_woken_by_the_node_that_completes_them_and_by_none_before():
    have = {"one": 5, "two": 0}
    acks = Acks(lambda revision: sum(upto >= revision for upto in have.values()))
    done = []

    async def wait(revision, wanted):
        done.append(await acks.wait(revision, wanted, 30))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, 4, 2)
        await anyio.wait_all_tasks_blocked()
        have["two"] = 3
        acks.told()
        await anyio.wait_all_tasks_blocked()
        assert done == []
        have["two"] = 4
        acks.told()
    assert [(one.nodes, one.wanted, one.reached) for one in done] == [(2, 2, True)]
    assert len(acks) == 0


@pytest.mark.anyio
async def test_one_who_stops_waiting_leaves_nothing_behind():
    acks = Acks(lambda _: 1)
    outcome = await acks.wait(1, 2, 0.01)
    assert (outcome.nodes, outcome.reached) == (1, False)
    with anyio.move_on_after(0.01):
        await acks.wait(1, 2, 30)
    assert len(acks) == 0
    await acks.none_waits(30)
