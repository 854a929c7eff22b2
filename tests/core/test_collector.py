"""What long collections leave is set aside, and looked at again in time."""

import gc
import subprocess
import sys
import weakref

import pytest

from nkv_core.collector import Sparing, sparing_collector


class Circle:
    """Something that only the collector frees."""

    def __init__(self):
        self.itself = self


@pytest.fixture(autouse=True)
def alone():
    """No collection but those that a test asks for, and nothing is left set aside.

    Gives how many objects are set aside nevertheless: Python 3.12.1 does so with immortal ones.
    """
    gc.collect()
    gc.disable()
    yield gc.get_freeze_count()
    gc.unfreeze()
    gc.enable()


@pytest.fixture
def sparing():
    """Makes what is told of the collections."""
    told = []

    def made(**bounds):
        told.append(Sparing(**bounds))
        gc.callbacks.append(told[0])

    yield made
    gc.callbacks.remove(told[0])


def lost_circle():
    circle = Circle()
    reference = weakref.ref(circle)
    return circle, reference


def test_what_outlives_a_long_collection_is_not_looked_at_again(sparing, alone):
    sparing(long=0.0)
    circle, reference = lost_circle()
    gc.collect()
    assert gc.get_freeze_count() > alone
    assert not any(found is circle for found in gc.get_objects())
    del circle
    gc.collect()
    assert reference() is not None
    circle, reference = lost_circle()
    del circle
    gc.collect()
    assert reference() is None, "what came since is not looked at either"


def test_nothing_is_set_aside_where_collections_are_short(sparing, alone):
    sparing(long=3600.0)
    gc.collect()
    assert gc.get_freeze_count() == alone


def test_only_full_collections_count(sparing, alone):
    sparing(long=0.0)
    gc.collect(0)
    gc.collect(1)
    assert gc.get_freeze_count() == alone


def test_once_much_is_set_aside_all_is_looked_at_again(sparing):
    gc.collect()
    sparing(long=0.0, aside=1)  # so that it is twice what the first one leaves
    circle, reference = lost_circle()
    gc.collect()
    del circle
    kept = [[] for _ in range(len(gc.get_objects()) + gc.get_freeze_count())]
    gc.collect()
    assert gc.get_freeze_count() == 0, "as much again has come"
    gc.collect()
    assert reference() is None
    assert gc.get_freeze_count() > len(kept)


def test_a_process_spares_its_collector_only_while_it_serves():
    before = list(gc.callbacks)
    with sparing_collector():
        assert len(gc.callbacks) == len(before) + 1
        gc.freeze()
    assert gc.callbacks == before
    assert gc.get_freeze_count() == 0


SERVING = """
import gc, sys
from nkv_core import collector
from nkv_core.cli import serve
import anyio
def run(*_, **__):
    print(len(gc.callbacks))
anyio.run = run
settings = __import__("nkv_core").load_settings(flags={"node.data_dir": sys.argv[1]})
serve._run(settings, lambda: settings)
print(len(gc.callbacks))
"""


def test_nkv_serve_is_such_a_process(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SERVING, str(tmp_path / "data")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == ["1", "0"]
