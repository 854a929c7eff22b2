"""`nkv token new`: what it prints, and what it adds to the file."""

import os
from pathlib import Path

import pytest

from nkv_core.auth import Auth
from nkv_core.cli import main


@pytest.fixture(autouse=True)
def bare(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("NKV_"):
            monkeypatch.delenv(name)


def test_a_new_token_opens_what_was_asked_for(capsys):
    arguments = ["--read", "a.", "--read", "b.", "--write", "b.", "--file", "tokens"]
    assert main(["token", "new", "alice", *arguments]) == 0
    out, err = capsys.readouterr()
    token = out.strip()
    assert token not in err
    assert token not in Path("tokens").read_text()
    assert Path("tokens").stat().st_mode & 0o777 == 0o600

    alice = Auth.load("tokens").identify(token)
    assert alice.name == "alice"
    assert [alice.may_read(key) for key in ("a.x", "b.x", "c.x", "")] == [True, True, False, False]
    assert [alice.may_write(key) for key in ("a.x", "b.x", "c.x", "")] == [
        False,
        True,
        False,
        False,
    ]


def test_the_empty_prefix_is_that_of_all_keys(capsys):
    assert main(["token", "new", "backup", "--read", "", "--file", "tokens"]) == 0
    identity = Auth.load("tokens").identify(capsys.readouterr().out.strip())
    assert identity.may_read("")
    assert not identity.may_write("x")


@pytest.mark.parametrize("before", ["", "# no line end", "# one\n\n"])
def test_a_token_is_added_to_those_that_are_there(before, capsys):
    Path("tokens").write_text(before)
    Path("tokens").chmod(0o600)
    assert main(["token", "new", "a", "--read", "", "--file", "tokens"]) == 0
    assert main(["token", "new", "b", "--read", "", "--file", "tokens"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    auth = Auth.load("tokens")
    assert (auth.identify(first).name, auth.identify(second).name) == ("a", "b")
    assert Path("tokens").read_text().startswith(before)


@pytest.mark.parametrize("how", ["variable", "file"])
def test_the_file_is_the_one_that_the_node_reads(how, monkeypatch, capsys):
    if how == "variable":
        monkeypatch.setenv("NKV_AUTH__TOKENS", "my-tokens")
    else:
        Path("nkv.toml").write_text('[auth]\ntokens = "my-tokens"\n')
    assert main(["token", "new", "a", "--read", ""]) == 0
    assert Auth.load("my-tokens").identify(capsys.readouterr().out.strip()).name == "a"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a", "--file", "tokens"], "give --read or --write"),
        (["a", "--read", ""], "give --file"),
        (["", "--read", "", "--file", "tokens"], "name of a token"),
    ],
)
def test_what_makes_no_token_is_wrong_use(arguments, expected, capsys):
    assert main(["token", "new", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert expected in err
    assert not Path("tokens").exists()


def test_a_prefix_that_no_key_can_have_is_refused(capsys):
    assert main(["token", "new", "a", "--read", "a\n", "--file", "tokens"]) == 1
    assert "(invalid_key)" in capsys.readouterr().err
    assert not Path("tokens").exists()


def test_a_name_that_is_taken_is_refused_and_the_file_stays(capsys):
    main(["token", "new", "a", "--read", "", "--file", "tokens"])
    before = Path("tokens").read_bytes()
    capsys.readouterr()
    assert main(["token", "new", "a", "--write", "", "--file", "tokens"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "'a' already" in err
    assert Path("tokens").read_bytes() == before


def test_a_file_of_something_else_is_not_added_to(capsys):
    Path("tokens").write_text("root:x:0:0")
    assert main(["token", "new", "a", "--read", "", "--file", "tokens"]) == 2
    assert Path("tokens").read_text() == "root:x:0:0"
    assert main(["token", "new", "a", "--read", "", "--file", "none/tokens"]) == 1
    assert "none/tokens: No such file" in capsys.readouterr().err
