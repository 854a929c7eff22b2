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
from nkv_core.contracts.keyspace import Keyspace
from nkv_core.contracts.owner import Owner
from nkv_core.contracts.watch import Hub
from nkv_core.dispatch import Dispatcher
from nkv_core.errors import StartError
from nkv_core.handlers import HandlerCollector
from nkv_core.plugin_host.broker import Broker
from nkv_core.plugin_host.registry import Registry

LOG_PREFIX: Final = "nkv.plugin."


class Listen(Protocol):
    """Listens on behalf of one generation."""

    def __call__(self, address: Address, *, guard: Guard, scheme: str) -> Awaitable[Listener]:
        """As `Context.listen`."""


class StatefulKeyspace(Keyspace, Protocol):
    """A keyspace that keeps plugins' durable state beside the data."""

    def state(self, name: str) -> State:
        """The durable map of the plugin of this name."""


class Services:
    """What all plugins of a node share."""

    def __init__(
        self, *, dispatcher: Dispatcher, broker: Broker, data_dir: Path, node: NodeView
    ) -> None:
        self.dispatcher: Final = dispatcher
        self.broker: Final = broker
        self.registry: Final = Registry()
        self.data_dir: Final = data_dir
        self.node: Final = node
        self.hub: Hub | None = None
        self._keyspace: StatefulKeyspace | None = None

    def attach(self, keyspace: StatefulKeyspace, hub: Hub) -> None:
        """From now on this is the node's keyspace."""
        self._keyspace = keyspace
        self.hub = hub

    @property
    def keyspace(self) -> StatefulKeyspace:
        """The node's keyspace. Raises `StartError` while it is not open."""
        if self._keyspace is None:
            raise StartError("The keyspace is not open yet: a storage's plugin cannot use it.")
        return self._keyspace


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
    ) -> None:
        self._services = services
        self._listen = listen
        self._predecessor = predecessor
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
        return self._services.keyspace.state(self.name)

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
