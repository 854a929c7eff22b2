"""`nkv get`, `put`, `rm` and `ls`, against something that answers as a node does."""

import io
import json
import sys

import pytest

from nkv_core.cli import main
from nkv_core.client import Client


class Terminal(io.StringIO):
    """Standard output of a person."""

    def __init__(self):
        super().__init__()
        self.buffer = io.BytesIO()
        self.buffer.isatty = lambda: True

    def isatty(self):
        return True


@pytest.fixture
def nkv(plain_node, monkeypatch, capfdbinary):
    monkeypatch.setenv("NKV_URL", plain_node.url)
    monkeypatch.delenv("NKV_TOKEN", raising=False)

    def run(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main(list(arguments))
        out, err = capfdbinary.readouterr()
        return code, out, err.decode()

    return run


@pytest.fixture
def client(plain_node):
    with Client(plain_node.url) as made:
        yield made


def test_a_value_goes_in_and_comes_out_byte_for_byte(nkv, client):
    assert nkv("put", "a.b", "größe") == (0, b"", "")
    assert nkv("get", "a.b") == (0, "größe".encode(), "")
    data = bytes(range(256)) + b"\r\n"
    assert nkv("put", "bin", "-", stdin=data) == (0, b"", "")
    assert nkv("get", "bin") == (0, data, "")
    assert nkv("put", "negative", "-5")[0] == 0
    assert client.get("negative").value == b"-5"


def test_a_person_gets_a_line_end(nkv, client, monkeypatch):
    client.put("a", b"1")
    client.put("b", b"2\n")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["get", "a"]) == main(["get", "b"]) == 0
    assert terminal.buffer.getvalue() == b"1\n2\n"


def test_version_and_times_are_told_beside_the_value(nkv, client):
    version = client.put("a", b"1", expires=4_000_000_000_000).version
    code, out, err = nkv("get", "-v", "a")
    assert (code, out) == (0, b"1")
    facts = dict(line.split(": ") for line in err.splitlines())
    assert facts["version"] == version
    assert facts["expires"] == "2096-10-02T07:06:40.000Z"
    assert facts["modified"].startswith("20")


def test_what_is_not_there_has_exit_code_1(nkv):
    for command in ("get", "rm"):
        code, out, err = nkv(command, "never")
        assert (code, out) == (1, b"")
        assert err == "nkv: There is no 'never'. (not_found)\n"


def test_conditions(nkv, client):
    assert nkv("put", "a", "1", "--if-absent")[0] == 0
    code, _, err = nkv("put", "a", "2", "--if-absent")
    assert code == 1
    assert "(condition_failed)" in err
    version = client.get("a").version
    assert nkv("put", "a", "2", "--if-version", version)[0] == 0
    assert nkv("rm", "a", "--if-version", version)[0] == 1
    assert nkv("rm", "a", "--if-version", client.get("a").version)[0] == 0
    code, _, err = nkv("put", "a", "1", "--if-version", "0123456789abcdef-1")
    assert code == 1
    assert "(other_history)" in err


def test_a_time_to_live(nkv, client):
    assert nkv("put", "a", "1", "--ttl", "60")[0] == 0
    assert client.get("a").expires is not None


@pytest.mark.parametrize(
    "arguments",
    [
        ("get",),
        ("put", "a"),
        ("put", "a", "1", "2"),
        ("put", "a", "1", "--ttl", "0"),
        ("put", "a", "1", "--ttl", "soon"),
        ("put", "a", "1", "--if-absent", "--if-version", "0123456789abcdef-1"),
        ("ls", "a", "b"),
        ("get", "a", "--url", "nonsense"),
        ("get", "a", "--timeout", "0"),
        ("nonsense",),
    ],
)
def test_wrong_use_has_exit_code_2(nkv, arguments):
    code, out, err = nkv(*arguments)
    assert (code, out) == (2, b"")
    assert err.startswith("nkv: ")


@pytest.mark.parametrize("key", ["", "..", "a\nb", "x" * 600])
def test_a_key_that_is_none_is_refused(nkv, key):
    for arguments in (("get", key), ("put", key, "1"), ("rm", key)):
        code, _, err = nkv(*arguments)
        assert code == 1
        assert "(invalid_key)" in err


def test_a_node_that_is_not_there_has_exit_code_3(nkv, closed_url):
    for arguments in (("get", "a"), ("put", "a", "1"), ("rm", "a"), ("ls",)):
        code, out, err = nkv(*arguments, "--url", closed_url)
        assert (code, out) == (3, b"")
        assert "(unreachable)" in err


def test_the_token_comes_from_the_environment_and_is_never_shown(nkv, plain_node, monkeypatch):
    monkeypatch.setenv("NKV_TOKEN", "top-secret")
    _, out, err = nkv("get", "a")
    assert plain_node.server.asked[-1].headers["authorization"] == "Bearer top-secret"
    assert "top-secret" not in out.decode() + err
    monkeypatch.setenv("NKV_TOKEN", "top secret")
    code, out, err = nkv("get", "a")
    assert code == 2
    assert "top secret" not in out.decode() + err


def test_keys_are_listed_in_order(nkv, client):
    for key in ("b", "a.2", "a.1", "ü"):
        client.put(key, b"value")
    assert nkv("ls") == (0, "a.1\na.2\nb\nü\n".encode(), "")
    assert nkv("ls", "a.*") == (0, b"a.1\na.2\n", "")
    assert nkv("ls", "never") == (0, b"", "")


def test_a_long_list_has_sizes_versions_and_times(nkv, client):
    client.put("a", b"12345")
    version = client.put("b", b"", expires=4_000_000_000_000).version
    _, out, _ = nkv("ls", "-l")
    first, second = (line.split() for line in out.decode().splitlines())
    assert (first[0], first[3], first[4]) == ("5", "-", "a")
    assert second[1] == version
    assert second[3:] == ["2096-10-02T07:06:40.000Z", "b"]


def test_a_list_for_programs(nkv, client):
    version = client.put("a", b"12345", expires=4_000_000_000_000).version
    _, out, _ = nkv("ls", "--json")
    (line,) = map(json.loads, out.splitlines())
    assert line.pop("modified")
    assert line == {
        "key": "a",
        "bytes": 5,
        "version": version,
        "expires": "2096-10-02T07:06:40.000Z",
    }
