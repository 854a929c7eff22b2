"""Lint: what no plugin should do, as far as its text shows it.

A line that ends in `# nkv: allow CODE` is let pass with that code.
"""

import ast
import re
from collections.abc import Iterator
from typing import Final

from nkv_core.check.findings import Finding, found
from nkv_core.check.subject import Module, Subject

#: Modules of the core that may change with every release.
INTERNALS: Final = frozenset(
    ("auth", "bus", "config", "keyspace", "handlers", "dispatch", "plugin_host", "node", "cli")
)
_PICKLES: Final = frozenset(("pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle"))
_BLOCKING: Final = {
    "time.sleep": "await anyio.sleep(...)",
    "subprocess.run": "await anyio.run_process(...)",
    "subprocess.call": "await anyio.run_process(...)",
    "subprocess.check_call": "await anyio.run_process(...)",
    "subprocess.check_output": "await anyio.run_process(...)",
    "os.system": "await anyio.run_process(...)",
    "urllib.request.urlopen": "an asynchronous client",
    "requests.get": "an asynchronous client",
    "requests.post": "an asynchronous client",
    "requests.request": "an asynchronous client",
    "socket.create_connection": "await anyio.connect_tcp(...)",
    "socket.getaddrinfo": "await anyio.getaddrinfo(...)",
}
_TASKS: Final = frozenset(
    (
        "asyncio.create_task",
        "asyncio.ensure_future",
        "asyncio.get_event_loop",
        "trio.lowlevel.spawn_system_task",
    )
)
_LISTENERS: Final = frozenset(
    (
        "asyncio.start_server",
        "asyncio.start_unix_server",
        "anyio.create_tcp_listener",
        "anyio.create_unix_listener",
        "socket.create_server",
        "trio.open_tcp_listeners",
        "trio.serve_tcp",
    )
)
_EFFECTS: Final = frozenset(("atexit.register", "signal.signal", "threading.setprofile"))
_BROAD: Final = frozenset(("Exception", "BaseException"))
_OURS: Final = re.compile(r"nkv_(storage|transport|notifier|mesh)_[a-z0-9_]+")
_ALLOWED: Final = re.compile(r"#\s*nkv:\s*allow\s+([a-z_,\s]+)")


def lint(subject: Subject) -> Iterator[Finding]:
    """What the text of a plugin shows."""
    for module in subject.modules:
        for finding in _Reader(module, subject.name).read():
            if finding.code not in _allowed(module, finding.line):
                yield finding


def _allowed(module: Module, line: int) -> set[str]:
    match = _ALLOWED.search(module.lines[line - 1]) if 0 < line <= len(module.lines) else None
    return set() if match is None else set(re.split(r"[,\s]+", match[1].strip()))


class _Reader:
    """Reads one module."""

    def __init__(self, module: Module, plugin: str) -> None:
        self._module = module
        self._plugin = plugin
        self._names: dict[str, str] = {}  # what imported names stand for

    def read(self) -> Iterator[Finding]:
        for node in ast.walk(self._module.tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                yield from self._imports(node)
        for node in ast.walk(self._module.tree):
            if isinstance(node, ast.Call):
                yield from self._calls(node)
            elif isinstance(node, ast.ExceptHandler):
                yield from self._handles(node)
            elif isinstance(node, ast.AsyncFunctionDef):
                yield from self._waits(node)
        for statement in self._module.tree.body:
            yield from self._at_import(statement)

    def _found(self, code: str, node: ast.AST, message: str) -> Finding:
        return found(code, self._module.path, getattr(node, "lineno", 0), message)

    def _imports(self, node: ast.Import | ast.ImportFrom) -> Iterator[Finding]:
        if isinstance(node, ast.ImportFrom):
            if node.level:
                return
            names = {
                alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names
            }
        else:
            names = {
                alias.asname or alias.name.partition(".")[0]: (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
                for alias in node.names
            }
        self._names.update(names)
        modules = (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
        )
        full = {*modules, *(names.values() if isinstance(node, ast.ImportFrom) else ())}
        for name in sorted(full):
            first, _, rest = name.partition(".")
            part = rest.partition(".")[0]
            if name in modules and first in _PICKLES:
                message = f"{first} runs code of whoever wrote what it reads: use msgspec or json."
                yield self._found("unsafe_serialisation", node, message)
            elif first == "nkv_core" and part in INTERNALS:
                message = (
                    f"nkv_core.{part} is the core's own and changes without notice: use"
                    " nkv_core.contracts, and what the context gives."
                )
                yield self._found("core_internals", node, message)
            elif name in modules and _OURS.fullmatch(first) and first != self._plugin:
                message = f"{first} is another plugin, and may be replaced or not be there."
                yield self._found("other_plugin", node, message)

    def _calls(self, node: ast.Call) -> Iterator[Finding]:
        name = self._name(node.func)
        if name in _TASKS or name.endswith((".create_task", ".ensure_future")):
            message = "Nobody ends this task with the plugin: ctx.tasks.start_soon(...) does."
            yield self._found("unowned_task", node, message)
        elif name in _LISTENERS or (name.endswith(".bind") and self._is_socket(node)):
            message = (
                "Sockets of a plugin's own go with it, and clients are refused while it is"
                " replaced: await ctx.listen(...) gives those that the node keeps."
            )
            yield self._found("own_listener", node, message)

    def _is_socket(self, node: ast.Call) -> bool:
        # `.bind((host, port))` or `.bind(path)` of a socket; loggers and others bind by name.
        return "socket" in self._names.values() and len(node.args) == 1 and not node.keywords

    def _waits(self, function: ast.AsyncFunctionDef) -> Iterator[Finding]:
        for node in _within(function):
            if isinstance(node, ast.Call) and (instead := _BLOCKING.get(self._name(node.func))):
                name = self._name(node.func)
                message = f"{name} stops the whole node: {instead}, or a thread by anyio.to_thread."
                yield self._found("blocking_call", node, message)

    def _handles(self, node: ast.ExceptHandler) -> Iterator[Finding]:
        types = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        broad = any(one is None or self._name(one) in _BROAD for one in types)
        silent = all(
            isinstance(one, ast.Pass | ast.Continue)
            or (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))
            for one in node.body
        )
        if broad and silent:
            message = "An error of any kind is lost here: name those that are meant, or log them."
            yield self._found("swallowed_error", node, message)

    def _at_import(self, statement: ast.stmt) -> Iterator[Finding]:
        message = "This lasts longer than the plugin: do it in nkv_setup, and undo it there."
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            return
        for node in ast.walk(statement):
            if isinstance(node, ast.Call):
                name = self._name(node.func)
                thread = name.endswith(".start") and "threading" in ast.dump(node)
                if name in _EFFECTS or thread:
                    yield self._found("import_effect", node, message)
            targets = (
                node.targets
                if isinstance(node, ast.Assign)
                else [node.target]
                if isinstance(node, ast.AugAssign)
                else []
            )
            for target in targets:
                if self._is_foreign(target):
                    yield self._found("import_effect", node, message)

    def _is_foreign(self, target: ast.expr) -> bool:
        """Whether what is assigned to belongs to a module that was imported."""
        if isinstance(target, ast.Subscript):
            return self._name(target.value) in ("sys.modules", "os.environ")
        base = target
        while isinstance(base, ast.Attribute):
            base = base.value
        return isinstance(target, ast.Attribute) and (
            isinstance(base, ast.Name) and base.id in self._names
        )

    def _name(self, node: ast.expr | None) -> str:
        """The whole name of what is called, by what was imported: `time.sleep`."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if isinstance(node, ast.Name):
            parts.append(self._names.get(node.id, node.id))
        elif isinstance(node, ast.Call):
            parts.append(self._name(node.func))
        return ".".join(reversed(parts))


def _within(function: ast.AsyncFunctionDef) -> Iterator[ast.AST]:
    """All that runs on the event loop when the function does: no functions within it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))
