"""What the text of a plugin shows, each with code that is wrong and code that is not."""

from pathlib import Path
from textwrap import dedent

import pytest

from nkv_core.check import check

PLUGINS = Path(__file__).parents[3] / "plugins"


def found_in(tmp_path, source, name="mine"):
    path = tmp_path / f"{name}.py"
    path.write_text(dedent(source))
    report = check(path, run=False)
    assert {finding.path for finding in report.findings} <= {str(path)}
    return [(finding.code, finding.line) for finding in report.findings]


WRONG = {
    "unsafe_serialisation": "from pickle import loads",
    "core_internals": "from nkv_core import config",
    "other_plugin": "import nkv_storage_memory.storage",
    "blocking_call": """
        from time import sleep as nap
        async def handler(request):
            if request:
                nap(1)
        """,
    "unowned_task": """
        import asyncio
        async def handler(request):
            asyncio.create_task(request())
        """,
    "own_listener": """
        import socket
        def serve():
            listening = socket.socket()
            listening.bind(("127.0.0.1", 0))
        """,
    "import_effect": """
        import json
        json.dumps = None
        """,
    "swallowed_error": """
        def handler(request):
            try:
                request()
            except (ValueError, Exception):
                pass
        """,
    "syntax": "def broken(:",
}
LINES = {
    "blocking_call": 5,
    "unowned_task": 4,
    "own_listener": 5,
    "import_effect": 3,
    "swallowed_error": 5,
}


@pytest.mark.parametrize("code", WRONG)
def test_what_is_wrong_is_found_in_its_line(tmp_path, code):
    assert found_in(tmp_path, WRONG[code]) == [(code, LINES.get(code, 1))]


@pytest.mark.parametrize(
    "source",
    [
        "import nkv_storage_mine",  # itself
        "from nkv_core.contracts.keyspace import Put",
        "from nkv_core.outward import Follower",
        "import json, msgspec",
        """
        import time
        def in_a_thread():
            time.sleep(1)
        async def handler(request):
            def later():
                time.sleep(1)
            return later
        """,
        """
        async def nkv_setup(ctx):
            ctx.tasks.start_soon(print)
            yield
        """,
        """
        def handler(request):
            try:
                request()
            except Exception as error:
                raise RuntimeError from error
        """,
        """
        import atexit
        def later():
            atexit.register(print)
        class Thing:
            x = 1
            x += 1
        """,
        "log.bind(name)",
    ],
)
def test_what_is_right_is_not_found(tmp_path, source):
    assert found_in(tmp_path, source, "nkv_storage_mine") == []


@pytest.mark.parametrize(
    "source",
    [
        "import threading\nthreading.Thread(target=print).start()",
        "import atexit\natexit.register(print)",
        "import signal\nsignal.signal(1, print)",
        "import sys\nsys.modules['json'] = None",
        "import os\nos.environ['A'] = 'b'",
    ],
)
def test_what_lasts_longer_than_the_plugin_is_found(tmp_path, source):
    assert found_in(tmp_path, source) == [("import_effect", 2)]


def test_a_line_can_be_let_pass(tmp_path):
    source = "import pickle  # nkv: allow unsafe_serialisation\nimport shelve  # nkv: allow syntax"
    assert found_in(tmp_path, source) == [("unsafe_serialisation", 2)]


def test_every_file_of_a_package_is_read(tmp_path):
    package = tmp_path / "mine" / "below"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    (package / "deep.py").write_text("\nimport marshal\n")
    (finding,) = check(package.parent, run=False).findings
    assert (finding.path, finding.line) == (str(package / "deep.py"), 2)


def test_a_file_that_others_could_change_is_found(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("")
    path.chmod(0o666)
    (finding,) = check(path, run=False).findings
    assert finding.code == "unreadable"


@pytest.mark.parametrize("name", sorted(path.name for path in PLUGINS.iterdir()))
def test_nothing_is_wrong_with_the_plugins_of_the_tree(name):
    assert check(PLUGINS / name, run=False).findings == []
