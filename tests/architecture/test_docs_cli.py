"""docs/cli.md has every command with its arguments and options, and nothing else."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click

from nkv_core.cli.main import MODULES, nkv
from nkv_core.cli.output import FAILED, INTERRUPTED, UNREACHABLE, USAGE

DOCUMENT = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
COMMON = "Options of every command that talks to a node"

ROW = re.compile(r"^\| `(-.+?)` \| (.+) \|$")
HEADING = re.compile(r"^##+ (.+)$")


def commands() -> Iterator[tuple[str, click.Command, click.Context]]:
    """Every command with the words that call it; of groups those with options of their own."""

    def walk(path: str, command: click.Command, above: click.Context):
        context = click.Context(command, info_name=path.rpartition(" ")[2], parent=above)
        below = getattr(command, "commands", {})
        if not below or options(command, context):
            yield path, command, context
        for name, one in below.items():
            yield from walk(f"{path} {name}", one, context)

    top = click.Context(nkv, info_name="nkv")
    for name in MODULES:
        command = nkv.get_command(top, name)
        assert command is not None, f"nkv {name} is missing"
        yield from walk(f"nkv {name}", command, top)


def options(command: click.Command, context: click.Context) -> list[str]:
    """Its options as the document writes them: `-v, --verbose` or `--file FILE`."""
    return [
        ", ".join(option.opts)
        + ("" if option.is_flag or option.count else f" {option.make_metavar(context)}")
        for option in command.params
        if isinstance(option, click.Option)
    ]


def heading(path: str, command: click.Command, context: click.Context) -> str:
    words = [one.make_metavar(context) for one in command.params if isinstance(one, click.Argument)]
    return " ".join([path, *words])


def documented() -> dict[str, list[str]]:
    """The options below each heading."""
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in DOCUMENT.splitlines():
        if title := HEADING.match(line):
            assert title[1] not in found, f"{title[1]} is there twice"
            current = found[title[1].strip("`")] = []
        elif row := ROW.match(line):
            current.append(row[1].replace("\\|", "|"))
    return found


def test_every_command_is_documented_and_no_other_is():
    expected = {heading(*one) for one in commands()}
    found = {title for title in documented() if title.startswith("nkv ")}
    assert found == expected


def test_every_option_is_documented_and_no_other_is():
    sections = documented()
    common = sections[COMMON]
    for path, command, context in commands():
        expected = options(command, context)
        if common[0] in expected:
            assert set(common) <= set(expected), path
            expected = [option for option in expected if option not in common]
        found = sections.get(heading(path, command, context), [])
        assert Counter(found) == Counter(expected), path


def test_the_common_options_are_those_of_the_commands_that_talk_to_a_node():
    common = documented()[COMMON]
    having = [path for path, *one in commands() if common[0] in options(*one)]
    assert "nkv get" in having
    assert "nkv status" in having
    assert "nkv serve" not in having


def test_the_exit_codes_are_documented():
    codes = re.findall(r"^\| (\d+) \|", DOCUMENT, re.MULTILINE)
    assert [int(code) for code in codes] == [0, FAILED, USAGE, UNREACHABLE, INTERRUPTED]
