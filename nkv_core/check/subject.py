"""Subject: what is checked, found without importing anything of it."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from nkv_core.check.findings import Finding, found
from nkv_core.errors import NkvError, PluginNotFound
from nkv_core.plugin_host import discovery
from nkv_core.plugin_host.source import read_source

_PROJECT: Final = "pyproject.toml"
_OFFERS: Final = {
    "nkv_storage": "storage",
    "nkv_transport": "transport",
    "nkv_mesh": "mesh",
    "nkv_merger": "merger",
}


class Module(msgspec.Struct, frozen=True):
    """One file of a plugin, parsed."""

    path: Path
    tree: ast.Module
    lines: list[str]


class Subject(msgspec.Struct, frozen=True):
    """A plugin, and the distribution that it is in, if it is in one."""

    name: str
    path: Path  #: the file, or the package's folder
    distribution: Path | None
    project: dict[str, Any]  #: of its project file; empty where there is none
    modules: list[Module]

    @property
    def spec(self) -> str:
        """By which a node loads it."""
        return str(self.path)

    @property
    def kinds(self) -> set[str]:
        """What it offers: of `storage`, `transport`, `mesh`, `merger` and `notifier`."""
        kinds = {
            _OFFERS[node.name]
            for module in self.modules
            for node in ast.walk(module.tree)
            if isinstance(node, ast.FunctionDef) and node.name in _OFFERS
        }
        return kinds | ({"notifier"} if self.name.startswith("nkv_notifier_") else set())


def subjects(path: Path, findings: list[Finding]) -> Iterator[Subject]:
    """The plugins at a path: a file, a package, or a distribution. Adds what cannot be read.

    Raises `PluginNotFound` where there is nothing.
    """
    path = path.absolute()
    if not path.exists():
        raise PluginNotFound(f"There is no file or folder {path}.")
    if not (path / _PROJECT).is_file():
        yield from _read(path, None, {}, findings)
        return
    try:
        project = tomllib.loads((path / _PROJECT).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        findings.append(found("project_file", path / _PROJECT, 0, f"It cannot be read: {error}."))
        return
    entries = project.get("project", {}).get("entry-points", {}).get(discovery.GROUP, {})
    if not entries:
        findings.append(
            found(
                "entry_point",
                path / _PROJECT,
                0,
                f'There is no entry point of the group "{discovery.GROUP}": by it nkv finds the'
                " plugin once it is installed.",
            )
        )
    for name, module in entries.items():
        place = _place_of(path, str(module))
        if place is None:
            message = f"The entry point {name} names {module}, which is neither here nor in src."
            findings.append(found("entry_point", path / _PROJECT, 0, message))
            continue
        if place.stem != name:
            message = f"The entry point {name} should be called as its module is, {place.stem}."
            findings.append(found("entry_point", path / _PROJECT, 0, message))
        yield from _read(place, path, project, findings)


def _place_of(folder: Path, module: str) -> Path | None:
    below = Path(*module.split("."))
    for root in (folder / "src", folder):
        for place in (root / below, root / below.with_suffix(".py")):
            if (place / "__init__.py").is_file() or (place.suffix == ".py" and place.is_file()):
                return place
    return None


def _read(
    path: Path, distribution: Path | None, project: dict[str, Any], findings: list[Finding]
) -> Iterator[Subject]:
    try:
        source = read_source(discovery.find(str(path)))
    except NkvError as error:
        findings.append(found("unreadable", path, 0, error.detail))
        return
    modules = []
    for file in source.files.values():
        if not file.on_disk:
            continue
        try:
            text = file.data.decode("utf-8")
            tree = ast.parse(text)
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None) or 0
            findings.append(found("syntax", file.path, line, f"It is no Python: {error}."))
            continue
        modules.append(Module(file.path, tree, text.splitlines()))
    yield Subject(source.name, path, distribution, project, modules)
