"""Node: puts the parts together, and takes them apart in order. It has no rules of its own."""

import logging
import platform
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version
from typing import Any, Final, ParamSpec, Self, TypeVar

import anyio
import msgspec
from anyio.abc import TaskGroup
from anyio.from_thread import BlockingPortal, start_blocking_portal

from nkv_core.admin import (
    Changes,
    mesh_verbs,
    plugin_verbs,
    reload_verbs,
    serve_admin,
    storage_verbs,
    verbs,
)
from nkv_core.auth import Auth
from nkv_core.bus import Conduct, Listener
from nkv_core.config import MESH_PREFIX, Settings, section_of
from nkv_core.contracts.context import Measurement
from nkv_core.contracts.handlers import Route
from nkv_core.contracts.keyspace import Keyspace
from nkv_core.contracts.owner import CORE
from nkv_core.contracts.settings import PluginSettings
from nkv_core.data_dir import DataDir
from nkv_core.dispatch import Dispatcher
from nkv_core.errors import NkvError, NotSupportedHere
from nkv_core.events import Connect, Disconnect, PluginLoaded, PluginUnloaded
from nkv_core.keyspace import LocalKeyspace, WatchHub
from nkv_core.keyspace.backup import answer_backup
from nkv_core.plugin_host import PluginHost
from nkv_core.plugin_host.audit import Audit
from nkv_core.plugin_host.changes import ChangeFeed
from nkv_core.plugin_host.exchange import Changes as PluginChanges
from nkv_core.plugin_host.folder import FolderWatch, folder_of, specs_in
from nkv_core.records import Change
from nkv_core.reload import Plan, in_force, plan
from nkv_core.specs import absolute_spec
from nkv_core.storages import Storages

VERSION: Final = version("nkv-core")
#: What is loaded without being asked for, besides the storage; `plugins.disable` takes from it.
DEFAULT_PLUGINS: Final = (
    "nkv_notifier_sse",
    "nkv_notifier_websocket",
    "nkv_transport_http",
)

P = ParamSpec("P")
T = TypeVar("T")

log: Final = logging.getLogger("nkv.node")


class Node:
    """One node: `async with Node(settings) as node` serves until the block is left.

    Entering raises `SettingsError`, `StartError` and its kin, `StorageFull` or `PluginError` where
    the node cannot start; then nothing of it runs, and what it had opened is closed.
    """

    #: Set while it serves.
    local: LocalKeyspace  #: the node's own keyspace
    hub: WatchHub
    plugins: PluginHost
    storages: Storages  #: which storage is in charge, and how it is exchanged

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        reread: Callable[[], Settings] | None = None,
    ) -> None:
        """`reread` gives the settings as they are now, for `reload`; it may block for a moment."""
        self.settings = settings or Settings()
        self._reread = reread
        self._reloading = anyio.Lock()
        self.name: Final = self.settings.node.name or platform.node()
        self.node_id = 0
        self._listening: dict[tuple[str, str, int], Connect] = {}
        self._ready = False
        self._begun = time.monotonic()
        self._dispatcher: Dispatcher
        self._tasks: TaskGroup
        self._audit: Audit
        self._scope: Any = None

    # --- life -------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._scope is not None:
            raise RuntimeError("A node serves once; make another.")
        self._scope = self._serving()
        try:
            await self._scope.__aenter__()
        except BaseExceptionGroup as group:
            raise _only_error(group) from None
        return self

    async def __aexit__(self, *error: Any) -> bool | None:
        try:
            stopped: bool | None = await self._scope.__aexit__(*error)
        except BaseExceptionGroup as group:
            if error[1] is None or _only_error(group) is not error[1]:
                raise
            return False  # what was raised in the block goes on as it is
        return stopped

    async def run(self, started: Callable[["Node"], None] | None = None) -> None:
        """Serve until cancelled. `started` is called once all parts serve."""
        async with self:
            if started is not None:
                started(self)
            await anyio.sleep_forever()

    @classmethod
    @contextmanager
    def in_thread(cls, settings: Settings | None = None) -> Iterator["NodeInThread"]:
        """Serve in an event loop of its own, in a thread, until the block is left. Calls that have
        not ended by then are cancelled.
        """
        node = cls(settings)
        backend = node.settings.node.backend
        with start_blocking_portal(backend, name=f"nkv {node.name}") as portal:
            try:
                with portal.wrap_async_context_manager(node):
                    yield NodeInThread(node, portal)
            finally:
                portal.call(portal.stop, True)

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        settings = self.settings
        auth = None if settings.auth.tokens is None else Auth.load(settings.auth.tokens)
        with DataDir.open(settings.node.data_dir) as data:
            self.node_id = data.node_id
            self._dispatcher = Dispatcher(settings=settings.bus, auth=auth)
            self._dispatcher.node = self
            self._dispatcher.on(Connect, self._note_connect)
            self._dispatcher.on(Disconnect, self._note_disconnect)
            self.plugins = PluginHost(
                settings=_within(settings.plugins, settings.node.stop_deadline),
                sections=settings.section,
                dispatcher=self._dispatcher,
                data_dir=data.path,
                node=self,
                insecure=settings.node.insecure,
                authenticated=auth is not None,
            )
            async with anyio.create_task_group() as self._tasks:
                await self._tasks.start(self._dispatcher.run)
                try:
                    await self._tasks.start(self.plugins.run)
                    await self._open_keyspace(data)
                    self._audit = Audit(data.path)
                    await self._load_plugins(data)
                    changes = Changes(self._audit, settings.plugins.max_changes_per_minute)
                    await self._tasks.start(
                        serve_admin,
                        data.admin_socket,
                        verbs(self._verbs(changes)),
                        changes.refused,
                    )
                    self._ready = True
                    yield
                finally:
                    self._ready = False
                    with anyio.CancelScope(shield=True):
                        await self._stop()
                    self._tasks.cancel_scope.cancel()

    async def _open_keyspace(self, data: DataDir) -> None:
        self.storages = Storages(self.settings, self.plugins, data)
        keyspace = self.local = await self.storages.open(self._tasks)
        self.hub = WatchHub(keyspace, self.settings.watch)
        await self._tasks.start(keyspace.run)
        await self._tasks.start(self.hub.run)
        self.plugins.attach(keyspace, self.hub)

    async def _load_plugins(self, data: DataDir) -> None:
        """Load what is asked for, then the default set: all handlers stand before it listens."""
        settings = self.settings.plugins
        folder = folder_of(settings.directory, data.path)
        loaded = {info.spec for info in self.plugins.plugins()}
        for spec in dict.fromkeys((*settings.load, *self._joined_meshes())):
            if absolute_spec(spec) not in loaded:
                await self.plugins.load(spec)
        if not settings.watch:
            for spec in specs_in(folder):
                await self.plugins.load(spec)
        names = {info.name for info in self.plugins.plugins()}
        wanted = [name for name in DEFAULT_PLUGINS if name not in {*names, *settings.disable}]
        sections = {section_of(name) for name in {*names, *self.plugins.available()}}
        storages = {f"storage.{name}" for name in (self.settings.storage, self.storages.name)}
        self.settings.check_sections(sections | storages)
        if settings.watch:
            watch = FolderWatch(self.plugins, folder, self._audit)
            await watch.look()
            for event in (PluginLoaded, PluginUnloaded):
                self._dispatcher.on(event, watch.note)
            self._tasks.start_soon(watch.run)
        for name in wanted:
            await self.plugins.load(name)

    def _joined_meshes(self) -> list[str]:
        """The plugins of meshes that are told whom to join."""
        return [
            f"{MESH_PREFIX}{name.removeprefix('mesh.')}"
            for name, section in self.settings.sections.items()
            if name.startswith("mesh.") and section.get("join")
        ]

    async def _stop(self) -> None:
        """Stop in order: those who ask, then what answers them, then what it stands on."""
        await self.plugins.unload_all()
        if hasattr(self, "hub"):
            self.hub.close()
            await self.storages.close()
        await self.plugins.unload_all(held=True)

    # --- what it is -------------------------------------------------------------------------------

    @property
    def keyspace(self) -> Keyspace:
        """What requests work on: the node's own keyspace, or the mesh around it."""
        return self._dispatcher.keyspace

    @property
    def ready(self) -> bool:
        """Whether every part serves and none is being stopped."""
        return self._ready

    @property
    def addresses(self) -> list[str]:
        """Where it listens: `http://127.0.0.1:8080`."""
        return [listener.url for listener in self._listening.values()]

    @property
    def listeners(self) -> list[Connect]:
        """The events of the listeners that are open now."""
        return list(self._listening.values())

    async def status(self) -> dict[str, Any]:
        """What `/v1/status` shows."""
        return {
            "name": self.name,
            "version": VERSION,
            "node_id": f"{self.node_id:016x}",
            "ready": self._ready,
            "uptime": round(time.monotonic() - self._begun, 3),
            "addresses": self.addresses,
            "storage": self.storages.name,
            "migration": self.storages.migration(),
            "records": await self.local.count(),
            "token": str(self.local.token),
            "keyspace": self.local.status(),
            "mesh": None if self.plugins.mesh is None else self.plugins.mesh.status(),
            "plugins": [msgspec.to_builtins(info) for info in self.plugins.plugins()],
            "listeners": [_conduct(one) for one in self._dispatcher.offences()],
            "watchers": [
                {**msgspec.to_builtins(one), "token": None if one.token is None else str(one.token)}
                for one in self.hub.watchers()
            ],
        }

    def measurements(self) -> list[Measurement]:
        """What `/metrics` shows."""
        return [
            Measurement("nkv_info", "gauge", "Version and name.", [(self._labels(), 1)]),
            *self._dispatcher.measurements(),
            *self.local.measurements(),
            *self.hub.measurements(),
            *(() if self.plugins.mesh is None else self.plugins.mesh.measurements()),
        ]

    def routes(self, listener: str) -> list[Route]:
        """The routes of a listener, as registered now."""
        return self._dispatcher.routes(listener)

    def on(self, event: type, listener: Callable[[Any], Any]) -> Callable[[], None]:
        """Have `listener` called with each event of this type; returns what ends that.

        Changes are told from now on, off the write path; the node must serve already.
        """
        if event is not Change:
            return self._dispatcher.on(event, listener)
        feed = ChangeFeed(CORE, [Listener(Change, listener, CORE)], self.hub)
        self._tasks.start_soon(feed.run)
        return feed.close

    async def reload(self, settings: Settings | None = None, *, dry_run: bool = False) -> Plan:
        """Take over other settings, or those that `reread` gives, as far as this needs no new
        start, and read the file of tokens again. Returns what was done, or would be.

        Raises as the start of a node does, and then has changed nothing. Streams that are open keep
        the rights that they began with.
        """
        if settings is None:
            if self._reread is None:
                raise NotSupportedHere("This node was given its settings by a program.")
            settings = await anyio.to_thread.run_sync(self._reread)
        async with self._reloading:
            before = self.settings
            infos = self.plugins.plugins()
            made = plan(before, settings, infos, DEFAULT_PLUGINS, self.storages.name)
            known = {section_of(name) for name in self.plugins.available()}
            settings.check_sections(
                known
                | {info.section for info in infos}
                | {f"storage.{name}" for name in (settings.storage, self.storages.name)}
                | {await self.plugins.section(spec) for spec in made.load}
            )
            tokens = before.auth.tokens
            auth = None if tokens is None else Auth.load(tokens)
            if dry_run:
                self.plugins.check(made.replace, settings.section)
                return made
            await self.plugins.change(
                PluginChanges(
                    settings=_within(settings.plugins, before.node.stop_deadline),
                    sections=settings.section,
                    load=made.load,
                    replace=made.replace,
                    unload=made.unload,
                )
            )
            if auth is not None:
                self._dispatcher.renew(auth)
            self.settings = in_force(before, settings)
        if made:
            log.info("The settings were read again.")
        for name in made.restart:
            log.warning("%s has changed, and is as before until the node is started again.", name)
        return made

    def reload_soon(self) -> None:
        """Have the settings read again, because of a signal. How it went is in the log."""
        if self._ready:
            self._tasks.start_soon(self._reload_by_signal)

    # --- within -----------------------------------------------------------------------------------

    def _verbs(self, changes: Changes) -> dict[str, Any]:
        return {
            **plugin_verbs(self.plugins, changes),
            **reload_verbs(self.reload, changes),
            **mesh_verbs(self.plugins),
            **storage_verbs(self.storages, changes),
            "backup": lambda call: answer_backup(
                self.local, call.params, call.progress, node_id=self.node_id
            ),
        }

    async def _reload_by_signal(self) -> None:
        try:
            with self._audit.by_node("signal", "reload"):
                await self.reload()
        except (NkvError, OSError) as error:
            log.error("The settings were not read again: %s", error)

    def _labels(self) -> dict[str, str]:
        return {"version": VERSION, "name": self.name, "storage": self.storages.name}

    def _note_connect(self, event: Connect) -> None:
        self._listening[event.transport, event.host, event.port] = event

    def _note_disconnect(self, event: Disconnect) -> None:
        self._listening.pop((event.transport, event.host, event.port), None)


class NodeInThread:
    """A node that serves in a thread, for a program without an event loop."""

    def __init__(self, node: Node, portal: BlockingPortal) -> None:
        self.node: Final = node
        self._portal = portal

    def call(self, function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an async function in the node's event loop, and wait for its result."""
        return self._portal.call(lambda: function(*args, **kwargs))

    def on(self, event: type, listener: Callable[[Any], Any]) -> Callable[[], None]:
        """As `Node.on`. The listener is called in the node's thread."""
        off = self._portal.call(self.node.on, event, listener)
        return lambda: self._portal.call(off)

    @property
    def keyspace(self) -> Keyspace:
        """The keyspace, for `call`."""
        return self.node.keyspace

    @property
    def plugins(self) -> PluginHost:
        """The plugin host, for `call`."""
        return self.node.plugins

    @property
    def addresses(self) -> list[str]:
        """Where the node listens."""
        return self.node.addresses


def _within(settings: PluginSettings, deadline: float) -> PluginSettings:
    """The deadlines of plugins, none longer than the node's own for stopping."""
    return msgspec.structs.replace(
        settings,
        drain_deadline=min(settings.drain_deadline, deadline),
        transport_drain_deadline=min(settings.transport_drain_deadline, deadline),
        close_deadline=min(settings.close_deadline, deadline),
    )


def _conduct(one: Conduct) -> dict[str, Any]:
    return {**msgspec.structs.asdict(one), "owner": one.owner.name}


def _only_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error in a group; the group itself where there are several."""
    if len(group.exceptions) > 1:
        return group
    inner = group.exceptions[0]
    return _only_error(inner) if isinstance(inner, BaseExceptionGroup) else inner
