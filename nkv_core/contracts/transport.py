"""Transport: speaks a protocol on the node's sockets, and turns what it hears into requests."""

from collections.abc import Callable
from typing import Any, Protocol

from anyio import Event

from nkv_core.contracts.context import Context
from nkv_core.contracts.markers import hookspec


class Transport(Protocol):
    """A server for one protocol.

    It takes its sockets from `ctx.listen` alone, so that a replacement never drops the port, and
    hands every request to `ctx.dispatch`.
    """

    @property
    def backends(self) -> frozenset[str]:
        """The async backends that it runs on: of `asyncio` and `trio`."""

    @property
    def features(self) -> frozenset[str]:
        """What its handlers may be besides plain ones: of `websocket` and `mount`."""

    @property
    def scheme(self) -> str:
        """What the addresses of its listeners begin with: `http`, `https`, `redis`, ..."""

    async def serve(
        self, ctx: Context, *, started: Callable[[], None], stop: Event, deadline: float
    ) -> None:
        """Serve until `stop` is set, then finish what is under way within `deadline` seconds.

        `started` is called once connections are accepted. After `stop` no new connection is taken
        and open streams are ended in good order; what is left at the deadline is closed by force.
        """


class TransportHooks:
    """The hook that offers a transport."""

    @hookspec
    def nkv_transport(self, name: str, settings: Any) -> Transport | None:
        """Return the transport called `name`, or None where that is another's name.

        :param name: what the plugin's name has behind `nkv_transport_`, or its whole name.
        :param settings: the section `transport.NAME`, as the type that `nkv_settings` gives.
        """
