"""Nodes that were away, killed, paused or set back, and agree again."""

import shutil
import signal
import threading

SECRET = "a secret of these tests"


def test_a_killed_node_goes_on_from_its_cursors(meshes):
    one, two, three = meshes.started(3)
    one.put("before", b"1")
    for number in range(300):
        three.put(f"before.{number}", b"x")
    meshes.all_equal([one, two, three])
    meshes.all_kept(two)
    two.kill()
    for number in range(50):
        (one, three)[number % 2].put(f"away.{number}", b"x")
    one.delete("before")
    meshes.eventually(lambda: one.states()["n2"] == "down")
    two.start()
    meshes.all_up([one, two, three])
    assert len(meshes.all_equal([one, two, three])) == 350
    # What was written meanwhile, perhaps from both of the others, and not what was there before.
    assert two.mesh()["changes_received"] < 300


def test_one_that_was_away_for_longer_than_the_log_reaches_back_is_compared(meshes):
    settings = {"keyspace.log_bytes": 20_000}
    one, two = meshes.node("n1", **settings), meshes.node("n2", **settings)
    one.start()
    two.start(join=[one.mesh_address])
    meshes.all_up([one, two])
    for number in range(20):
        one.put(f"kept.{number}", b"x" * 100)
    meshes.all_equal([one, two])
    two.kill()
    for number in range(300):
        one.put(f"away.{number % 100}", b"x" * 1000)
    one.delete("kept.7")
    two.start()
    meshes.all_up([one, two])
    records = meshes.all_equal([one, two])
    assert len(records) == 119
    compared = [node.mesh()["last_comparison"] for node in (one, two)]
    assert any("log" in one["why"] for one in compared if one), compared


def test_one_that_was_away_for_longer_than_deletions_are_remembered_brings_nothing_back(meshes):
    settings = {"keyspace.tombstone_age": 2, "keyspace.log_age": 2, "mesh.full.max_skew": 0.5}
    one, two = meshes.node("n1", **settings), meshes.node("n2", **settings)
    one.start()
    two.start(join=[one.mesh_address])
    meshes.all_up([one, two])
    one.put("deleted", b"1")
    one.put("kept", b"1")
    meshes.all_equal([one, two])
    two.kill()
    one.delete("deleted")
    # The log has the same age, and is cut just before deletions are forgotten: once for the
    # deletion, and once more to be sure that what came behind the first time is over.
    for _ in range(2):
        revision = one.status()["keyspace"]["revision"]
        meshes.eventually(
            lambda: one.status()["keyspace"]["log"]["after_revision"] >= revision  # noqa: B023
        )
        one.put("kept", b"1")
    two.start()
    meshes.all_up([one, two])
    assert list(meshes.all_equal([one, two])) == ["kept"]
    dropped = sum(node.mesh()["stale_records_dropped"] for node in (one, two))
    assert dropped == 1
    assert "away for longer" in one.log() + two.log()


def test_a_node_restored_from_an_old_backup_gets_what_came_later(meshes, tmp_path):
    one, two = meshes.started(2)
    two.put("early", b"1")
    meshes.all_equal([one, two])
    assert two.nkv("backup", str(tmp_path / "backup")).returncode == 0
    two.put("late", b"2")
    two.put("early", b"3")
    meshes.all_equal([one, two])
    two.stop()
    shutil.rmtree(two.data)
    restored = two.nkv("restore", str(tmp_path / "backup"), "--data-dir", str(two.data))
    assert restored.returncode == 0, restored.stderr
    two.start()
    meshes.all_up([one, two])
    two.put("after", b"4")
    records = meshes.all_equal([one, two])
    assert {key: fields[0] for key, fields in records.items()} == {
        "early": "3",
        "late": "2",
        "after": "4",
    }


def test_a_paused_node_is_given_up_costs_nothing_and_returns(meshes):
    one, two, three = meshes.started(3, "memory")
    two.signal(signal.SIGSTOP)
    for number in range(100):
        one.put(f"paused.{number}", b"x")
    meshes.eventually(lambda: one.states()["n2"] == "down")
    meshes.eventually(lambda: len(three.records()) == 100)
    two.signal(signal.SIGCONT)
    meshes.all_up([one, two, three])
    meshes.all_equal([one, two, three])


def test_what_a_dead_node_told_only_one_other_is_passed_on(meshes):
    one, two, three = meshes.started(3, "memory")
    two.signal(signal.SIGSTOP)
    three.put("told.to.one", b"x")
    meshes.eventually(lambda: one.get("told.to.one") == b"x")
    three.kill()
    two.signal(signal.SIGCONT)
    meshes.eventually(lambda: two.get("told.to.one") == b"x", say=two.mesh)


def test_a_node_that_leaves_for_good_hands_over_first_and_is_known_no_more(meshes):
    one, two, three = meshes.started(3)
    three.put("last", b"x")
    left = three.nkv("mesh", "leave")
    assert left.returncode == 0, left.stderr
    assert one.get("last") == two.get("last") == b"x"
    meshes.eventually(lambda: set(one.states()) == {"n2"} and set(two.states()) == {"n1"})
    assert three.mesh()["left"]
    assert three.states() == {}
    three.put("alone", b"x")
    assert one.get("alone") is None
    three.stop()
    three.start()
    assert three.states() == {}


def test_it_is_loaded_replaced_and_unloaded_under_load_without_a_failed_request(meshes):
    one, two = meshes.started(2, "memory")
    stop, failed, counts = threading.Event(), [], []

    def load(node, number):
        count = 0
        while not stop.is_set():
            answer = node.http.put(f"/v1/kv/load.{number}.{count % 50}", content=b"x")
            if answer.status_code not in (200, 201):
                failed.append(answer.text)
            count += 1
        counts.append(count)

    threads = [threading.Thread(target=load, args=(one, number)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            replaced = one.nkv("plugins", "replace", "nkv_mesh_full", "nkv_mesh_full")
            assert replaced.returncode == 0, replaced.stderr
            meshes.all_up([one, two])
            assert two.states() == {"n1": "up"}
        assert "down" not in two.log()
        port = f"--set=port={one.mesh_port}"
        for _ in range(2):
            unloaded = one.nkv("plugins", "unload", "nkv_mesh_full")
            assert unloaded.returncode == 0, unloaded.stderr
            meshes.eventually(lambda: two.states() == {"n1": "left"}, say=two.mesh)
            loaded = one.nkv("plugins", "load", "nkv_mesh_full", port, f"--set=secret={SECRET}")
            assert loaded.returncode == 0, loaded.stderr
            meshes.all_up([one, two])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed
    assert min(counts) > 20
    meshes.all_equal([one, two])
