"""docs/plugins/check.md has every finding, and no other; the lint knows what is internal."""

import re
import tomllib
from pathlib import Path

from nkv_core.check import CODES
from nkv_core.check.lint import INTERNALS

ROOT = Path(__file__).parents[2]


def test_every_finding_is_documented_with_its_severity():
    text = (ROOT / "docs" / "plugins" / "check.md").read_text()
    assert dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", text, re.MULTILINE)) == CODES


def test_what_no_plugin_may_import_is_what_our_own_may_not():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (contract,) = [
        one
        for one in project["tool"]["importlinter"]["contracts"]
        if one["name"] == "Plugins use what a stranger can use"
    ]
    assert {name.removeprefix("nkv_core.") for name in contract["forbidden_modules"]} == INTERNALS
