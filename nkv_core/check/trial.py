"""Trial: the plugin is loaded, replaced twice and unloaded, in a node that is for nothing else.

The node keeps its data in a temporary folder, in memory, and listens on free ports of loopback.
"""

import ast
import logging
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from nkv_core.check.findings import Finding, found
from nkv_core.check.subject import Subject
from nkv_core.config import load_settings
from nkv_core.errors import NkvError, SettingsError
from nkv_core.node import Node, NodeInThread

_REPLACEMENTS: Final = 2
#: Seconds until a thread that was told to end has surely done so.
_THREADS: Final = 2.0


def try_out(subject: Subject, given: Mapping[str, Any]) -> Iterator[Finding]:
    """What a node has to say about the plugin, with these settings of it."""
    settings: dict[str, Any] = {
        "node.data_dir": "",
        "storage.name": "memory",
        "transport.http.port": 0,
        "plugins.disable": [subject.name],
    }
    with tempfile.TemporaryDirectory(prefix="nkv-check-") as folder, _noting() as logged:
        before = set(threading.enumerate())
        settings["node.data_dir"] = str(Path(folder) / "data")
        with Node.in_thread(load_settings(flags=settings)) as node:
            before |= set(threading.enumerate())
            try:
                yield from _live(node, subject, given)
            except _Over as over:
                yield over.finding
            yield from _leaks(node, subject)
        for thread in _left(before):
            message = f"The thread {thread.name!r} still runs once the plugin is unloaded."
            yield found("left_thread", subject.path, 0, message)
        for record in logged:
            yield found("logged", subject.path, 0, f"{record.levelname}: {record.getMessage()}")


class _Over(Exception):
    """The trial cannot go on."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.message)
        self.finding = finding


def _live(node: NodeInThread, subject: Subject, given: Mapping[str, Any]) -> Iterator[Finding]:
    with _or_over("load_failed", subject):
        try:
            node.call(node.plugins.load, subject.spec, {**_own_port(subject), **given})
        except SettingsError as error:
            raise SettingsError(f"{error.detail} (--set KEY=VALUE gives it settings)") from error
    for _ in range(_REPLACEMENTS):
        with _or_over("replace_failed", subject):
            node.call(node.plugins.replace, subject.name)
    with _or_over("unload_failed", subject):
        node.call(node.plugins.unload, subject.name)
    yield from ()


def _own_port(subject: Subject) -> dict[str, Any]:
    """A free port, where the plugin has a setting for one: its usual one may be in use."""
    fields = {
        field.target.id
        for module in subject.modules
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }
    return {"port": 0} if "port" in fields else {}


@contextmanager
def _or_over(code: str, subject: Subject) -> Iterator[None]:
    try:
        yield
    except NkvError as error:
        path, line = _place_of(error, subject)
        raise _Over(found(code, path, line, error.detail)) from error


def _place_of(error: NkvError, subject: Subject) -> tuple[Path, int]:
    """The line of the plugin's that an error names."""
    for module in subject.modules:
        line = re.search(rf"{re.escape(str(module.path))}:(\d+)", error.detail)
        if line is not None:
            return module.path, int(line[1])
    return subject.path, 0


def _leaks(node: NodeInThread, subject: Subject) -> Iterator[Finding]:
    for info in _called(node, node.plugins.plugins):
        if info.name == subject.name and info.state == "leaked":
            holders = ", ".join(info.held_by) or "something that could not be found"
            message = f"Generation {info.generation} stays in memory, held by {holders}."
            yield found("leaked", subject.path, 0, message)


def _called(node: NodeInThread, function: Callable[[], Any]) -> Any:
    async def called() -> Any:
        return function()

    return node.call(called)


def _left(before: set[threading.Thread]) -> list[threading.Thread]:
    """Threads that came meanwhile, and do not end."""
    until = time.monotonic() + _THREADS
    for thread in set(threading.enumerate()) - before:
        if not thread.name.startswith(("AnyIO worker", "nkv ")):
            thread.join(max(until - time.monotonic(), 0))
    return [
        thread
        for thread in threading.enumerate()
        if thread not in before and not thread.name.startswith(("AnyIO worker", "nkv "))
    ]


class _Notes(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        # What the node says of a leak is a finding of its own.
        if "still held in memory" not in record.getMessage():
            self.records.append(record)


@contextmanager
def _noting() -> Iterator[list[logging.LogRecord]]:
    """Note down what is logged as a warning or worse, and show nothing of it."""
    logger, notes = logging.getLogger("nkv"), _Notes()
    logger.addHandler(notes)
    propagates, logger.propagate = logger.propagate, False
    try:
        yield notes.records
    finally:
        logger.removeHandler(notes)
        logger.propagate = propagates
