"""docs/settings.md has every setting with its type, default and variable, and nothing else."""

import importlib
import re
import tomllib
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

import msgspec
import pytest

from nkv_core.config import (
    CORE_SECTIONS,
    DEFAULT_STORAGE,
    VARIABLES,
    convert_section,
    environment_name,
    load_settings,
    section_of,
)
from nkv_core.contracts.settings import Text

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "settings.md").read_text()
PLUGINS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][
    "nkv.plugins"
]

ROW = re.compile(
    r"^\| `([a-z0-9_.]+)` \| ([^|]+) \| ([^|]+) \| `(NKV_[A-Z0-9_]+)` \| ([^|]+) \|$", re.MULTILINE
)
PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false"}


def sections() -> dict[str, type[msgspec.Struct]]:
    found = dict(CORE_SECTIONS)
    for name, module in PLUGINS.items():
        settings = getattr(importlib.import_module(module), "nkv_settings", None)
        if settings is not None:
            found[section_of(name)] = settings()
    return found


def described(kind) -> str:
    """A type in the words of the document."""
    union = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    (base,) = (one for one in union if one is not NoneType)
    if get_origin(base) is Annotated:
        return PLAIN[get_args(base)[0]] + bounds(base)
    if get_origin(base) is Literal:
        *others, last = (f"`{choice}`" for choice in get_args(base))
        return f"{', '.join(others)} or {last}"
    if get_origin(base) is dict:
        key, value = get_args(base)
        assert key is str
        return f"table of {PLAIN[get_args(value)[0]]}s"
    if get_origin(base) in (tuple, list):
        return f"list of {PLAIN[get_args(base)[0]]}s"
    return PLAIN[base]


def bounds(kind) -> str:
    (meta,) = kind.__metadata__
    if meta.min_length == 1:
        return ", not empty"
    if meta.pattern is not None:
        return ", in the form that is described"
    if meta.gt == 0:
        return ", above 0"
    assert meta.ge is not None, "a bound that the document has no words for"
    return f", {meta.ge} to {meta.le}" if meta.le is not None else f", at least {meta.ge}"


def written(default) -> str:
    """A default as the document has it: as TOML would."""
    if default is None:
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, str):
        return f'`"{default}"`'
    return f"`{list(default) if isinstance(default, tuple) else default}`"


def expected() -> dict[str, tuple[str, str, str]]:
    rows = {
        "storage.name": (
            described(Text),
            written(DEFAULT_STORAGE),
            environment_name("storage.name"),
        )
    }
    for section, struct in sections().items():
        for field in msgspec.structs.fields(struct):
            setting = f"{section}.{field.encode_name}"
            made = (
                field.default_factory()
                if field.default is msgspec.NODEFAULT and not field.required
                else field.default
            )
            default = "needed" if field.required else written(made)
            rows[setting] = (described(field.type), default, environment_name(setting))
    return rows


def documented() -> dict[str, tuple[str, str, str]]:
    rows = ROW.findall(DOCUMENT)
    assert len({row[0] for row in rows}) == len(rows), "a setting is documented twice"
    return {setting: (kind, default, variable) for setting, kind, default, variable, _ in rows}


def test_every_setting_is_documented_as_it_is_and_no_other_is():
    assert documented() == expected()


def test_each_setting_stands_under_its_section():
    section = None
    for line in DOCUMENT.splitlines():
        if heading := re.fullmatch(r"##+ `([a-z0-9_.]+)`", line):
            section = heading[1]
        elif row := ROW.fullmatch(line):
            assert row[1].rpartition(".")[0] == section, line


def test_every_table_row_of_a_setting_was_understood():
    loose = re.findall(r"^\| `[a-z0-9_]+\.[a-z0-9_.]+` \|", DOCUMENT, re.MULTILINE)
    assert len(loose) == len(ROW.findall(DOCUMENT))


def test_the_short_variables_are_documented():
    rows = re.findall(r"^\| `([A-Z_]+)` \| `([a-z0-9_.]+)` \|$", DOCUMENT, re.MULTILINE)
    assert dict(rows) == dict(VARIABLES)


def test_the_example_is_a_settings_file(tmp_path):
    (example,) = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)
    file = tmp_path / "nkv.toml"
    file.write_text(example)
    settings = load_settings(config=file)
    known = sections()
    settings.check_sections([*known, "plugin.hello"])
    for name, section in settings.sections.items():
        if name in known:
            convert_section(name, section, known[name])


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (str | None, "text"),
        (Annotated[int, msgspec.Meta(ge=1)], "whole number, at least 1"),
        (tuple[str, ...], "list of texts"),
        (Literal["a", "b", "c"], "`a`, `b` or `c`"),
    ],
)
def test_the_words_for_types(kind, words):
    assert described(kind) == words
