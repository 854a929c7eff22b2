"""Lifecycle: one generation of a plugin, from its source to its last trace.

Its states: discovered, verified, loaded, prepared, active, draining, closed; or failed, or leaked.
A generation that fails before it is active leaves nothing behind. One that fails while it is active
(a task of its own raises, its transport ends by itself) is retired as if it were unloaded, handlers
and all: the scope that they stood on is gone.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import anyio
from anyio import CancelScope, Event, current_time
from anyio.abc import TaskGroup

from nkv_core.config import section_of
from nkv_core.contracts.owner import Owner
from nkv_core.contracts.settings import PluginSettings
from nkv_core.dispatch import Registration
from nkv_core.errors import NkvError, PluginSetupFailed
from nkv_core.handlers import Features, HandlerCollector
from nkv_core.loop import Worker
from nkv_core.plugin_host import blame
from nkv_core.plugin_host.changes import ChangeFeed
from nkv_core.plugin_host.context import PluginContext, Services
from nkv_core.plugin_host.discovery import Candidate
from nkv_core.plugin_host.leaks import Witnesses, threads_in
from nkv_core.plugin_host.modules import Modules
from nkv_core.plugin_host.offers import converted, managed
from nkv_core.plugin_host.places import Places
from nkv_core.plugin_host.registry import Hooks, Implementation
from nkv_core.plugin_host.scope import ANY_ERROR, GRACE, Scope
from nkv_core.plugin_host.serving import Serving
from nkv_core.plugin_host.source import Source, check_pins, read_source
from nkv_core.records import Change

State = Literal[
    "discovered",
    "verified",
    "loaded",
    "prepared",
    "active",
    "draining",
    "closed",
    "failed",
    "leaked",
]

log = logging.getLogger("nkv.plugins")


class Generation:
    """One generation. The host has it load and set itself up, puts it in charge, and retires it."""

    def __init__(
        self,
        candidate: Candidate,
        number: int,
        *,
        settings: PluginSettings,
        services: Services,
        features: Features,
        failed: Callable[["Generation"], None],
        predecessor: Event | None = None,
    ) -> None:
        """`failed` is called where it fails by itself while it is active; `predecessor` is set once
        nothing is left of the generation that it replaces.
        """
        self.candidate: Final = candidate
        self.owner: Final = Owner(candidate.name, number)
        self.state: State = "discovered"
        self.error: NkvError | None = None
        self.sha256 = ""
        self.hooks: Hooks = Hooks({})
        self.settings: Any = None
        self.witnesses: Witnesses | None = None
        self.serving: Final = Serving(
            candidate.name, deadline=settings.transport_drain_deadline, failed=self._fail
        )
        self.kinds: tuple[str, ...] = ()
        self._services = services
        self._places = Places(self.owner, services, self.serving)
        self._limits = settings
        self._tell_failed = failed
        self._predecessor = predecessor
        self._modules: Modules | None = None
        self._handlers = HandlerCollector(self.owner, features)
        self._feed: ChangeFeed | None = None
        self._scope = Scope(
            repr(self.owner), close_deadline=settings.close_deadline, failed=self._fail
        )
        self._patience = CancelScope()
        self._remaining = settings.setup_deadline
        self._step = "reading it"
        self._in_charge = False
        self._context: PluginContext | None = None
        self._probing: CancelScope | None = None
        self.pin: str | None = None  #: the SHA-256 that its source must have
        self.undone: Final = Event()  #: nothing of it is left in the node
        self._idle = Event()  #: nothing runs in its name any more

    @property
    def name(self) -> str:
        """The plugin's name."""
        return self.owner.name

    @property
    def number(self) -> int:
        """Which generation of its plugin it is, from 1."""
        return self.owner.generation

    # --- to where it can take over ----------------------------------------------------------------

    async def load(self, given: Mapping[str, Any]) -> None:
        """Read, check and execute its source, register its hooks, convert its settings.

        Raises `PluginError` or `SettingsError`; then nothing of it is left.
        """
        began = current_time()
        try:
            with anyio.move_on_after(self._remaining) as scope:
                await self._load(given)
            if scope.cancelled_caught:
                raise self._too_long()
        except BaseException:
            self.undo()
            raise
        self._remaining -= current_time() - began

    async def _load(self, given: Mapping[str, Any]) -> None:
        worker = Worker(f"nkv load {self.name}")
        try:
            source: Source = await worker.run(self._read)
            self.sha256 = source.sha256
            check_pins(source, self._limits.sha256.get(self.name), self.pin)
            self.state = "verified"
            self._modules = modules = Modules(source)
            self._step = "executing it"
            error: NkvError | None = None
            try:
                await worker.run(modules.compile)
                plugin = await worker.run(modules.execute)
            except (*ANY_ERROR, KeyboardInterrupt) as raised:  # in a thread it is nobody's Ctrl-C
                error = self._blame(raised)
            if error is not None:
                raise error
        finally:
            worker.close()
        self.witnesses = Witnesses(modules)
        self.hooks = self._services.registry.register(self.name, modules.prefix, plugin)
        self.kinds = self.hooks.kinds
        self._step = "nkv_settings"
        self.settings = self.convert(section_of(self.name), given)
        self.state = "loaded"

    def _read(self) -> Source:
        return read_source(self.candidate, self._limits.folders)

    def convert(self, section: str, given: Mapping[str, Any]) -> Any:
        """A section as the type that the plugin has for it, or as it was given where it has none.

        Raises `SettingsError`, and `PluginSetupFailed` where `nkv_settings` is at fault.
        """
        hook = self.hooks.one("nkv_settings")
        if hook is None:
            return given
        directory = self._services.data_dir / self.name
        return converted(self.name, section, given, self.ask(hook), directory)

    def ask(self, hook: Implementation, **arguments: Any) -> Any:
        """Call a plain hook. Raises `PluginSetupFailed`, naming the line, where it raises."""
        try:
            return hook(**arguments)
        except ANY_ERROR as raised:
            error = self._blame(raised)
        raise error

    async def set_up(self, tasks: TaskGroup) -> None:
        """Enter its scope, in a task of `tasks`, up to where it could serve.

        Raises `PluginError`, `StartError` or `SettingsError`; then nothing of it is left.
        """
        tasks.start_soon(self._live, name=f"nkv: {self.owner!r}")
        try:
            with anyio.move_on_after(self._remaining):
                await self._scope.settled.wait()
            if not self._scope.settled.is_set():
                self.error = self._too_long()
        except BaseException:
            with CancelScope(shield=True):
                await self.discard()
            raise
        if self.error is not None:
            with CancelScope(shield=True):
                await self.discard()
            raise self.error
        self.state = "prepared"

    async def discard(self) -> None:
        """Leave the scope of a generation that never came to serve."""
        self.owner.draining = True
        self.serving.end()
        self._finish(await self._scope.give_up())

    async def _live(self) -> None:
        try:
            await self._scope.live(self._enter)
        finally:
            self.undo()

    async def _enter(self) -> None:
        """What the scope's own task does first: all that the plugin sets up by itself."""
        scope = self._scope
        context = PluginContext(
            owner=self.owner,
            settings=self.settings,
            services=self._services,
            tasks=scope.tasks,
            stack=scope.stack,
            handlers=self._handlers,
            listen=self._places.listen,
            reach=self._places.reach,
            predecessor=self._predecessor,
            offered=self._offered,
        )
        self._context = context
        for hook in self.hooks.all("nkv_setup"):
            self._step = "nkv_setup"
            await scope.stack.enter_async_context(managed(self.name, hook(ctx=context)))
        self._step = "nkv_handlers"
        for hook in self.hooks.all("nkv_handlers"):
            hook(handlers=self._handlers)
        self._step = "nkv_transport or nkv_mesh"
        self.serving.take(self.hooks, self.settings, context, self._services)
        if self.serving.any:
            self._step = f"starting its {self.serving.kind}"
            scope.tasks.start_soon(self.serving.run)
            await self.serving.started.wait()

    def offer(self, hook: str, name: str) -> Any:
        """What it offers under a name, given its own settings; None where it offers no such."""
        found = self.hooks.one(hook)
        return None if found is None else self.ask(found, name=name, settings=self.settings)

    def _offered(self, hook: str, name: str) -> Any:
        own = self.offer(hook, name)
        return self._services.offered(hook, name, self.name) if own is None else own

    # --- in charge --------------------------------------------------------------------------------

    def registration(self, order: int) -> Registration:
        """What it brings into the dispatcher; `order` is its plugin's place among all."""
        listeners = self.hooks.listeners(self.owner, order)
        return Registration(
            self.owner,
            tuple(self._handlers.routes),
            tuple(listener for listener in listeners if listener.event is not Change),
        )

    def activate(self) -> None:
        """Note that it is in charge from now on."""
        self.state = "active"
        self._in_charge = True
        self._handlers.live(self._services.dispatcher)
        if self.serving.mesh is not None:
            self._services.enclose(self.serving.mesh, self.name)
        self.follow_changes()
        self._places.announce()

    def pause(self) -> None:
        """Note that another generation is in charge, for now at least."""
        self._in_charge = False
        if self.serving.mesh is not None:
            self._services.disclose(self.serving.mesh)
        if self._feed is not None:
            self._feed.finish()

    def resume(self) -> None:
        """Note that it is in charge again, after a pause."""
        self._in_charge = True
        self._feed = None
        if self.serving.mesh is not None:
            self._services.enclose(self.serving.mesh, self.name)
        self.follow_changes()

    async def probe(self) -> None:
        """Have its `nkv_probe` find out whether it works, now that it is in charge.

        Raises `PluginSetupFailed`, also where it fails by itself meanwhile.
        """
        hook = self.hooks.one("nkv_probe")
        if hook is None:
            return
        self._step = "nkv_probe"
        error: NkvError | None = None
        limit = self._limits.probe_deadline
        asked: Any = None
        try:
            with anyio.move_on_after(limit) as self._probing:
                asked = hook(ctx=self._context)
                if hasattr(asked, "__await__"):
                    await asked
        except ANY_ERROR as raised:
            error = blame.in_setup(raised, self.candidate, self._step)
        else:
            if self._probing.cancelled_caught and self.error is None:
                error = PluginSetupFailed(f"{self.name}: nkv_probe took longer than {limit:g} s.")
        finally:
            self._probing = None
            asked = hook = None  # whoever keeps the error keeps this frame
        self.error = self.error or error
        if self.error is not None:
            self.state = "failed"
            raise self.error

    def follow_changes(self) -> None:
        """Tell its listeners of changes from now on, if the keyspace is open yet."""
        told = [one for one in self.hooks.listeners(self.owner, 0) if one.event is Change]
        hub = self._services.hub
        if told and hub is not None and self._feed is None and self.state == "active":
            self._feed = ChangeFeed(self.owner, told, hub)
            self._scope.tasks.start_soon(self._feed.run)

    def show_lines(self) -> None:
        """Have tracebacks show this generation's source again."""
        if self._modules is not None:
            self._modules.show_lines()

    # --- to the end -------------------------------------------------------------------------------

    def step_down(self, *, goodbye: bool = False) -> None:
        """Begin to drain, now that the dispatcher has let go of it.

        `goodbye`: nobody takes its place, and other nodes are to be told.
        """
        self._in_charge = False
        if self.serving.mesh is not None:
            self._services.disclose(self.serving.mesh)
        if self.state != "failed":
            self.state = "draining"
        try:
            self.owner.drain(self._idle.set)
        except Exception as error:  # noqa: BLE001  # a transport's goodbye; the deadline ends it
            log.error("%r could not say goodbye: %s", self.owner, blame.whole_story(error))
        self.serving.end(goodbye=goodbye)
        if self._feed is not None:
            self._feed.finish()

    async def retire(self) -> None:
        """Drain, cut what is left at the deadline, and leave the scope. Raises nothing but
        cancellation.
        """
        with self._patience:
            self._patience.deadline = current_time() + self.drain_deadline
            await self._idle.wait()
            if self._feed is not None:
                await self._feed.finished.wait()
            if self.serving.any:
                await self.serving.ended.wait()
        if self._patience.cancelled_caught and current_time() >= self._patience.deadline:
            log.warning("%r was drained no longer than %g s.", self.owner, self.drain_deadline)
        if cut := self.owner.cut():
            log.warning("%r: %d requests are cut.", self.owner, cut)
            with anyio.move_on_after(GRACE):
                await self._idle.wait()
        self._scope.end()
        self._finish(await self._scope.left())

    def _finish(self, left: bool) -> None:
        if not left:
            log.error("%r does not end: something of it ignores being cancelled.", self.owner)
            self.undo()

    def hurry(self) -> None:
        """End the draining now."""
        self._patience.cancel()

    @property
    def drain_deadline(self) -> float:
        """Seconds that it may take to finish what is under way."""
        if not self.serving.any:
            return self._limits.drain_deadline
        # What serves keeps the deadline by itself, and closes by force what is left.
        return self._limits.transport_drain_deadline + GRACE

    def forget(self) -> None:
        """Let go of everything of the plugin's, so that only others can still hold it."""
        self.hooks = Hooks({})
        self.settings = self._feed = self._modules = self._context = None
        self.serving.forget()
        self._handlers = HandlerCollector(self.owner, lambda _: None)

    def undo(self) -> None:
        """Take back all that it has in the node. Doing so twice does nothing."""
        if self.owner.closed:
            return
        if self._in_charge:
            self._services.dispatcher.switch(leave=self.owner)
        self._places.release(self.error)
        if self._modules is not None:
            self._services.registry.unregister(self._modules.prefix)
            self._modules.remove()
        self.owner.close()
        self.undone.set()

    def _fail(self, raised: BaseException) -> None:
        """Note what setup, tasks, transport or closing raised; the first reason is the reason."""
        error = self._blame(raised)
        if self.error is None and not self.owner.draining:
            self.error = error
            if self.state == "active":
                self.state = "failed"
                if self._probing is not None:
                    self._probing.cancel()  # whoever probes it sees to the rest
                else:
                    self._tell_failed(self)
                return
            self._scope.end()
        else:
            log.error("%r, while it ends: %s", self.owner, error)

    def _blame(self, raised: BaseException) -> NkvError:
        if self._step == "executing it" and self._modules is not None:
            error: NkvError = blame.in_source(raised, self.candidate, self._modules.prefix)
        else:
            step = self._step if self.state in ("loaded", "verified") else "a task of its own"
            if self._scope.ending:
                step = "closing"
            error = blame.in_setup(raised, self.candidate, step)
        if not blame.is_clear(raised):
            log.info("%s\n%s", error, blame.whole_story(raised))
        return error

    def _too_long(self) -> PluginSetupFailed:
        where = threads_in(self._modules.prefix) if self._modules is not None else []
        return PluginSetupFailed(
            f"{self.name}: {self._step} took longer than {self._limits.setup_deadline:g} s"
            f"{': ' + where[0] if where else ''}."
        )
