"""`nkv watch`: what it prints; tests/end_to_end has how it lives."""

import json

import pytest

from nkv_core.cli import watch
from nkv_core.cli.main import main
from nkv_core.client import Changed, Gap, SnapshotEnd, SnapshotStart
from nkv_core.errors import Unreachable
from nkv_core.times import parse_timestamp

MODIFIED = "2026-01-31T12:00:00.250Z+3"


def changed(kind="put", key="a.b", value=b"x", **fields):
    fields = {"version": None, "previous": None, "expires": None, "cause": None, **fields}
    return Changed(
        kind=kind,
        key=key,
        value=value,
        modified=parse_timestamp(MODIFIED),
        token=fields.pop("token", None),
        **fields,
    )


def test_a_json_line_has_what_the_event_has():
    item = changed(value=b"\xff", version="h-2", previous="h-1", expires=0, cause="put", token="T")
    assert json.loads(watch.json_line(item)) == {
        "event": "put",
        "token": "T",
        "key": "a.b",
        "value_base64": "/w==",
        "version": "h-2",
        "previous": "h-1",
        "modified": MODIFIED,
        "expires": "1970-01-01T00:00:00.000Z",
        "cause": "put",
    }
    clear = json.loads(watch.json_line(changed("clear", "a.", None, cause="clear")))
    assert (clear["event"], clear["prefix"]) == ("clear", "a.")
    assert "key" not in clear
    assert "value" not in clear
    gap = json.loads(watch.json_line(Gap("A", "B", resync=True)))
    assert gap == {
        "event": "gap",
        "token": None,
        "after": "A",
        "upto": "B",
        "snapshot_follows": True,
    }
    assert json.loads(watch.json_line(SnapshotStart()))["event"] == "snapshot-start"
    assert json.loads(watch.json_line(SnapshotEnd("T"))) == {"event": "snapshot-end", "token": "T"}


@pytest.mark.parametrize("columns", [40, 80])
def test_a_line_for_people_fits_the_terminal_and_does_not_steer_it(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    plain = watch.click.unstyle
    line = plain(watch.person_line(changed(value=b"\x1b[2J\n" + b"x" * 5000)))
    assert len(line) == columns
    assert line.startswith("12:00:00.250  put     a.b  \\x1b[2J\\n")
    assert line.endswith("…")
    assert plain(watch.person_line(changed(value=b"\xff\x00"))).endswith("a.b  <2 bytes>")
    assert plain(watch.person_line(changed("delete", value=None))).endswith("delete  a.b")
    assert plain(watch.person_line(changed("clear", "a.", value=None))).endswith("clear   a.*")
    assert "follow" in watch.person_line(Gap(None, None, resync=True))
    assert watch.person_line(SnapshotStart())
    assert watch.person_line(SnapshotEnd("T"))


def test_a_long_text_is_not_taken_for_bytes_where_it_is_cut():
    for before in range(4):
        value = b"x" * before + "ü€😀".encode() * 2000
        assert watch._text(value).startswith("x" * before + "ü€😀")
    assert watch._text(b"\xff" * 9000) == "<9000 bytes>"


def test_each_kind_has_a_colour_of_its_own():
    lines = [watch.person_line(changed(kind)) for kind in watch._COLOURS]
    assert len({line.split("\x1b[3")[1][0] for line in lines}) == len(lines)


def test_an_outage_is_told_in_one_printable_line():
    told = []
    on_link = watch.link_teller(told.append)
    on_link(Unreachable("gone\x1b."))
    on_link(None)
    assert told == ["nkv: gone\\x1b. Trying again. (unreachable)", "nkv: watching again"]


def test_what_is_wrong_ends_it(node_url, monkeypatch, capsys):
    monkeypatch.setenv("NKV_URL", node_url)
    assert main(["watch", "--since", "rubbish"]) == 1
    assert "(invalid_token)" in capsys.readouterr().err
    assert main(["watch", ""]) == 1
    assert "(invalid_pattern)" in capsys.readouterr().err
