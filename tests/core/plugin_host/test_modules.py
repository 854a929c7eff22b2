"""Modules of a generation: names of their own, and nothing left of them."""

import ast
import importlib.resources
import linecache
import logging
import sys
import threading
import traceback

import pytest

from nkv_core.errors import PluginInvalid
from nkv_core.plugin_host import leaks
from nkv_core.plugin_host.discovery import find
from nkv_core.plugin_host.leaks import PAUSE, Collector, Witnesses
from nkv_core.plugin_host.modules import Modules
from nkv_core.plugin_host.registry import Registry
from nkv_core.plugin_host.source import read_source


def gone(witnesses):
    return Collector().gone(witnesses)


@pytest.fixture
def modules():
    """Make the modules of a plugin at a path; they are removed at the end."""
    made = []

    def of(path):
        each = Modules(read_source(find(path.removesuffix("/__init__.py"))))
        each.compile()
        made.append(each)
        return each

    yield of
    for each in made:
        each.remove()


def test_two_generations_live_side_by_side(write, modules):
    path = write("pack/__init__.py", "from . import helper\nfrom .helper import VALUE")
    write("pack/helper.py", "VALUE = 1")
    one = modules(path).execute()
    write("pack/helper.py", "VALUE = 2")
    two = modules(path).execute()
    assert (one.VALUE, two.VALUE) == (1, 2)
    assert one.helper is not two.helper
    assert one.__name__ != two.__name__
    assert "pack" not in sys.modules


def test_what_other_threads_parse_is_not_held_against_a_plugin(write, modules, monkeypatch):
    parse, failures = ast.parse, [SystemError("AST constructor recursion depth mismatch (1, 2)")]

    def disturbed(*arguments):
        if failures:
            raise failures.pop()
        return parse(*arguments)

    monkeypatch.setattr(ast, "parse", disturbed)
    assert modules(write("plain.py", "VALUE = 1")).execute().VALUE == 1
    failures.append(SystemError("something else"))
    with pytest.raises(SystemError, match="something else"):
        modules(write("other.py", "VALUE = 1"))


def test_a_module_knows_its_file_and_its_resources(write, modules):
    path = write("pack/__init__.py", "")
    write("pack/words.txt", "hello")
    module = modules(path).execute()
    assert module.__file__ == path
    assert importlib.resources.files(module).joinpath("words.txt").read_text() == "hello"


def test_what_appears_after_reading_cannot_be_imported(write, modules):
    path = write("pack/__init__.py", "def late():\n    from . import new\n    return new")
    module = modules(path).execute()
    write("pack/new.py", "")
    with pytest.raises(ImportError):
        module.late()


def test_nothing_is_imported_once_removed(write, modules):
    path = write("pack/__init__.py", "def late():\n    from .helper import VALUE")
    write("pack/helper.py", "VALUE = 1")
    made = modules(path)
    module = made.execute()
    made.remove()
    assert made not in sys.meta_path
    with pytest.raises(ImportError):
        module.late()


def test_tracebacks_show_what_was_executed(write, modules):
    path = write("shows.py", "def fail():\n    raise ValueError('as it was')\n")
    made = modules(path)
    module = made.execute()
    write("shows.py", "# something else\n# by now\n")
    linecache.checkcache()
    with pytest.raises(ValueError, match="as it was") as caught:
        module.fail()
    text = "".join(traceback.format_exception(caught.value))
    assert "raise ValueError('as it was')" in text
    made.remove()
    assert path not in linecache.cache


def test_lines_of_a_newer_generation_stay(write, modules):
    path = write("shows.py", "x = 1")
    one = modules(path)
    one.execute()
    two = modules(path)
    two.execute()
    one.remove()
    assert path in linecache.cache


def test_loggers_called_after_modules_go_with_them(write, modules):
    path = write("pack/__init__.py", "from . import sub")
    write("pack/sub.py", "import logging\nlog = logging.getLogger(__name__)")
    made = modules(path)
    made.execute()
    assert f"{made.prefix}.sub" in logging.Logger.manager.loggerDict
    made.remove()
    assert not [name for name in logging.Logger.manager.loggerDict if "pack@" in name]


@pytest.mark.parametrize(
    "text",
    ["import pack.helper", "from pack import helper", "def f():\n    from pack.helper import x"],
)
def test_a_package_that_imports_itself_by_name_is_refused(write, modules, text):
    write("pack/helper.py", text)
    with pytest.raises(PluginInvalid, match=r"relative import.*helper\.py:\d"):
        modules(write("pack/__init__.py", ""))


def test_imports_for_type_checkers_may_be_as_they_like(write, modules):
    text = """
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            from pack.helper import x
        else:
            x = 1
    """
    assert modules(write("pack/__init__.py", text)).execute().x == 1


def test_classes_in_the_caches_of_typing_are_let_go(write, modules):
    text = """
        import typing

        class Thing:
            pass

        Maybe = typing.Optional[Thing]
        Many = typing.List[Thing]
    """
    made = modules(write("typed.py", text))
    made.execute()
    witnesses = Witnesses(made)
    assert not gone(witnesses)
    made.remove()
    assert gone(witnesses)


def test_a_kept_exception_is_named(write, modules):
    made = modules(write("raises.py", "class Own: pass\ndef fail(own=Own): raise KeyError"))
    module = made.execute()
    witnesses = Witnesses(made)
    try:
        module.fail()
    except KeyError as error:
        kept = error
    del module
    made.remove()
    assert not gone(witnesses)
    assert witnesses.holders()
    del kept
    assert gone(witnesses)


def test_off_loop_mutation_refused(write, modules):
    registry = Registry()
    module = modules(write("any.py", "")).execute()
    errors = []

    def elsewhere():
        for call, arguments in (
            (registry.register, ("any", "any@1", module)),
            (registry.unregister, ("any@1",)),
        ):
            try:
                call(*arguments)
            except RuntimeError as error:
                errors.append(str(error))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert errors == ["Plugins are registered on the event loop's thread only."] * 2


def test_a_registry_forgets_whole(write, modules):
    text = """
        from nkv_core import hookimpl

        @hookimpl(priority=3)
        def nkv_request_start(event): pass

        @hookimpl(specname="nkv_request_start")
        def other(): pass
    """
    registry = Registry()
    made = modules(write("hooks.py", text))
    hooks = registry.register("hooks", made.prefix, made.execute())
    assert hooks.kinds == ("listeners",)
    found = hooks.all("nkv_request_start")
    assert sorted((each.priority, each.takes) for each in found) == [(0, ()), (3, ("event",))]
    assert [each(event="x") for each in found] == [None, None]
    registry.unregister(made.prefix)
    registry.unregister(made.prefix)
    assert registry.registered() == []
    assert not registry._manager.hook.nkv_request_start.get_hookimpls()


def test_the_collector_runs_for_many_at_once(write, modules, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(leaks.time, "monotonic", lambda: clock[0])
    runs = []
    monkeypatch.setattr(leaks.gc, "collect", lambda: runs.append(clock[0]))
    made = modules(write("any.py", "def function(): pass"))
    made.execute()
    collector, witnesses = Collector(), Witnesses(made)
    for step in (0.0, 0.0, PAUSE / 2, PAUSE):
        clock[0] += step
        assert not collector.gone(witnesses)
    assert len(runs) == 2
