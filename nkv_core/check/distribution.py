"""Distribution: what somebody who installs the plugin, or goes on writing it, will look for."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from nkv_core.check.findings import Finding, found
from nkv_core.check.subject import Subject

_SUITES: Final = {
    "storage": "StorageContract",
    "transport": "TransportContract",
    "notifier": "NotifierContract",
    "mesh": "MeshContract",
    "merger": "MergerContract",
}
_CORE: Final = re.compile(r"nkv[-_.]core\b", re.IGNORECASE)


def look_at(subject: Subject) -> Iterator[Finding]:
    """What is missing in a distribution."""
    folder = subject.distribution
    if folder is None:
        return
    project: dict[str, Any] = subject.project.get("project", {})
    path = folder / "pyproject.toml"
    if not any(_CORE.match(str(one)) for one in project.get("dependencies", [])):
        yield found("core_dependency", path, 0, 'It does not depend on nkv: "nkv-core>=0.1".')
    if "requires-python" not in project:
        message = 'It does not say which Pythons it runs on: requires-python = ">=3.11".'
        yield found("no_python_version", path, 0, message)
    if not any("license" in key for key in project) and not list(folder.glob("LICEN[CS]E*")):
        yield found("no_licence", path, 0, "Nobody knows whether they may use it: license = ...")
    if "readme" not in project and not list(folder.glob("README*")):
        yield found("no_readme", folder, 0, "There is no README: what is it, and how is it set up?")
    if subject.path.is_dir() and not (subject.path / "py.typed").is_file():
        message = "Its types are for nobody else without an empty file py.typed in the package."
        yield found("no_py_typed", subject.path, 0, message)
    yield from _look_at_tests(subject, folder)


def _look_at_tests(subject: Subject, folder: Path) -> Iterator[Finding]:
    tests = sorted((folder / "tests").rglob("*.py"))
    if not any(path.name.startswith("test_") for path in tests):
        yield found("no_tests", folder, 0, "There are no tests: tests/test_....py.")
        return
    used = set[str]()
    for path in tests:
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (OSError, SyntaxError, ValueError):
            continue  # pytest will tell
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                used.update(ast.unparse(base).rpartition(".")[2] for base in node.bases)
    for kind in sorted(subject.kinds):
        if _SUITES[kind] not in used:
            message = (
                f"Nothing shows that it keeps what a {kind} promises:"
                f" class Test...({_SUITES[kind]}) of nkv_core.testing."
            )
            yield found("no_contract_suite", folder / "tests", 0, message)
