"""docs/hooks.md has each hook with its exact arguments, and nothing else."""

import inspect
import re
from pathlib import Path

from nkv_core.contracts.context import LifecycleHooks
from nkv_core.contracts.handlers import HandlerHooks
from nkv_core.contracts.listeners import ListenerHooks
from nkv_core.contracts.mesh import MeshHooks
from nkv_core.contracts.storage import StorageHooks
from nkv_core.contracts.transport import TransportHooks
from nkv_core.plugin_host.registry import SPECIFICATIONS

DOCUMENT = (Path(__file__).parents[2] / "docs" / "hooks.md").read_text()
KNOWN = (LifecycleHooks, HandlerHooks, ListenerHooks, StorageHooks, TransportHooks, MeshHooks)


def specified():
    for specification in SPECIFICATIONS:
        for name, function in vars(specification).items():
            if name.startswith("nkv_"):
                yield name, function


def test_the_host_knows_the_hooks_of_every_contract():
    assert set(KNOWN) <= set(SPECIFICATIONS)


def test_each_hook_is_documented_with_its_arguments_and_no_other_is():
    documented = re.findall(r"^### `(nkv_\w+\([^)]*\))`$", DOCUMENT, re.MULTILINE)
    expected = [
        f"{name}({', '.join(list(inspect.signature(function).parameters)[1:])})"
        for name, function in specified()
    ]
    assert sorted(documented) == sorted(expected)


def test_each_hook_says_what_it_is_for_and_names_its_arguments():
    for name, function in specified():
        text = inspect.getdoc(function)
        assert text, name
        for argument in list(inspect.signature(function).parameters)[1:]:
            if argument != "handlers" or name != "nkv_handlers":
                assert f":param {argument}:" in text, (name, argument)


def test_the_words_of_each_event_are_its_fields():
    from nkv_core import events

    for name, fields in re.findall(r"An? `(\w+)` \(([^)]*)\)", DOCUMENT):
        event = getattr(events, name, None)
        assert event is not None, name
        for field in re.findall(r"`(\w+)`", fields):
            assert hasattr(event, field) or field in event.__struct_fields__, (name, field)
