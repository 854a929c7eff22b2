"""docs/resp.md lists the commands that exist, and no others."""

import re
from pathlib import Path

import pytest

pytest.importorskip("hiredis")
from nkv_core.records import Change
from nkv_transport_resp.connection import SUBCOMMANDS
from nkv_transport_resp.events import events_of
from nkv_transport_resp.table import Table

DOCUMENT = (Path(__file__).parents[3] / "docs" / "resp.md").read_text()
COMMANDS = DOCUMENT.partition("## Commands")[2].partition("## Notifications")[0]
EVENTS = DOCUMENT.partition("## Notifications")[2].partition("## Tokens")[0]
NAME = re.compile(r"`([A-Z]+)`")


def rows(text):
    return [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]


def test_each_command_is_in_the_table_and_the_other_way_round():
    documented = [name for row in rows(COMMANDS) for name in NAME.findall(row[0])]
    assert len(documented) == len(set(documented))
    assert {name.lower() for name in documented} == set(Table().specs)


def test_each_subcommand_of_client_is_documented():
    (row,) = (row for row in rows(COMMANDS) if row[0] == "| `CLIENT`")
    assert {name.lower() for name in row[1].strip(" |`").split()} == set(SUBCOMMANDS)


def test_each_event_is_documented():
    documented = {name for row in rows(EVENTS) for name in re.findall(r"`([a-z_]+)`", row[0])}
    causes = [spec.name for spec in Table().specs.values()]
    told = {
        event
        for kind in ("put", "touch", "delete", "clear")
        for cause in (*causes, "put", "delete", "touch", "expire", "replicated")
        for expires in (None, 1)
        for event in events_of(Change(kind, cause, "k", 1, 1, 1, b"", None, expires))
    }
    assert documented == told


def test_what_a_transaction_does_not_hold_is_documented():
    (text,) = re.findall(r"- A transaction holds no (.*?)\. Commands", DOCUMENT, re.DOTALL)
    specs = Table().specs.values()
    alone = {spec.name.upper() for spec in specs if spec.kind == "alone" and not spec.at_once}
    assert set(NAME.findall(text)) == alone
