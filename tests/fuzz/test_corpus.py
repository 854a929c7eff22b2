"""Whatever strangers send: parsers refuse it by nkv's errors, or read it, and do nothing else."""

import contextlib

import pytest

from nkv_core.errors import NkvError

from .gather import CORPUS
from .parsers import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_is_read_or_refused(name):
    inputs = sorted((CORPUS / name).glob("*.bin"))
    assert len(inputs) >= len(TARGETS[name].seeds)
    for path in inputs:
        with contextlib.suppress(NkvError):
            TARGETS[name].read(path.read_bytes())


def test_every_corpus_has_its_parser():
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
