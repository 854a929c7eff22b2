"""Attempts to change the node: recorded one and all, refused when they are too many."""

import json
import os

import pytest

from nkv_core.admin import Call, Changes
from nkv_core.admin.server import Caller
from nkv_core.errors import Forbidden, Overloaded, PluginInvalid, StorageFull
from nkv_core.plugin_host.audit import FILE, Audit

CALL = Call("plugins.load", {}, Caller(pid=7, uid=1000), None)


def records(folder):
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def test_an_attempt_is_recorded_with_who_what_and_how_it_ended(tmp_path):
    audit = Audit(tmp_path)
    with audit.attempt("admin", 1000, 7, "plugins.load", spec="hello.py") as attempt:
        attempt.plugin, attempt.generation, attempt.sha256 = "hello", 3, "ab"
    with pytest.raises(PluginInvalid), audit.by_node("folder", "plugins.replace"):
        raise PluginInvalid("hello.py:3 is wrong")
    with pytest.raises(KeyError), audit.by_node("signal", "reload"):
        raise KeyError("a secret")
    audit.refused("admin", 5, 6, Forbidden("not you"))
    done, refused, failed, turned_away = records(tmp_path)
    assert done.pop("time").endswith("Z")
    assert done == {
        "origin": "admin",
        "uid": 1000,
        "pid": 7,
        "verb": "plugins.load",
        "plugin": "hello",
        "spec": "hello.py",
        "sha256": "ab",
        "generation": 3,
        "outcome": "done",
        "detail": None,
    }
    assert (refused["outcome"], refused["detail"]) == ("plugin_invalid", "hello.py:3 is wrong")
    assert (refused["uid"], refused["pid"]) == (os.geteuid(), os.getpid())
    assert (failed["outcome"], failed["detail"]) == ("failed", "KeyError")
    assert (turned_away["outcome"], turned_away["uid"], turned_away["verb"]) == (
        "forbidden",
        5,
        "connect",
    )
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_a_full_file_makes_room_and_there_are_never_more_than_two(tmp_path):
    audit = Audit(tmp_path, max_bytes=1000)
    for number in range(50):
        with audit.by_node("signal", f"number {number}"):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit.1.jsonl", FILE]
    kept = (tmp_path / "audit.1.jsonl").read_text() + (tmp_path / FILE).read_text()
    numbers = [int(json.loads(line)["verb"].split()[1]) for line in kept.splitlines()]
    assert numbers == list(range(numbers[0], 50))
    assert len(kept) < 3000


def test_where_it_cannot_be_recorded_nothing_is_done(tmp_path):
    (tmp_path / FILE).mkdir()
    with (
        pytest.raises(StorageFull, match="nothing is changed"),
        Audit(tmp_path).by_node("signal", "reload"),
    ):
        pytest.fail("it was done")


def test_a_link_in_its_place_is_not_followed(tmp_path):
    target = tmp_path / "target"
    (tmp_path / FILE).symlink_to(target)
    with pytest.raises(StorageFull), Audit(tmp_path).by_node("signal", "reload"):
        pytest.fail("it was done")
    assert not target.exists()


def test_more_changes_than_allowed_in_a_minute_are_refused_and_recorded_once(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("nkv_core.admin.changes.monotonic", lambda: now[0])
    changes = Changes(Audit(tmp_path), 3)

    def attempt():
        with changes.attempt(CALL, spec="x"):
            now[0] += 1

    for _ in range(3):
        attempt()
    for _ in range(5):
        with pytest.raises(Overloaded, match="try again in 57 s"):
            attempt()
    now[0] = 1060.5
    attempt()
    now[0] = 1060.5
    with pytest.raises(Overloaded):
        attempt()
    outcomes = [record["outcome"] for record in records(tmp_path)]
    assert outcomes == ["done", "done", "done", "overloaded", "done", "overloaded"]
