"""docs/performance.md has a place for every benchmark, and its table says what its sections do."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "performance.md").read_text()


def test_every_benchmark_has_a_section_and_every_section_a_benchmark():
    sections = set(re.findall(r"<!-- end of (\w+) -->", DOCUMENT)) - {"goals"}
    helpers = {"__main__", "goals"}
    assert sections == {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - helpers


def test_the_table_of_goals_is_that_of_the_figures_and_none_is_missing():
    path = ROOT / "benchmarks" / "goals.py"
    spec = importlib.util.spec_from_file_location("goals", path)
    goals = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(goals)
    shown = re.search(r"<!-- goals -->\n(.*?)\n<!-- end of goals -->", DOCUMENT, re.DOTALL)[1]
    assert shown == goals.table(DOCUMENT)
    assert "| - |" not in shown
    assert len(shown.splitlines()) == 2 + len(goals.GOALS)
