"""Context: what a generation of a plugin is handed, and what the host shares out through it."""

import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, AsyncExitStack
from pathlib import Path
from typing import Any, Final, Protocol

from anyio import Event
from anyio.abc import TaskGroup

from nkv_core.contracts.context import Address, Guard, Listener, NodeView, State
from nkv_core.contracts.handlers import Dispatch, DispatchNow
from nkv_core.contracts.keyspace import Keyspace, Replicable
from nkv_core.contracts.mesh import Discovery, Merger, Mesh
from nkv_core.contracts.owner import Owner
from nkv_core.contracts.watch import Hub
from nkv_core.dispatch import Dispatcher
from nkv_core.errors import PluginExists, StartError
from nkv_core.events import PeerDown, PeerUp
from nkv_core.handlers import HandlerCollector
from nkv_core.plugin_host.broker import Broker
from nkv_core.plugin_host.registry import Registry

LOG_PREFIX: Final = "nkv.plugin."


class Listen(Protocol):
    """Listens on behalf of one generation."""

    def __call__(self, address: Address, *, guard: Guard, scheme: str) -> Awaitable[Listener]:
        """As `Context.listen`."""


class StatefulKeyspace(Replicable, Protocol):
    """A keyspace that keeps plugins' durable state beside the data."""

    def state(self, name: str) -> State:
        """The durable map of the plugin of this name."""


class Services:
    """What all plugins of a node share."""

    def __init__(
        self,
        *,
        dispatcher: Dispatcher,
        broker: Broker,
        data_dir: Path,
        node: NodeView,
        offered: Callable[[str, str, str], Any],
    ) -> None:
        """`offered` gives what plugins offer: hook, name, and the plugin that is not asked."""
        self.dispatcher: Final = dispatcher
        self.broker: Final = broker
        self.registry: Final = Registry()
        self.data_dir: Final = data_dir
        self.node: Final = node
        self.offered: Final = offered
        self.hub: Hub | None = None
        self.mesh: Mesh | None = None  #: what stands around the node's own keyspace
        self._enclosed_by = ""
        self._within: StatefulKeyspace | None = None

    def attach(self, keyspace: StatefulKeyspace, hub: Hub) -> None:
        """From now on this is the node's own keyspace."""
        self._within = keyspace
        self.hub = hub
        self.dispatcher.keyspace = self.keyspace

    @property
    def within(self) -> StatefulKeyspace:
        """The node's own keyspace. Raises `StartError` while it is not open."""
        if self._within is None:
            raise StartError("The keyspace is not open yet: a storage's plugin cannot use it.")
        return self._within

    @property
    def keyspace(self) -> Keyspace:
        """The keyspace that is to be used: the mesh, where there is one. Raises `StartError`."""
        return self.within if self.mesh is None else self.mesh

    def enclose(self, mesh: Mesh, plugin: str) -> None:
        """Put a mesh around the node's own keyspace, in the place of the one before, if any.

        A request that has begun keeps the keyspace that it began with.
        """
        self.mesh, self._enclosed_by = mesh, plugin
        self.dispatcher.keyspace = mesh

    def disclose(self, mesh: Mesh) -> None:
        """Take a mesh away again, if its place has not been taken."""
        if self.mesh is mesh:
            self.mesh = None
            self.dispatcher.keyspace = self.within

    def refuse_second_mesh(self, plugin: str) -> None:
        """Raise `PluginExists` where another plugin's mesh is in charge."""
        if self.mesh is not None and self._enclosed_by != plugin:
            raise PluginExists(
                f"{self._enclosed_by} is this node's mesh, and a node has but one:"
                f" nkv plugins unload {self._enclosed_by}"
            )


class PluginContext:
    """The scope of one generation, as `contracts.context.Context` describes it."""

    def __init__(
        self,
        *,
        owner: Owner,
        settings: Any,
        services: Services,
        tasks: TaskGroup,
        stack: AsyncExitStack,
        handlers: HandlerCollector,
        listen: Listen,
        reach: Callable[[str, int], AbstractContextManager[None]],
        predecessor: Event | None,
        offered: Callable[[str, str], Any],
    ) -> None:
        self._services = services
        self._listen = listen
        self._predecessor = predecessor
        self._offered = offered
        self.reach: Final = reach
        self.owner: Final = owner
        self.name: Final = owner.name
        self.settings: Final = settings
        self.log: Final = logging.getLogger(LOG_PREFIX + owner.name)
        self.tasks: Final = tasks
        self.stack: Final = stack
        self.handlers: Final = handlers
        self.node: Final = services.node
        self.dispatch: Final[Dispatch] = services.dispatcher.dispatch
        self.dispatch_now: Final[DispatchNow] = services.dispatcher.dispatch_now

    @property
    def keyspace(self) -> Keyspace:
        """The node's keyspace. Raises `StartError` while it is not open."""
        return self._services.keyspace

    @property
    def state(self) -> State:
        """The plugin's durable state. Raises `StartError` while the keyspace is not open."""
        return self._services.within.state(self.name)

    async def listen(
        self, address: Address, *, guard: Guard = "tokens", scheme: str = ""
    ) -> Listener:
        """Listen at an address, as in the contract."""
        return await self._listen(address, guard=guard, scheme=scheme)

    async def predecessor_ended(self) -> bool:
        """Wait for the generation that this one replaces, as in the contract."""
        if self._predecessor is None:
            return False
        await self._predecessor.wait()
        return True

    def merger(self, name: str) -> Merger:
        """The merger of this name, as in the contract."""
        return self._offered("nkv_merger", name)  # type: ignore[no-any-return]

    def discovery(self, name: str) -> Discovery:
        """The discovery of this name, as in the contract."""
        return self._offered("nkv_discovery", name)  # type: ignore[no-any-return]

    def emit(self, event: PeerUp | PeerDown) -> None:
        """Tell of another node, as in the contract."""
        self._services.dispatcher.emit(event)
