"""Check: what can be found out about a plugin before a node that matters loads it.

`lint` and `distribution` read it, `trial` has a node of its own load, replace and unload it, and
`suite` runs the contract suite and its own tests. The last two run its code.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nkv_core.check.distribution import look_at
from nkv_core.check.findings import CODES, Finding, Report, Severity
from nkv_core.check.lint import lint
from nkv_core.check.subject import subjects

__all__ = ["CODES", "Finding", "Report", "Severity", "check"]


def check(
    path: Path,
    *,
    run: bool = True,
    tests: bool = True,
    settings: Mapping[str, Any] | None = None,
    storage: str | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Report:
    """Check the plugin at `path`: a file, a package's folder, or that of a distribution.

    Without `run` nothing of it is executed; without `tests` its tests are not. `settings` are those
    of its own section. `storage` is the name of the storage that it offers, where that does not
    follow from the plugin's. `tell` is told what is being done. Raises `PluginNotFound`.
    """
    report = Report(path.name, [], [])

    def look(what: str) -> None:
        tell(what)
        report.checks.append(what)

    for subject in subjects(path, report.findings):
        report.plugin = subject.name
        look("the text of its files")
        report.findings += lint(subject)
        if subject.distribution is not None:
            look("the distribution")
            report.findings += look_at(subject)
        if not run or any(finding.code in ("syntax", "unreadable") for finding in report.findings):
            continue
        from nkv_core.check import suite, trial  # noqa: PLC0415  # they need half of the node

        look("loading, replacing and unloading it")
        report.findings += trial.try_out(subject, settings or {})
        if tests and not any(finding.code == "load_failed" for finding in report.findings):
            look("its tests, and the contract suite")
            report.findings += suite.run_suites(subject, settings or {}, storage)
    return report
