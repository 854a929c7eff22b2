"""Settings: a file, the environment and flags, made into frozen structs.

A setting has a dotted name: its section, then its own (`node.name`, `transport.http.port`). Flags
beat the environment, the environment beats the file. The core's sections are converted here; those
of plugins are kept as they were given, each value with its origin, until the plugin's own type is
known (`convert_section`). Messages name settings and where they were set, never their values: a
value may be a secret.
"""

import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import msgspec

from nkv_core.contracts.settings import (
    AuthSettings,
    BusSettings,
    KeyspaceSettings,
    LogSettings,
    NodeSettings,
    PluginSettings,
    Text,
)
from nkv_core.contracts.watch import WatchSettings
from nkv_core.errors import SettingsError

DEFAULT_CONFIG: Final = "nkv.toml"
DEFAULT_STORAGE: Final = "diskcache"
PREFIX: Final = "NKV_"

CORE_SECTIONS: Final[Mapping[str, type[msgspec.Struct]]] = {
    "node": NodeSettings,
    "log": LogSettings,
    "keyspace": KeyspaceSettings,
    "bus": BusSettings,
    "auth": AuthSettings,
    "plugins": PluginSettings,
    "watch": WatchSettings,
}

#: Kinds of plugins that have sections of their own: `nkv_KIND_NAME` has `KIND.NAME`. What belongs
#: to none of them has `plugin.NAME`.
KINDS: Final = ("storage", "engine", "transport", "notifier", "mesh", "discovery", "merger")
OTHER_KIND: Final = "plugin"
#: The plugin of this prefix and a storage's name is the first that is asked for the storage.
STORAGE_PREFIX: Final = "nkv_storage_"
#: The plugin of this prefix and a mesh's name is loaded where its settings say whom to join.
MESH_PREFIX: Final = "nkv_mesh_"

#: Variables with names of their own. They give way to `NKV_SECTION__KEY`.
VARIABLES: Final[Mapping[str, str]] = {
    "PORT": "transport.http.port",
    "HOSTNAME": "node.name",
    "MESH_NETWORK_URL": "mesh.full.join",
    "NKV_STORAGE": "storage.name",
    "NKV_DATA_DIR": "node.data_dir",
}

S = TypeVar("S", bound=msgspec.Struct)


class Given(NamedTuple):
    """One value and where it was set. A `text` has no type yet: it is read as its setting needs."""

    value: Any
    origin: str
    text: bool = False


Dotted = tuple[str, ...]
Tree = dict[str, "Given | Tree"]


class Section(Mapping[str, Any]):
    """A plugin's section, as given. As a mapping it shows plain values, nested as in the file."""

    __slots__ = ("tree",)

    def __init__(self, tree: Tree | None = None) -> None:
        self.tree: Final[Tree] = tree or {}

    def __getitem__(self, key: str) -> Any:
        return _plain(self.tree[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self.tree)

    def __len__(self) -> int:
        return len(self.tree)

    def __repr__(self) -> str:
        return f"<Section with {', '.join(self.tree) or 'nothing'}>"

    @property
    def origin(self) -> str:
        """Where the first of its settings was set."""
        return _origin(self.tree)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of a node."""

    node: NodeSettings = NodeSettings()
    log: LogSettings = LogSettings()
    keyspace: KeyspaceSettings = KeyspaceSettings()
    bus: BusSettings = BusSettings()
    auth: AuthSettings = AuthSettings()
    plugins: PluginSettings = PluginSettings()
    watch: WatchSettings = WatchSettings()
    storage: str = DEFAULT_STORAGE  #: name of the storage in charge; the setting `storage.name`
    storage_given: bool = False  #: whether that was set, and is no default
    sections: Mapping[str, Section] = MappingProxyType({})  #: of plugins, by name

    @property
    def names_storage(self) -> bool:
        """Whether somebody has chosen the storage."""
        return self.storage_given or self.storage != DEFAULT_STORAGE

    def section(self, name: str) -> Section:
        """A plugin's section; an empty one where nothing was given."""
        return self.sections.get(name) or Section()

    def check_sections(self, known: Iterable[str]) -> None:
        """Raise `SettingsError` where a section is given that is none of the `known` plugins'."""
        names = sorted(set(known))
        for name, section in self.sections.items():
            if name not in names:
                raise SettingsError(
                    f"No plugin here has the section {name} ({section.origin})."
                    f"{_nearest(name, names)} There are: {', '.join(names) or 'none'}."
                )


def load_settings(
    *,
    config: Path | None = None,
    environ: Mapping[str, str] = MappingProxyType({}),
    flags: Mapping[str, Any] = MappingProxyType({}),
) -> Settings:
    """Read settings from a file, variables and flags (by dotted name; a text is converted as the
    setting needs). Raises `SettingsError` naming what is wrong and where it was set.
    """
    tree: Tree = {}
    file = () if config is None else _flatten(_read(config), f"in {config}")
    for path, given in (*file, *_variables(environ), *_dotted(flags)):
        short = path == ("storage",) and given.value != {}  # `storage = "memory"` is storage.name
        _insert(tree, ("storage", "name") if short else path, given)
    return _settings(tree)


def convert_section(section: str, given: Mapping[str, Any], into: type[S]) -> S:
    """Make a section the struct that its plugin takes.

    Raises `SettingsError` naming a setting that is unknown, missing or does not fit, where it was
    set, and what there is.
    """
    tree = given.tree if isinstance(given, Section) else _tree(given, "given with the plugin")
    return _struct(section, tree, into)


def section_of(plugin: str) -> str:
    """The section of a plugin's settings: of `nkv_storage_memory` it is `storage.memory`."""
    first, _, rest = plugin.partition("_")
    kind, _, name = rest.partition("_")
    if first == "nkv" and kind in KINDS and name:
        return f"{kind}.{name}"
    return f"{OTHER_KIND}.{plugin}"


def environment_name(setting: str) -> str:
    """The variable of a setting: of `transport.http.port` it is `NKV_TRANSPORT__HTTP__PORT`."""
    return PREFIX + setting.upper().replace(".", "__")


def parse_assignment(text: str) -> tuple[str, Any]:
    """Take `section.key=value` apart, as `--set` has it. The value is TOML where it is a quoted
    text, an array or a table, and else the bare text. Raises `SettingsError`.
    """
    name, separator, value = text.partition("=")
    name, value = name.strip(), value.strip()
    if not separator or not all(name.split(".")):
        raise SettingsError(f"--set takes section.key=value, not {name!r} alone.")
    return name, _parsed(value, str, list, dict)


def nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted names as tables in tables: what a plugin is given when it is loaded."""
    tree: Tree = {}
    for path, given in _dotted(dotted):
        _insert(tree, path, given)
    return {key: _plain(below) for key, below in tree.items()}


# --- reading --------------------------------------------------------------------------------------


def _read(config: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{config} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{config} is not UTF-8 text.") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{config} is not valid TOML: {error}.") from None


def _flatten(table: Mapping[str, Any], origin: str) -> Iterator[tuple[Dotted, Given]]:
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            for path, given in _flatten(value, origin):
                yield (key, *path), given
        else:
            yield (key,), Given(value, origin)


def _variables(environ: Mapping[str, str]) -> Iterator[tuple[Dotted, Given]]:
    for name, setting in VARIABLES.items():
        if value := environ.get(name):
            yield tuple(setting.split(".")), Given(value, f"by the variable {name}", text=True)
    for name in sorted(environ):
        # Without a section it is none of ours: clusters set variables such as NKV_SERVICE_HOST.
        if name.startswith(PREFIX) and "__" in name:
            path = tuple(name.removeprefix(PREFIX).lower().split("__"))
            yield path, Given(environ[name], f"by the variable {name}", text=True)


def _dotted(values: Mapping[str, Any]) -> Iterator[tuple[Dotted, Given]]:
    for name, value in values.items():
        path = tuple(name.split("."))
        if isinstance(value, Mapping) and value:
            for inner, given in _flatten(value, "by a flag"):
                yield path + inner, given
        else:
            yield path, Given(value, "by a flag", isinstance(value, str))


def _insert(tree: Tree, path: Dotted, given: Given) -> None:
    """Set a value; it replaces what a weaker origin had set there, a whole table too."""
    for key in path[:-1]:
        below = tree.get(key)
        if not isinstance(below, dict):
            below = tree[key] = {}
        tree = below
    if given.value != {} or path[-1] not in tree:
        tree[path[-1]] = given


def _tree(table: Mapping[str, Any], origin: str) -> Tree:
    tree: Tree = {}
    for path, given in _flatten(table, origin):
        _insert(tree, path, given._replace(text=isinstance(given.value, str)))
    return tree


# --- sections -------------------------------------------------------------------------------------


def _settings(tree: Tree) -> Settings:
    core: dict[str, Any] = {}
    sections: dict[str, Section] = {}
    for name, below in tree.items():
        if name in CORE_SECTIONS:
            core[name] = _struct(name, _table(name, below), CORE_SECTIONS[name])
        elif name in (*KINDS, OTHER_KIND):
            table = dict(_table(name, below))
            if name == "storage" and isinstance(chosen := table.get("name"), Given):
                core["storage"] = _leaf("storage.name", chosen, Text)
                core["storage_given"] = True
                del table["name"]
            for plugin, inner in table.items():
                full = f"{name}.{plugin}"
                sections[full] = Section(_table(full, inner))
        else:
            kinds = ", ".join(f"{kind}.NAME" for kind in (*KINDS, OTHER_KIND))
            raise SettingsError(
                f"There is no section {name} ({_origin(below)})."
                f"{_nearest(name, [*CORE_SECTIONS, *KINDS, OTHER_KIND])}"
                f" There are: {', '.join(CORE_SECTIONS)}; and of plugins {kinds}."
            )
    return Settings(**core, sections=MappingProxyType(sections))


def _table(name: str, below: "Given | Tree") -> Tree:
    if isinstance(below, dict):
        return below
    if below.value == {}:
        return {}
    raise SettingsError(
        f"{name} is a section, not a setting ({below.origin}): give {name}.SETTING a value."
    )


def _struct(name: str, tree: Tree, into: type[S]) -> S:
    fields = {field.encode_name: field for field in msgspec.structs.fields(into)}
    for key, below in tree.items():
        if key not in fields:
            known = ", ".join(sorted(fields)) or "no settings"
            raise SettingsError(
                f"There is no setting {name}.{key} ({_origin(below)})."
                f"{_nearest(key, fields, name)} Section {name} has: {known}."
            )
    values = {}
    for key, field in fields.items():
        if key in tree:
            values[field.name] = _value(f"{name}.{key}", tree[key], field.type)
        elif field.required:
            raise SettingsError(f"The setting {name}.{key} is needed, and was not given.")
    try:
        return into(**values)
    except (TypeError, ValueError, SettingsError) as error:  # of the struct's own checks
        raise SettingsError(f"Section {name} ({_origin(tree)}): {error}") from error


def _value(name: str, below: "Given | Tree", into: Any) -> Any:
    if isinstance(below, Given) and below.value != {}:
        return _leaf(name, below, into)
    tree = below if isinstance(below, dict) else {}
    for kind in _alternatives(into):
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return _struct(name, tree, kind)
        if get_origin(kind) in (dict, Mapping, *_MAPPINGS):
            inner = get_args(kind)[1]
            return {key: _value(f"{name}.{key}", tree[key], inner) for key in tree}
    return _leaf(name, Given(_plain(below), _origin(below)), into)


def _leaf(name: str, given: Given, into: Any) -> Any:
    value = given.value
    if given.text:
        kinds = _alternatives(into)
        if value == "" and type(None) in kinds:
            return None
        if any(get_origin(kind) in _LISTS for kind in kinds):
            value = _list(value)
        elif any(get_origin(kind) in (dict, *_MAPPINGS) for kind in kinds):
            value = _parsed(value, dict)
    try:
        value = msgspec.convert(value, into, strict=not given.text)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{name} ({given.origin}): {_reason(error, into)}") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingsError(f"{name} ({given.origin}): it must be a finite number.")
    return value


_LISTS: Final = (list, tuple, set, frozenset)
_MAPPINGS: Final = (get_origin(Mapping[str, Any]), MappingProxyType)


def _list(text: str) -> list[Any]:
    """A list from a text: a TOML array, or items between commas."""
    if text.lstrip().startswith("["):
        parsed = _parsed(text, list)
        if parsed is not text:
            return list(parsed)
    return [item.strip() for item in text.split(",") if item.strip()]


def _parsed(text: str, *kinds: type) -> Any:
    """A text as the TOML value that it is; the text itself where it is none of these kinds."""
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    alone = len(table) == 1  # and no line feed has brought in more
    return table["value"] if alone and isinstance(table["value"], kinds) else text


def _alternatives(kind: Any) -> list[Any]:
    """The types that a type may be, without the constraints around them."""
    if get_origin(kind) is Annotated:
        return _alternatives(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [inner for argument in get_args(kind) for inner in _alternatives(argument)]
    return [kind]


def _reason(error: msgspec.ValidationError, into: Any) -> str:
    """What does not fit. The library's text for a choice would show the value, so it has ours."""
    choices = [
        choice
        for kind in _alternatives(into)
        if get_origin(kind) is Literal
        for choice in get_args(kind)
    ]
    if choices:
        return f"it must be one of {', '.join(map(str, choices))}."
    text = str(error)
    return "it does not fit." if text.startswith("Invalid") else f"{text}."


def _plain(below: "Given | Tree") -> Any:
    if isinstance(below, Given):
        return below.value
    return {key: _plain(inner) for key, inner in below.items()}


def _origin(below: "Given | Tree") -> str:
    while isinstance(below, dict):
        if not below:
            return "an empty table"
        below = next(iter(below.values()))
    return f"set {below.origin}"


def _nearest(name: str, known: Iterable[str], section: str = "") -> str:
    from difflib import get_close_matches  # noqa: PLC0415  # only for a message

    matches = get_close_matches(name, list(known), n=1)
    full = [f"{section}.{match}" if section else match for match in matches]
    return f" Did you mean {full[0]}?" if full else ""
