"""`nkv serve`: settings and signals around a node."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from nkv_core.cli.log import start_logging
from nkv_core.cli.output import mute
from nkv_core.config import DEFAULT_CONFIG, Settings, load_settings, parse_assignment
from nkv_core.errors import NkvError, SettingsError, StartError

if TYPE_CHECKING:
    from nkv_core.node import Node

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


@click.command()
@click.option(
    "--config", metavar="FILE", help=f"Settings file; ./{DEFAULT_CONFIG} if there is one."
)
@click.option("--host", metavar="H", help="Address to listen at over HTTP.  [127.0.0.1]")
@click.option(
    "--port", metavar="P", type=click.IntRange(0, 65535), help="Port; 0 takes a free one.  [8080]"
)
@click.option("--data-dir", metavar="DIR", help="Where the data is.  [./nkv-data]")
@click.option("--storage", metavar="NAME", help="The storage in charge.  [diskcache]")
@click.option(
    "--plugin",
    "plugins",
    metavar="SPEC",
    multiple=True,
    help="Load a plugin as well: an entry point's name, a module, or a path.",
)
@click.option("--join", metavar="URL", multiple=True, help="Join the mesh of this node.")
@click.option(
    "--set",
    "assignments",
    metavar="SECTION.KEY=VALUE",
    multiple=True,
    help="Give any setting a value.",
)
@click.option("--dev", is_flag=True, help="Replace plugins given as files whenever they are saved.")
@click.option("--insecure", is_flag=True, help="Allow listeners beyond loopback without tokens.")
def serve(
    *,
    config: str | None,
    host: str | None,
    port: int | None,
    data_dir: str | None,
    storage: str | None,
    plugins: tuple[str, ...],
    join: tuple[str, ...],
    assignments: tuple[str, ...],
    dev: bool,
    insecure: bool,
) -> None:
    """Run a node until it is told to stop (SIGTERM, Ctrl-C; a second one ends it at once).

    Flags beat the environment (NKV_SECTION__KEY), and that beats the settings file. SIGHUP has the
    settings read again, as `nkv reload` does.
    """
    given = {
        "transport.http.host": host,
        "transport.http.port": port,
        "node.data_dir": data_dir,
        "node.insecure": insecure or None,
        "plugins.watch": dev or None,
        "storage.name": storage,
        "mesh.full.join": list(join) or None,
    }
    flags: dict[str, Any] = dict(map(parse_assignment, assignments))
    flags.update((name, value) for name, value in given.items() if value is not None)

    def read() -> Settings:
        return _with_plugins(
            load_settings(config=config_file(config), environ=os.environ, flags=flags), plugins
        )

    settings = read()
    start_logging(settings.log)
    _run(settings, read)


commands: Final[list[click.Command]] = [serve]


def config_file(given: str | None = None) -> Path | None:
    """The settings file: the one named, else that of the current folder where there is one."""
    if given is not None:
        return Path(given)
    default = Path(DEFAULT_CONFIG)
    return default if default.exists() else None


def _with_plugins(settings: Settings, specs: tuple[str, ...]) -> Settings:
    """Add `--plugin` to what the file and the environment load."""
    plugins = msgspec.structs.replace(settings.plugins, load=(*settings.plugins.load, *specs))
    return msgspec.structs.replace(settings, plugins=plugins)


def _run(settings: Settings, read: Callable[[], Settings]) -> None:
    import anyio  # noqa: PLC0415  # the help needs none of this

    from nkv_core.collector import sparing_collector  # noqa: PLC0415
    from nkv_core.node import Node  # noqa: PLC0415

    backend = settings.node.backend
    if find_spec(backend) is None:
        raise SettingsError(
            f"node.backend: {backend} is not installed: pip install 'nkv-core[{backend}]'"
        )
    try:
        fast = backend == "asyncio" and find_spec("uvloop") is not None
        with sparing_collector():
            anyio.run(
                _serve,
                Node(settings, reread=read),
                backend=backend,
                backend_options={"use_uvloop": True} if fast else {},
            )
    except BaseExceptionGroup as group:
        raise _only_error(group) from group
    except OSError as error:
        raise StartError(f"{error.filename or 'The node'}: {error.strerror or error}.") from error


async def _serve(node: "Node") -> None:
    import anyio  # noqa: PLC0415

    with anyio.CancelScope() as scope, _woken_by_signals(), _stopped_by_signals(scope, node):
        await node.run(started=_say_where)


@contextmanager
def _woken_by_signals() -> Iterator[None]:
    """Have signals wake the event loop. One that comes just before it begins to wait does not
    interrupt the waiting, and would be heard of with the next timer. uvloop and trio see to it.
    """
    import asyncio  # noqa: PLC0415  # other commands use a part of this module

    reading, writing = socket.socketpair()
    with reading, writing:
        reading.setblocking(False)
        writing.setblocking(False)
        before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        if before != -1:  # they are awake already
            signal.set_wakeup_fd(before, warn_on_full_buffer=False)
            yield
            return
        loop = asyncio.get_running_loop()
        loop.add_reader(reading, reading.recv, 4096)
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            loop.remove_reader(reading)


@contextmanager
def _stopped_by_signals(scope: Any, node: "Node") -> Iterator[None]:
    """Cancel the scope at the first signal. The second has its usual effect: the process ends, even
    where a plugin blocks the event loop. What was acknowledged is on the disk then. At SIGHUP, have
    the settings read again.
    """
    from nkv_core.loop import threadsafe_caller  # noqa: PLC0415

    call = threadsafe_caller()

    def stop(*_: object) -> None:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        call(scope.cancel)

    def hang_up(*_: object) -> None:
        call(node.reload_soon)

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, hang_up)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say_where(node: "Node") -> None:
    addresses = ", ".join(node.addresses) or "nothing"
    try:
        print(f"nkv: serving {addresses} (data in {node.settings.node.data_dir})", flush=True)
    except OSError:  # nobody reads it any more; the node is none the worse for it
        mute()


def _only_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error of nkv where the group is of nothing else."""
    errors = group.exceptions
    if len(errors) == 1:
        inner = errors[0]
        if isinstance(inner, BaseExceptionGroup):
            return _only_error(inner)
        if isinstance(inner, NkvError):
            return inner
    return group
