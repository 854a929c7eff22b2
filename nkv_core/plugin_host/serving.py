"""Serving: runs what a plugin offers that serves for as long as the plugin does.

That is a transport or a mesh: set up, put in charge, told to stop, ended. One that ends without
being told to has failed.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from anyio import Event

from nkv_core.contracts.context import Context
from nkv_core.contracts.mesh import Mesh
from nkv_core.contracts.transport import Transport
from nkv_core.errors import PluginInvalid, PluginSetupFailed
from nkv_core.plugin_host.context import Services
from nkv_core.plugin_host.offers import checked
from nkv_core.plugin_host.registry import Hooks
from nkv_core.plugin_host.scope import ANY_ERROR

_PREFIXES: Final = {"transport": "nkv_transport_", "mesh": "nkv_mesh_"}


class Serving:
    """What one generation has serve: a transport, a mesh, or nothing."""

    def __init__(
        self, plugin: str, *, deadline: float, failed: Callable[[BaseException], None]
    ) -> None:
        """`deadline` is what it gets to end, in seconds; `failed` is told why it ended by itself.

        The listener of a transport's handlers, like the name by which a mesh or a transport is
        asked for, is what the plugin's name has behind its kind.
        """
        self.listener: Final = plugin.removeprefix(_PREFIXES["transport"])
        self.transport: Transport | None = None
        self.mesh: Mesh | None = None
        self.stop: Final = Event()
        self.started: Final = Event()  #: it can take over, or never will
        self.ended: Final = Event()
        self._plugin = plugin
        self._deadline = deadline
        self._failed = failed
        self._goodbye = False
        self._run: Callable[[], Awaitable[None]] | None = None

    @property
    def any(self) -> bool:
        """Whether there is anything that serves."""
        return self._run is not None

    @property
    def kind(self) -> str:
        """`mesh` or `transport`."""
        return "transport" if self.mesh is None else "mesh"

    def take(self, hooks: Hooks, settings: Any, ctx: Context, services: Services) -> None:
        """Ask the plugin for what it offers. Raises `PluginError` where that cannot serve here."""
        transport, mesh = hooks.one("nkv_transport"), hooks.one("nkv_mesh")
        if transport is not None and mesh is not None:
            raise PluginInvalid(
                f"{self._plugin} is a transport and a mesh; make two plugins of it."
            )
        common: dict[str, Any] = {
            "started": self.started.set,
            "stop": self.stop,
            "deadline": self._deadline,
        }
        if transport is not None:
            offered = transport(name=self.listener, settings=settings)
            self.transport = checked(self._plugin, "transport", self.listener, offered)
            self._run = partial(self.transport.serve, ctx, **common)
        elif mesh is not None:
            name = self._plugin.removeprefix(_PREFIXES["mesh"])
            services.refuse_second_mesh(self._plugin)
            self.mesh = checked(self._plugin, "mesh", name, mesh(name=name, settings=settings))
            within = services.within
            self._run = partial(
                self.mesh.serve, ctx, within, goodbye=lambda: self._goodbye, **common
            )

    async def run(self) -> None:
        """Serve. Raises nothing but cancellation."""
        assert self._run is not None  # noqa: S101  # it was taken
        try:
            await self._run()
            if not self.stop.is_set():
                self._failed(PluginSetupFailed(f"{self._plugin}: its {self.kind} ended by itself."))
        except ANY_ERROR as error:
            self._failed(error)
        finally:
            self.started.set()
            self.ended.set()

    def end(self, *, goodbye: bool = False) -> None:
        """Have it end. `goodbye`: others are to be told that the node goes with it."""
        self._goodbye = goodbye
        self.stop.set()

    def forget(self) -> None:
        """Let go of everything of the plugin's."""
        self.transport = self.mesh = self._run = None
