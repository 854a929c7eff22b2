"""Suite: the contract suite of storages, and the distribution's own tests, by pytest."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

import msgspec

from nkv_core.check.findings import Finding, found
from nkv_core.check.subject import Subject

_STORAGE: Final = """\
import sys

import msgspec

sys.path.insert(0, {root!r})
from nkv_core.testing import StorageContract


class TestStorage(StorageContract):
    plugin, name = {plugin!r}, {name!r}

    def settings(self, path):
        given = msgspec.json.decode({given!r})
        module = __import__(self.plugin)
        kind = getattr(module, "nkv_settings", None)
        if kind is not None and "directory" in kind().__struct_fields__:
            given.setdefault("directory", str(path))
        return given
"""
_PREFIX: Final = "nkv_storage_"
#: Seconds for all tests of a distribution.
_DEADLINE: Final = 900


def run_suites(
    subject: Subject, given: Mapping[str, Any], storage: str | None
) -> Iterator[Finding]:
    """What pytest finds."""
    tests = subject.distribution and subject.distribution / "tests"
    offers = "storage" in subject.kinds
    if not offers and not (tests and tests.is_dir()):
        return
    if not all(map(find_spec, ("pytest", "hypothesis"))):
        message = "The tests were not run: pip install 'nkv-core[test]'."
        yield found("pytest_missing", subject.path, 0, message)
        return
    if offers:
        yield from _run_contract(subject, given, storage)
    if tests and tests.is_dir():
        yield from _run(tests, subject, "test_failed", cwd=tests.parent)


def _run_contract(
    subject: Subject, given: Mapping[str, Any], storage: str | None
) -> Iterator[Finding]:
    name = storage or subject.name.removeprefix(_PREFIX)
    if storage is None and not subject.name.startswith(_PREFIX):
        message = (
            "The contract suite was not run, as the storage's name is not known: --storage NAME."
        )
        yield found("storage_unnamed", subject.path, 0, message)
        return
    with tempfile.TemporaryDirectory(prefix="nkv-check-") as folder:
        test = Path(folder) / "test_storage_contract.py"
        encoded = msgspec.json.encode(dict(given)).decode()
        test.write_text(
            _STORAGE.format(
                root=str(subject.path.parent), plugin=subject.name, name=name, given=encoded
            )
        )
        yield from _run(test, subject, "contract_broken", cwd=Path(folder))


def _run(tests: Path, subject: Subject, code: str, cwd: Path) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory(prefix="nkv-check-") as folder:
        results = Path(folder) / "results.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
        path = os.pathsep.join([str(subject.path.parent), os.environ.get("PYTHONPATH", "")])
        try:
            done = subprocess.run(  # noqa: S603  # the tests are the plugin's, and meant to be run
                [*command, f"--junitxml={results}"],
                cwd=cwd,
                env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_DEADLINE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            message = f"The tests take more than {_DEADLINE} s."
            yield found("tests_too_long", tests, 0, message)
            return
        failures = list(_failures(results)) if results.exists() else []
        for test, why in failures:
            yield found(code, tests, 0, f"{test}: {why}")
        if done.returncode and not failures:
            lines = done.stdout.decode(errors="replace").strip().splitlines()
            yield found(code, tests, 0, f"pytest says: {' / '.join(lines[-3:]) or 'nothing'}")


def _failures(results: Path) -> Iterator[tuple[str, str]]:
    """Each test that failed, and why, in a line."""
    # It was written by the pytest that we have just run.
    for case in ElementTree.parse(results).iter("testcase"):  # noqa: S314
        for kind in ("failure", "error"):
            problem = case.find(kind)
            if problem is not None:
                why = (problem.get("message") or "it failed").splitlines()[0]
                yield case.get("name", "?"), why
