"""Plugins that are there because their file is in a folder; and what `--dev` makes of a save."""

import json
import time

import pytest

HELLO = """
from nkv_core import hookimpl


@hookimpl
def nkv_handlers(handlers):
    handlers.add("/{name}", lambda request: "{answer}")
"""
DEADLINE = 60


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "data" / "plugins.d"
    path.mkdir(parents=True, mode=0o700)
    path.parent.chmod(0o700)
    return path


def save(folder, name, answer):
    (folder / f"{name}.py").write_text(HELLO.format(name=name, answer=answer))


def answer(node, name):
    with node.client() as client:
        reply = client.get(f"/{name}")
    return reply.json() if reply.is_success else reply.status_code


def audited(node):
    records = list(map(json.loads, (node.data_dir / "audit.jsonl").read_text().splitlines()))
    assert {each["origin"] for each in records} == {"folder"}
    return [(each["verb"], each["plugin"], each["outcome"]) for each in records]


def until(condition, node):
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, node.stderr()
        time.sleep(0.01)


def test_the_plugins_in_the_folder_are_loaded_at_the_start(serve, folder, tmp_path):
    save(folder, "one", "first")
    save(folder, "_helper", "no plugin")
    package = folder / "two"
    package.mkdir()
    (package / "__init__.py").write_text(HELLO.format(name="two", answer="second"))
    (folder / "notes.txt").write_text("no plugin either")
    node = serve()
    assert (answer(node, "one"), answer(node, "two")) == ("first", "second")
    save(folder, "one", "changed")  # nobody looks, without --dev
    node.stop()
    node = serve()
    assert answer(node, "one") == "changed"
    node.stop()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    save(elsewhere, "three", "third")
    node = serve("--set", f"plugins.directory={elsewhere}")
    assert (answer(node, "three"), answer(node, "one")) == ("third", 404)


@pytest.mark.parametrize(
    ("source", "said"),
    [("def broken(:", "broken.py:1"), ("import nothing_of_this_name", "pip install")],
)
def test_a_broken_one_keeps_the_node_from_starting_by_name(serve, folder, source, said):
    (folder / "broken.py").write_text(source)
    with pytest.raises(AssertionError, match="the node said") as raised:
        serve()
    assert said in str(raised.value)


def test_a_folder_that_is_not_there_is_refused_where_it_is_named(nkv, tmp_path):
    done = nkv("serve", "--port", "0", "--set", f"plugins.directory={tmp_path / 'none'}")
    assert (done.returncode, "plugins.directory" in done.stderr) == (2, True)


def test_with_dev_a_save_changes_the_next_answer_and_a_mistake_changes_nothing(serve, folder):
    save(folder, "one", "first")
    node = serve("--dev")
    assert answer(node, "one") == "first"
    save(folder, "one", "second")
    until(lambda: answer(node, "one") == "second", node)

    (folder / "one.py").write_text("")  # as editors leave it for a moment
    save(folder, "two", "other")
    until(lambda: answer(node, "two") == "other", node)
    assert answer(node, "one") == "second"
    (folder / "two.py").unlink()
    until(lambda: answer(node, "two") == 404, node)

    (folder / "one.py").write_text(HELLO.format(name="one", answer="x") + "\n\ndef broken(:\n")
    until(lambda: "was not replaced" in node.stderr(), node)
    assert "one.py:10" in node.stderr()
    assert answer(node, "one") == "second"
    said = node.stderr().count("was not replaced")

    save(folder, "one", "third")
    until(lambda: answer(node, "one") == "third", node)
    assert node.stderr().count("was not replaced") == said  # a mistake is told once

    save(folder, "new", "here")
    until(lambda: answer(node, "new") == "here", node)
    (folder / "new.py").unlink()
    until(lambda: answer(node, "new") == 404, node)
    until(lambda: len(audited(node)) == 8, node)  # it is recorded once it is closed
    assert audited(node) == [
        ("plugins.load", "one", "done"),
        ("plugins.replace", "one", "done"),
        ("plugins.load", "two", "done"),
        ("plugins.unload", "two", "done"),
        ("plugins.replace", "one", "plugin_invalid"),
        ("plugins.replace", "one", "done"),
        ("plugins.load", "new", "done"),
        ("plugins.unload", "new", "done"),
    ]


def test_with_dev_a_plugin_that_was_given_by_its_path_is_watched_too(serve, tmp_path):
    place = tmp_path / "elsewhere"
    package = place / "pack"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "from .words import WORD\n" + HELLO.format(name="pack", answer="").replace('""', "WORD")
    )
    (package / "words.py").write_text("WORD = 'a'\n")
    save(place, "late", "one")
    node = serve("--dev", "--plugin", str(package))
    assert answer(node, "pack") == "a"
    (package / "words.py").write_text("WORD = 'b'\n")
    until(lambda: answer(node, "pack") == "b", node)
    node.nkv("plugins", "load", str(place / "late.py"))
    save(place, "late", "two")
    until(lambda: answer(node, "late") == "two", node)
