"""`nkv plugins new` and `check`: for those who write plugins. They ask no node."""

from pathlib import Path

import click
import msgspec

from nkv_core.cli.admin import as_json, values
from nkv_core.cli.output import FAILED, print_json, printable
from nkv_core.scaffold import KINDS, write


@click.command()
@click.argument("kind", metavar="KIND", type=click.Choice(KINDS))
@click.argument("name")
@click.option(
    "--into",
    metavar="DIR",
    default=".",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder to make it in.  [.]",
)
def new(kind: str, name: str, into: Path) -> None:
    """Write a distribution with a plugin that works, for you to go on from.

    It has a project file, the plugin, its tests with the contract suite, tox.ini and README.md.
    """
    (known,) = (one for one in KINDS if one == kind)
    folder = write(known, name, into)
    click.echo(
        f"{folder} has a plugin that works. To try it:\n\n"
        f"    cd {folder}\n    pip install -e '.[test]'\n    pytest"
    )


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--set",
    "assignments",
    metavar="KEY=VALUE",
    multiple=True,
    help="Give one of the plugin's settings a value.",
)
@click.option("--storage", metavar="NAME", help="Of the storage that it offers.")
@click.option("--no-run", is_flag=True, help="Run nothing of it, only read it.")
@click.option("--no-tests", is_flag=True, help="Do not run its tests and the contract suite.")
@as_json
def check(  # noqa: PLR0917  # click gives them by name
    path: Path,
    assignments: tuple[str, ...],
    storage: str | None,
    no_run: bool,
    no_tests: bool,
    as_json: bool,
) -> None:
    """Look a plugin over before a node loads it.

    PATH is a file, a package's folder, or that of a distribution. Exits with 1 if it has errors.
    """
    from nkv_core.check import check as look_over  # noqa: PLC0415  # the help needs none of it

    report = look_over(
        path,
        run=not no_run,
        tests=not no_tests,
        settings=values(assignments),
        storage=storage,
        tell=lambda what: None if as_json else click.echo(f"checking {what} ...", err=True),
    )
    if as_json:
        findings = [
            {**msgspec.to_builtins(finding), "severity": finding.severity}
            for finding in report.findings
        ]
        print_json({"plugin": report.plugin, "findings": findings, "checks": report.checks})
    else:
        for finding in report.findings:
            place = f"{finding.path}:{finding.line}" if finding.line else finding.path
            click.echo(printable(f"{place}: {finding.severity} {finding.code}: {finding.message}"))
        click.echo(f"{report.plugin}: {_summary(report.errors, report.warnings)}")
    if report.errors:
        raise click.exceptions.Exit(FAILED)


def _summary(errors: int, warnings: int) -> str:
    if not errors and not warnings:
        return "all is well"
    counts = ((errors, "error"), (warnings, "warning"))
    return ", ".join(f"{count} {word}{'s' * (count > 1)}" for count, word in counts if count)
