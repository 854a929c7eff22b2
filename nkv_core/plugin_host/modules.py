"""Modules of one generation: executed from the bytes that were read, under names of their own.

The plugin `hello` becomes `hello@17`, a helper in its package `hello@17.helper`; so two generations
live side by side, and nothing is ever reloaded in place. There are no `.pyc` files on this way:
those are found by time and size, and a file changed within a second would run as it was before.
"""

import ast
import importlib
import itertools
import linecache
import logging
import sys
import typing
from collections.abc import Iterator, Sequence
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.resources.abc import ResourceReader
from importlib.resources.readers import FileReader
from importlib.util import decode_source
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any

from nkv_core.errors import PluginInvalid
from nkv_core.plugin_host.source import Source, SourceFile

_serial = itertools.count(1)
_PARSES = 10  #: tries to parse a file that other threads disturb
_Lines = tuple[int, float | None, list[str], str]


class Modules(MetaPathFinder, InspectLoader):
    """Finds, loads and removes the modules of one generation of a plugin."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.prefix = f"{source.name}@{next(_serial)}"
        self._code: dict[str, CodeType] = {}
        self._lines: dict[str, _Lines] = {}
        self._removed = False

    def compile(self) -> None:
        """Compile every file, so that a mistake in a late import is found now.

        Raises `SyntaxError`, and `PluginInvalid` where the package imports itself by its own name.
        """
        for file in self.source.files.values():
            tree = _parse(file.data, str(file.path))
            if self.source.files[""].is_package:
                _refuse_own_name(tree, file, self.source.name)
            self._code[file.module] = compile(tree, str(file.path), "exec", dont_inherit=True)
            lines = decode_source(file.data).splitlines(keepends=True)
            self._lines[str(file.path)] = (len(file.data), None, lines, str(file.path))

    def execute(self) -> ModuleType:
        """Import the plugin, and return its module. Raises whatever its code raises."""
        self.show_lines()
        sys.meta_path.insert(0, self)
        try:
            return importlib.import_module(self.prefix)
        finally:
            if self._removed:
                # Given up meanwhile, because it took too long: leave nothing behind.
                self.remove()

    def show_lines(self) -> None:
        """Have tracebacks show the source as it was read, whatever the files hold by now."""
        linecache.cache.update(self._lines)

    def remove(self) -> None:
        """Take every module back, and what the standard library keeps in their names."""
        self._removed = True
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        for name in self.loaded():
            sys.modules.pop(name, None)
        for path, lines in self._lines.items():
            if linecache.cache.get(path) is lines:
                del linecache.cache[path]
        loggers = logging.Logger.manager.loggerDict
        for name in [name for name in list(loggers) if self.owns(name)]:
            loggers.pop(name, None)
        # The caches of generic aliases hold classes.
        for clear in getattr(typing, "_cleanups", ()):
            clear()

    def owns(self, module: str) -> bool:
        """Whether a module has one of our names."""
        return module == self.prefix or module.startswith(self.prefix + ".")

    def loaded(self) -> list[str]:
        """The names of ours among the imported modules."""
        return [name for name in list(sys.modules) if self.owns(name)]

    # --- what the import system asks ------------------------------------------------------------

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Find one of our modules. None of ours is looked for anywhere else."""
        if not self.owns(fullname):
            return None
        file = self._file(fullname)
        spec = ModuleSpec(fullname, self, origin=str(file.path), is_package=file.is_package)
        spec.has_location = True
        if file.is_package:
            spec.submodule_search_locations = [str(file.path.parent)]
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """A module like any other."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Execute the code that was compiled from what was read."""
        exec(self.get_code(module.__name__), module.__dict__)  # noqa: S102  # what a plugin is

    def get_code(self, fullname: str) -> CodeType:
        """The compiled code of a module."""
        return self._code[self._file(fullname).module]

    def get_source(self, fullname: str) -> str:
        """The text of a module."""
        return decode_source(self._file(fullname).data)

    def is_package(self, fullname: str) -> bool:
        """Whether a module may have others below it."""
        return self._file(fullname).is_package

    def get_resource_reader(self, fullname: str) -> ResourceReader:
        """For `importlib.resources`: what lies beside the source is read from disk when used."""
        beside: Any = SimpleNamespace(path=str(self._file(fullname).path))  # all it looks at
        return FileReader(beside)

    def _file(self, fullname: str) -> SourceFile:
        file = self.source.files.get(fullname[len(self.prefix) + 1 :])
        if file is None or self._removed:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return file


def _parse(data: bytes, path: str) -> ast.Module:
    """As `ast.parse`. Before 3.11.8 and 3.12.2 Python counts the depth of its recursion for all
    threads together (CPython issue 106905), and blames the file for what another thread parsed.
    """
    tries = 0
    while True:
        try:
            return ast.parse(data, path)
        except SystemError as error:
            tries += 1
            if tries == _PARSES or "recursion depth mismatch" not in str(error):
                raise


def _refuse_own_name(tree: ast.Module, file: SourceFile, name: str) -> None:
    """An import by the plugin's public name would get a module that no replacement ever changes."""
    for node in _statements(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
        if any(imported.partition(".")[0] == name for imported in names):
            raise PluginInvalid(
                f"{name}: it imports itself by its own name, which every generation would share."
                f" Write a relative import, `from . import ...` ({file.path}:{node.lineno})"
            )


def _statements(tree: ast.AST) -> Iterator[ast.stmt]:
    """All statements but those for type checkers only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for other in node.orelse:
                yield other
                yield from _statements(other)
            continue
        if isinstance(node, ast.stmt):
            yield node
        yield from _statements(node)
