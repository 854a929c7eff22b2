"""Settings: origins, precedence, conversion, and what a wrong one is told."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nkv_core.config import (
    CORE_SECTIONS,
    Section,
    Settings,
    convert_section,
    environment_name,
    load_settings,
    parse_assignment,
    section_of,
)
from nkv_core.contracts.settings import NodeSettings
from nkv_core.errors import SettingsError

SECRET = "hunter2-hunter2"


class Inner(msgspec.Struct, frozen=True):
    certificate: str = ""
    verify: bool = True


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 80
    ratio: float = 1.0
    hosts: tuple[str, ...] = ()
    sizes: list[int] = []
    mode: Literal["fast", "safe"] = "safe"
    path: str | None = None
    tls: Inner = Inner()
    backup: Inner | None = None
    labels: dict[str, int] = {}

    def __post_init__(self):
        if self.port == 1:
            raise ValueError("port 1 is kept free.")


class Needy(msgspec.Struct):
    url: str


@pytest.fixture
def file(tmp_path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "nkv.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def sample(**flags) -> Sample:
    prefixed = {f"plugin.sample.{name}": value for name, value in flags.items()}
    section = load_settings(flags=prefixed).section("plugin.sample")
    return convert_section("plugin.sample", section, Sample)


def refusal(**arguments) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(**arguments)
    return caught.value.detail


# --- origins and precedence -----------------------------------------------------------------------


def test_without_anything_all_is_default():
    settings = load_settings()
    assert settings == Settings()
    assert settings.storage == "diskcache"
    assert settings.node.data_dir == "./nkv-data"
    assert dict(settings.section("transport.http")) == {}


def test_flags_beat_the_environment_which_beats_the_file(file):
    config = file('[node]\nname = "file"\nstop_deadline = 3\n[transport.http]\nport = 1000\n')
    environ = {"NKV_NODE__NAME": "environment", "NKV_TRANSPORT__HTTP__PORT": "2000"}
    flags = {"transport.http.port": 3000}

    assert load_settings(config=config).node.name == "file"
    assert load_settings(config=config, environ=environ).node.name == "environment"
    settings = load_settings(config=config, environ=environ, flags=flags)
    assert settings.node.name == "environment"
    assert settings.node.stop_deadline == 3.0
    assert settings.section("transport.http")["port"] == 3000


@pytest.mark.parametrize(
    ("variable", "value", "section", "key", "expected"),
    [
        ("PORT", "9000", "transport.http", "port", "9000"),
        ("MESH_NETWORK_URL", "http://a:1", "mesh.full", "join", "http://a:1"),
    ],
)
def test_variables_of_nkvd_set_what_they_did_there(variable, value, section, key, expected):
    settings = load_settings(environ={variable: value})
    assert settings.section(section)[key] == expected


def test_hostname_names_the_node():
    assert load_settings(environ={"HOSTNAME": "box"}).node.name == "box"


def test_short_variables_give_way_to_the_long_ones():
    environ = {
        "PORT": "1",
        "NKV_TRANSPORT__HTTP__PORT": "2",
        "HOSTNAME": "box",
        "NKV_NODE__NAME": "alpha",
        "NKV_STORAGE": "memory",
        "NKV_STORAGE__NAME": "other",
        "NKV_DATA_DIR": "/short",
        "NKV_NODE__DATA_DIR": "/long",
    }
    settings = load_settings(environ=environ)
    assert settings.section("transport.http")["port"] == "2"
    assert settings.node.name == "alpha"
    assert settings.storage == "other"
    assert settings.node.data_dir == "/long"


def test_empty_short_variables_and_variables_of_others_say_nothing():
    environ = {"PORT": "", "HOSTNAME": "", "NKV_SERVICE_HOST": "10.0.0.1", "NKV_PORT": "tcp://x"}
    assert load_settings(environ=environ) == Settings()


@pytest.mark.parametrize(
    "arguments",
    [
        {"flags": {"storage.name": "memory"}},
        {"flags": {"storage": "memory"}},
        {"environ": {"NKV_STORAGE": "memory"}},
        {"environ": {"NKV_STORAGE__NAME": "memory"}},
    ],
)
def test_the_storage_is_named_beside_the_settings_of_storages(arguments, file):
    config = file('[storage]\nname = "other"\n[storage.diskcache]\ncheckpoint = 5\n')
    settings = load_settings(config=config, **arguments)
    assert settings.storage == "memory"
    assert dict(settings.section("storage.diskcache")) == {"checkpoint": 5}
    assert load_settings(config=config).storage == "other"


def test_a_storage_alone_may_be_named_in_one_line(file):
    assert load_settings(config=file('storage = "memory"\n')).storage == "memory"


def test_a_stronger_origin_replaces_a_whole_table_or_adds_to_it(file):
    config = file('[plugin.x]\ntls = "none"\n[plugin.y.tls]\na = 1\nb = 2\n')
    settings = load_settings(
        config=config, flags={"plugin.x.tls.a": 3, "plugin.y.tls": {"b": 4, "c": 5}}
    )
    assert dict(settings.section("plugin.x")) == {"tls": {"a": 3}}
    assert dict(settings.section("plugin.y")) == {"tls": {"a": 1, "b": 4, "c": 5}}


def test_every_setting_can_be_set_by_its_variable():
    values = {int: "7", float: "7.5", bool: "true", str: "x", tuple: "a,b"}
    values[dict] = f'{{x = "{"0" * 64}"}}'
    environ = {}
    for section, kind in CORE_SECTIONS.items():
        for field in msgspec.structs.fields(kind):
            kinds = [str] if "str" in str(field.type) else [int, float, bool]
            if "tuple" in str(field.type):
                kinds = [tuple]
            if "dict" in str(field.type):
                kinds = [dict]
            if "Literal" in str(field.type):
                environ[environment_name(f"{section}.{field.name}")] = field.type.__args__[-1]
                continue
            base = next(one for one in kinds if one.__name__ in str(field.type))
            environ[environment_name(f"{section}.{field.name}")] = values[base]
    settings = load_settings(environ=environ)
    for section, kind in CORE_SECTIONS.items():
        given, default = getattr(settings, section), kind()
        for name in kind.__struct_fields__:
            assert getattr(given, name) != getattr(default, name), f"{section}.{name}"


# --- what is wrong, and where ---------------------------------------------------------------------


def test_an_unknown_setting_is_named_with_its_origin_and_the_nearest(file):
    detail = refusal(config=file('[node]\nnmae = "x"\n'))
    assert "node.nmae" in detail
    assert "nkv.toml" in detail
    assert "Did you mean node.name?" in detail
    assert "stop_deadline" in detail


@pytest.mark.parametrize(
    ("arguments", "origin"),
    [
        ({"environ": {"NKV_NODE__NMAE": "x"}}, "NKV_NODE__NMAE"),
        ({"flags": {"node.nmae": "x"}}, "by a flag"),
    ],
)
def test_an_unknown_setting_says_whether_a_variable_or_a_flag_set_it(arguments, origin):
    assert origin in refusal(**arguments)


def test_an_unknown_section_is_named_with_the_nearest():
    detail = refusal(flags={"keyspcae.max_batch": 1})
    assert "keyspcae" in detail
    assert "Did you mean keyspace?" in detail
    assert "transport" in refusal(flags={"transprot.http.port": 1})


def test_an_unknown_section_without_settings_is_refused_too(file):
    assert "noed" in refusal(config=file("[noed]\n"))


def test_a_section_of_no_plugin_is_refused_once_the_plugins_are_known(file):
    settings = load_settings(config=file("[transport.htp]\nport = 1\n"))
    with pytest.raises(SettingsError) as caught:
        settings.check_sections(["transport.http", "storage.memory"])
    assert "transport.htp" in caught.value.detail
    assert "nkv.toml" in caught.value.detail
    assert "Did you mean transport.http?" in caught.value.detail
    settings.check_sections(["transport.htp"])


@pytest.mark.parametrize("name", ["node", "transport", "transport.http"])
def test_a_section_is_no_setting(name):
    assert f"{name} is a section" in refusal(flags={name: 5})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("node.stop_deadline", "soon"),
        ("node.stop_deadline", "-1"),
        ("node.stop_deadline", "nan"),
        ("node.stop_deadline", "inf"),
        ("node.insecure", "perhaps"),
        ("node.backend", SECRET),
        ("node.data_dir", ""),
        ("keyspace.max_batch", "1.5"),
        ("keyspace.max_batch", "0"),
        ("storage.name", ""),
    ],
)
def test_a_value_that_does_not_fit_is_refused_without_being_shown(name, value):
    detail = refusal(flags={name: value})
    assert detail.startswith(name)
    assert "by a flag" in detail
    assert SECRET not in detail


def test_a_choice_names_the_choices():
    assert "asyncio, trio" in refusal(flags={"node.backend": "twisted"})


@pytest.mark.parametrize(
    "text", ['[node]\nstop_deadline = "5"\n', "[node]\nname = 5\n", '[node]\ninsecure = "true"\n']
)
def test_the_file_is_taken_strictly(text, file):
    assert "nkv.toml" in refusal(config=file(text))


@pytest.mark.parametrize("text", ["[node\n", "node = = 1\n", b"\xff\xfe"])
def test_a_file_that_is_no_toml_is_refused(text, file):
    assert "nkv.toml" in refusal(config=file(text))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    assert "cannot be read" in refusal(config=tmp_path / "none.toml")
    assert "cannot be read" in refusal(config=tmp_path)


# --- sections of plugins --------------------------------------------------------------------------


def test_texts_become_what_the_plugin_takes():
    made = sample(
        port="8080",
        ratio="0.5",
        hosts="a, b,,c",
        sizes="[1, 2]",
        mode="fast",
        path="",
        **{"tls.verify": "false", "tls.certificate": "x.pem", "labels.a": "1"},
    )
    assert made == Sample(
        port=8080,
        ratio=0.5,
        hosts=("a", "b", "c"),
        sizes=[1, 2],
        mode="fast",
        tls=Inner(certificate="x.pem", verify=False),
        labels={"a": 1},
    )


def test_typed_values_are_taken_as_they_are(file):
    config = file(
        "[plugin.sample]\nport = 8080\nratio = 1\nsizes = [1, 2]\nlabels = {a = 1}\n"
        '[plugin.sample.tls]\ncertificate = "x.pem"\n[plugin.sample.backup]\n'
    )
    section = load_settings(config=config).section("plugin.sample")
    assert convert_section("plugin.sample", section, Sample) == Sample(
        port=8080,
        ratio=1.0,
        sizes=[1, 2],
        labels={"a": 1},
        tls=Inner(certificate="x.pem"),
        backup=Inner(),
    )


def test_a_plain_mapping_is_a_section_too():
    made = convert_section("plugin.sample", {"port": 5, "tls": {"verify": False}}, Sample)
    assert made == Sample(port=5, tls=Inner(verify=False))
    with pytest.raises(SettingsError, match="given with the plugin"):
        convert_section("plugin.sample", {"prot": 5}, Sample)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"prot": 1}, "Did you mean plugin.sample.port?"),
        ({"tls.verfy": True}, "Did you mean plugin.sample.tls.verify?"),
        ({"port": "70000"}, "plugin.sample.port"),
        ({"port": "1"}, "port 1 is kept free"),
        ({"port.low": "1"}, "plugin.sample.port"),
        ({"tls": "x"}, "plugin.sample.tls"),
        ({"sizes": "1,x"}, "plugin.sample.sizes"),
        ({"labels.a": "x"}, "plugin.sample.labels.a"),
        ({"mode": SECRET}, "one of fast, safe"),
    ],
)
def test_what_a_plugin_does_not_take_is_named(flags, expected):
    with pytest.raises(SettingsError) as caught:
        sample(**flags)
    assert expected in caught.value.detail
    assert SECRET not in caught.value.detail


def test_a_setting_that_is_needed_is_asked_for():
    with pytest.raises(SettingsError, match=r"plugin\.needy\.url is needed"):
        convert_section("plugin.needy", {}, Needy)


def test_a_section_does_not_show_its_values():
    settings = load_settings(flags={"plugin.sample.password": SECRET})
    assert SECRET not in repr(settings)
    assert "password" in repr(settings.section("plugin.sample"))
    assert isinstance(settings.section("plugin.sample"), Section)


@pytest.mark.parametrize(
    ("plugin", "section"),
    [
        ("nkv_storage_memory", "storage.memory"),
        ("nkv_transport_http", "transport.http"),
        ("nkv_mesh_full", "mesh.full"),
        ("nkv_transport_", "plugin.nkv_transport_"),
        ("nkv_handler_x", "plugin.nkv_handler_x"),
        ("hello", "plugin.hello"),
    ],
)
def test_a_plugin_has_the_section_of_its_kind_and_name(plugin, section):
    assert section_of(plugin) == section


# --- --set ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b=1", ("a.b", "1")),
        ("a.b=true", ("a.b", "true")),
        ("a.b=x y", ("a.b", "x y")),
        ("a.b=", ("a.b", "")),
        ("a.b=c=d", ("a.b", "c=d")),
        ('a.b="1"', ("a.b", "1")),
        ('a.b=["x", "y"]', ("a.b", ["x", "y"])),
        ("a.b={x = 1}", ("a.b", {"x": 1})),
        ("a.b=2020-01-01", ("a.b", "2020-01-01")),
        ('a.b="x"\nother = 1', ("a.b", '"x"\nother = 1')),
        ('a.b="unfinished', ("a.b", '"unfinished')),
    ],
)
def test_an_assignment_is_taken_apart(text, expected):
    assert parse_assignment(text) == expected


@pytest.mark.parametrize("text", ["", "a.b", "=1", ".b=1", "a..b=1"])
def test_what_is_no_assignment_is_refused(text):
    with pytest.raises(SettingsError):
        parse_assignment(text)


def test_the_value_of_a_broken_assignment_is_not_shown():
    with pytest.raises(SettingsError) as caught:
        parse_assignment(f"={SECRET}")
    assert SECRET not in caught.value.detail


names = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True).filter(lambda name: "__" not in name)


@given(st.text())
def test_any_text_is_an_assignment_or_refused(text):
    try:
        name, value = parse_assignment(text)
    except SettingsError:
        return
    assert name == text.partition("=")[0].strip()
    assert isinstance(value, str | list | dict)


@given(names, names.map(lambda name: name.rstrip("_") or "x"), st.integers(-(2**63), 2**63 - 1))
def test_a_number_comes_through_every_origin_alike(plugin, key, number):
    plugin = plugin.rstrip("_") or "x"
    kind = msgspec.defstruct("Kind", [(key, int)])
    setting = f"plugin.{plugin}.{key}"
    by_flag = load_settings(flags=dict([parse_assignment(f"{setting}={number}")]))
    by_variable = load_settings(environ={environment_name(setting): str(number)})
    for settings in (by_flag, by_variable):
        section = settings.section(f"plugin.{plugin}")
        assert getattr(convert_section("s", section, kind), key) == number


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])))
def test_a_text_comes_through_the_environment_unchanged(text):
    assert load_settings(environ={"NKV_NODE__NAME": text}).node == NodeSettings(name=text)


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=20), max_size=5))
def test_no_environment_does_more_than_be_refused(environ):
    prefixed = {f"NKV_{name}": value for name, value in environ.items()}
    try:
        load_settings(environ=prefixed)
    except SettingsError as error:
        assert error.detail  # noqa: PT017  # a refusal is one of two right outcomes


@given(st.binary(max_size=200))
def test_no_file_does_more_than_be_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("config") / "nkv.toml"
    path.write_bytes(content)
    try:
        load_settings(config=path)
    except SettingsError as error:
        assert "nkv.toml" in error.detail  # noqa: PT017  # a refusal is one of two right outcomes
