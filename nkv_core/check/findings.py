"""Findings: what can be wrong with a plugin, each kind with a code that stays."""

from pathlib import Path
from typing import Final, Literal

import msgspec

Severity = Literal["error", "warning"]

#: Every code, with how bad it is. `docs/plugins/check.md` says of each what to do.
CODES: Final[dict[str, Severity]] = {
    # of the files
    "unreadable": "error",
    "syntax": "error",
    # of the code
    "unsafe_serialisation": "error",
    "blocking_call": "error",
    "unowned_task": "error",
    "own_listener": "error",
    "core_internals": "error",
    "other_plugin": "error",
    "import_effect": "error",
    "swallowed_error": "warning",
    # of the distribution
    "project_file": "error",
    "entry_point": "error",
    "core_dependency": "error",
    "no_tests": "error",
    "no_contract_suite": "error",
    "no_python_version": "warning",
    "no_readme": "warning",
    "no_licence": "warning",
    "no_py_typed": "warning",
    # of a trial
    "load_failed": "error",
    "replace_failed": "error",
    "unload_failed": "error",
    "leaked": "error",
    "left_thread": "error",
    "logged": "warning",
    # of the tests
    "contract_broken": "error",
    "test_failed": "error",
    "tests_too_long": "error",
    "pytest_missing": "warning",
    "storage_unnamed": "warning",
}


class Finding(msgspec.Struct, frozen=True):
    """Something that is wrong, and where."""

    code: str
    path: str
    line: int  #: from 1; 0 where it is of no line
    message: str  #: for people: what is wrong, and what to do

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return CODES[self.code]


class Report(msgspec.Struct):
    """All that was looked at, and all that was found."""

    plugin: str
    findings: list[Finding]
    checks: list[str]  #: what was looked at, in words

    @property
    def errors(self) -> int:
        """How many findings are errors."""
        return sum(finding.severity == "error" for finding in self.findings)

    @property
    def warnings(self) -> int:
        """How many findings are warnings."""
        return len(self.findings) - self.errors


def found(code: str, path: Path | str, line: int, message: str) -> Finding:
    """A finding. Raises `KeyError` where there is no such code."""
    assert code in CODES, code  # noqa: S101  # a slip of ours
    return Finding(code, str(path), line, message)
