"""The contract suites bite: each rejects every mutant, and each of its tests rejects some."""

import os
import subprocess
import sys
from collections import Counter
from xml.etree import ElementTree

import pytest

from nkv_core.scaffold import names_of, write
from nkv_core.testing import (
    KeyspaceContract,
    MeshContract,
    NotifierContract,
    StorageContract,
    TransportContract,
)

from .mutants import MUTANTS

pytestmark = pytest.mark.one_python

SUITES = {
    "storage": StorageContract,
    "transport": TransportContract,
    "notifier": NotifierContract,
    "mesh": MeshContract,
}
#: Seconds that a test of a mutant waits for what does not come.
DEADLINE = 8
#: So many mutants are tried in one process.
AT_ONCE = 5


def groups():
    for kind, mutants in MUTANTS.items():
        for begin in range(0, len(mutants), AT_ONCE):
            names = [one.name for one in mutants[begin : begin + AT_ONCE]]
            yield pytest.param(kind, names, id=f"{kind}-{begin}")


def bred(kind, number, mutant, folder):
    """A distribution with the mutant; returns the tests to run, and its folder of sources."""
    name = f"m{number}"
    made = write(kind, name, folder)
    (made / "tests" / "conftest.py").unlink()  # the plugin of pytest is given by an option
    source = made / "src" / names_of(kind, name).module
    for old, new in mutant.edits if mutant else ():
        path = source / mutant.file
        text = path.read_text()
        assert text.count(old) == 1, f"{old!r} is there {text.count(old)} times"
        path.write_text(text.replace(old, new))
    (tests,) = (made / "tests").glob("test_*.py")
    return f"{tests}::Test{name.upper()}", source.parent


def outcomes(folder, tests, sources):
    """How many cases of each test failed, and how many there were, by class and test; and what
    was said.
    """
    results = folder / "results.xml"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "nkv_core.testing", "-W", "ignore"),
            *(
                f"--junitxml={results}",
                "--import-mode=importlib",
                f"--rootdir={folder}",
                "--hypothesis-seed=0",
            ),
            *tests,
        ],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*map(str, sources), os.environ.get("PYTHONPATH", "")]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "NKV_TEST_DEADLINE": str(DEADLINE),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout.decode()
    failed, run = Counter(), Counter()
    for case in ElementTree.parse(results).iter("testcase"):
        about = (
            case.get("classname").rpartition(".")[2].removeprefix("Test"),
            case.get("name").partition("[")[0],
        )
        skipped = case.find("skipped") is not None
        run[about] += not skipped
        failed[about] += case.find("failure") is not None or case.find("error") is not None
    return failed, run, done.stdout.decode()


@pytest.mark.parametrize(("kind", "names"), list(groups()))
def test_every_mutant_is_rejected_by_the_tests_of_what_it_breaks(tmp_path, kind, names):
    wanted, tests, sources = {}, [], []
    for number, mutant in enumerate(MUTANTS[kind]):
        if mutant.name not in names:
            continue
        place, source = bred(kind, number, mutant, tmp_path)
        sources.append(source)
        for test in mutant.tests:
            tests.append(f"{place}::{test}")
            wanted[f"M{number}", test] = mutant.name
    # The same tests pass what nothing was changed in, so they fail for what was.
    place, source = bred(kind, len(MUTANTS[kind]), None, tmp_path)
    sources.append(source)
    right = f"M{len(MUTANTS[kind])}"
    tests += sorted({f"{place}::{test}" for _, test in wanted})
    failed, run, said = outcomes(tmp_path, tests, sources)
    survivors = [(name, test[1]) for test, name in wanted.items() if not failed[test]]
    assert survivors == []
    assert [test for test, count in failed.items() if test[0] == right and count] == [], said
    assert {test for _, test in wanted} == {test for name, test in run if name == right}


@pytest.mark.parametrize("kind", MUTANTS)
def test_every_test_of_a_suite_has_a_mutant_that_it_rejects(kind):
    suite = SUITES[kind]
    own = {name for name in dir(suite) if name.startswith("test")}
    if kind == "mesh":
        own -= set(dir(KeyspaceContract))  # of all keyspaces
    assert own - {test for mutant in MUTANTS[kind] for test in mutant.tests} == set()
