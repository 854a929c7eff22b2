"""Settings that are changed while the node serves: `nkv reload`, and SIGHUP."""

import json
import signal
import time

import pytest

SAYS = """
import msgspec
from nkv_core import hookimpl


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    word: str = "none"


@hookimpl
def nkv_settings():
    return Settings


@hookimpl
async def nkv_setup(ctx):
    ctx.handlers.add("/{name}", lambda request: ctx.settings.word)
    yield
"""
DEADLINE = 30


@pytest.fixture
def config(tmp_path):
    """Write the settings file, with some plugins and their words."""
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.py").write_text(SAYS.replace("{name}", name))

    def write(more="", **words):
        lines = [f"[plugins]\nload = {json.dumps([str(tmp_path / f'{n}.py') for n in words])}"]
        lines += [f'[plugin.{name}]\nword = "{word}"' for name, word in words.items()]
        path = tmp_path / "nkv.toml"
        path.write_text("\n".join([*lines, more]))
        return path

    return write


def words(node):
    with node.client() as client:
        answers = {name: client.get(f"/{name}") for name in ("one", "two", "three")}
    return {name: answer.json() for name, answer in answers.items() if answer.is_success}


def generations(node):
    listed = json.loads(node.nkv("plugins", "list", "--json").stdout)
    serving = [info for info in listed if info["state"] == "active"]  # one that drains is not
    return {info["name"]: info["generation"] for info in serving if info["name"] in words(node)}


def audited(node):
    lines = (node.data_dir / "audit.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_what_has_changed_is_applied_and_nothing_else_is_touched(serve, config):
    node = serve("--config", str(config(one="a", two="b")))
    assert words(node) == {"one": "a", "two": "b"}
    config("[keyspace]\nlog_age = 60.0", one="a", two="new", three="c")
    planned = node.nkv("reload", "--dry-run").stdout.decode().splitlines()
    assert planned == [
        f"would load: {node.data_dir.parent / 'three.py'}",
        "would replace: two",
        "would need a new start: keyspace.log_age",
    ]
    assert words(node) == {"one": "a", "two": "b"}
    done = json.loads(node.nkv("reload", "--json").stdout)
    assert (done["replace"], done["restart"]) == (["two"], ["keyspace.log_age"])
    assert words(node) == {"one": "a", "two": "new", "three": "c"}
    assert generations(node) == {"one": 1, "two": 2, "three": 1}
    config(one="a", three="c")
    assert node.nkv("reload").stdout.decode().splitlines() == ["unloaded: two"]
    assert words(node) == {"one": "a", "three": "c"}
    assert node.nkv("reload").stdout.decode() == "nothing has changed\n"
    assert [(each["verb"], each["outcome"]) for each in audited(node)] == 3 * [("reload", "done")]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("this is no TOML", "not valid TOML"),
        ("[plugin.one]\nword = 5", "not valid TOML"),  # a table twice
        ("[nonsense]\na = 1", "no section nonsense"),
        ("[transport.http]\nmax_connections = 'x'", "transport.http.max_connections"),
        ("[notifier.sse]\nheartbeat = -1", "notifier.sse.heartbeat"),
        ("[plugin.other]\na = 1", "plugin.other"),
    ],
)
def test_an_invalid_file_changes_nothing_and_says_why(serve, config, broken, said):
    node = serve("--config", str(config(one="a", two="b")))
    config(broken, one="changed", two="b")
    for arguments in (("reload", "--dry-run"), ("reload",)):
        refused = node.nkv(*arguments, check=False)
        assert refused.returncode in (1, 2)
        assert said in refused.stderr.decode()
    assert words(node) == {"one": "a", "two": "b"}
    assert generations(node) == {"one": 1, "two": 1}
    (attempt,) = audited(node)
    assert attempt["outcome"] == "invalid_settings"


def test_a_plugin_that_fails_keeps_all_others_as_they_were(serve, config, tmp_path):
    node = serve("--config", str(config(one="a", two="b")))
    (tmp_path / "two.py").write_text("raise OSError('not today')")
    config(one="new", two="new", three="c")
    refused = node.nkv("reload", check=False)
    assert (refused.returncode, "not today" in refused.stderr.decode()) == (1, True)
    assert words(node) == {"one": "a", "two": "b"}


def test_a_hang_up_reads_the_settings_again(serve, config):
    node = serve("--config", str(config(one="a")))
    config(one="b")
    node.process.send_signal(signal.SIGHUP)
    end = time.monotonic() + DEADLINE
    while words(node) != {"one": "b"} and time.monotonic() < end:
        time.sleep(0.02)
    assert words(node) == {"one": "b"}
    config("nonsense")
    node.process.send_signal(signal.SIGHUP)
    while "were not read again" not in node.stderr() and time.monotonic() < end:
        time.sleep(0.02)
    assert "not valid TOML" in node.stderr()
    assert words(node) == {"one": "b"}
    assert [(each["origin"], each["outcome"]) for each in audited(node)] == [
        ("signal", "done"),
        ("signal", "invalid_settings"),
    ]


def test_the_port_of_the_node_changes_and_who_is_connected_is_served_on(serve, config, tmp_path):
    from nkv_core.client import Client

    path = tmp_path / "port.toml"
    path.write_text("[transport.http]\nmax_connections = 100\n")
    node = serve("--config", str(path))
    with Client(node.url) as client:
        client.put("a", b"1")
        path.write_text("[transport.http]\nmax_connections = 200\n")
        assert node.nkv("reload").stdout.decode() == "replaced: nkv_transport_http\n"
        assert client.get("a").value == b"1"


def test_tokens_are_read_again(serve, tmp_path):
    tokens = tmp_path / "tokens"
    path = tmp_path / "tokens.toml"
    path.write_text(f'[auth]\ntokens = "{tokens}"\n')

    def token(name):
        arguments = ("token", "new", name, "--read", "", "--write", "", "--file", str(tokens))
        return made.nkv(*arguments).stdout.decode().strip()

    made = serve(data_dir=tmp_path / "other")
    first = token("first")
    node = serve("--config", str(path), data_dir=tmp_path / "data")
    second = token("second")

    def status(text):
        with node.client() as client:
            return client.get("/v1/kv/a", headers={"X-Api-Key": text}).status_code

    assert (status(first), status(second)) == (404, 401)
    node.nkv("reload")
    assert (status(first), status(second)) == (404, 404)
    tokens.write_text("\n".join(t for t in tokens.read_text().splitlines() if "first" not in t))
    node.nkv("reload")
    assert (status(first), status(second)) == (401, 404)


def test_a_module_in_a_package_is_loaded_with_the_settings_of_its_name(serve, tmp_path):
    (tmp_path / "says").mkdir()
    (tmp_path / "says" / "one.py").write_text(SAYS.replace("{name}", "one"))
    path = tmp_path / "nkv.toml"
    path.write_text("")
    node = serve("--config", str(path), env={"PYTHONPATH": str(tmp_path)})
    path.write_text('plugins.load = ["says.one"]\nplugin.one.word = "hello"\n')
    assert node.nkv("reload").stdout.decode() == "loaded: says.one\n"
    assert words(node) == {"one": "hello"}
