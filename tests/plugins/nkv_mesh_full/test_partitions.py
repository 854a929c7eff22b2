"""Nodes that are cut off from each other by the network, in both directions or in one."""

import sys

import pytest

NKV = (sys.executable, "-m", "nkv_core")


@pytest.fixture
def cut_off(meshes, new_network):
    """Three nodes in namespaces of their own."""
    with new_network() as network:
        nodes = []
        for number in (1, 2, 3):
            name, address = network.host()
            node = meshes.node(
                f"n{number}", command=("ip", "netns", "exec", name, *NKV), host=address
            )
            node.namespace = name
            node.start("memory", "--insecure", join=[n.mesh_address for n in nodes[:1]])
            nodes.append(node)
        meshes.all_up(nodes)
        yield network, nodes
        for node in nodes:
            node.close()


def test_both_sides_of_a_partition_go_on_and_agree_afterwards(meshes, cut_off):
    network, (one, two, three) = cut_off
    for key in ("both", "cleared", "kept.1"):
        one.put(key, b"before")
    meshes.all_equal([one, two, three])
    network.cut(three.namespace, one.host, two.host)
    meshes.eventually(lambda: one.states()["n3"] == two.states()["n3"] == "down")
    meshes.eventually(lambda: set(three.states().values()) == {"down"})
    one.put("both", b"one")
    three.put("before.the.clear", b"x")
    two.clear()
    three.put("after.the.clear", b"x")
    three.put("both", b"three")
    network.heal()
    records = meshes.all_equal([one, two, three])
    assert {key: fields[0] for key, fields in records.items()} == {
        "after.the.clear": "x",
        "both": "three",
    }
    meshes.all_up([one, two, three])


def test_two_that_do_not_reach_each_other_are_told_by_a_third(meshes, cut_off):
    network, (one, two, three) = cut_off
    network.cut(one.namespace, three.host)
    meshes.eventually(lambda: one.states()["n3"] == "suspect", say=one.mesh)
    meshes.eventually(lambda: three.states()["n1"] == "suspect", say=three.mesh)
    one.put("from.one", b"1")
    three.put("from.three", b"3")
    records = meshes.all_equal([one, two, three])
    assert set(records) == {"from.one", "from.three"}
    assert "heard by n2" in str(one.mesh()["members"])
    network.heal()
    meshes.all_up([one, two, three])


def test_a_cut_in_one_direction_only_is_a_cut(meshes, cut_off):
    network, (one, two, three) = cut_off
    # Nothing comes to the third; what it says still goes out.
    network.cut(three.namespace, one.host, two.host)
    meshes.eventually(lambda: one.states()["n3"] == "down", say=one.mesh)
    one.put("meanwhile", b"1")
    meshes.eventually(lambda: two.get("meanwhile") == b"1")
    three.put("at.three", b"1")
    network.heal()
    records = meshes.all_equal([one, two, three])
    assert set(records) == {"meanwhile", "at.three"}


def test_a_network_that_loses_much_delays_and_loses_nothing(meshes, cut_off):
    network, nodes = cut_off
    for node in nodes:
        network.lose(node.namespace, 0.1)
    for number in range(30):
        nodes[number % 3].put(f"k.{number}", str(number).encode())
    records = meshes.all_equal(nodes)
    assert {key: fields[0] for key, fields in records.items()} == {
        f"k.{number}": str(number) for number in range(30)
    }
    network.heal()
    meshes.all_up(nodes)


def test_a_node_that_comes_and_goes_is_taken_up_each_time(meshes, cut_off):
    network, (one, two, three) = cut_off
    rounds = 4
    for number in range(rounds):
        network.cut(three.namespace, one.host, two.host)
        meshes.eventually(lambda: one.states()["n3"] != "up", say=one.mesh)
        one.put(f"one.{number}", b"1")
        three.put(f"three.{number}", b"3")
        network.heal()
        meshes.eventually(lambda: one.states()["n3"] == two.states()["n3"] == "up", say=one.mesh)
    records = meshes.all_equal([one, two, three])
    assert set(records) == {f"{who}.{n}" for who in ("one", "three") for n in range(rounds)}
    meshes.all_up([one, two, three])
