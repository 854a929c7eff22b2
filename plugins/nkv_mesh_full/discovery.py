"""Discoveries: all addresses behind a name, and nodes that announce themselves near by.

Addresses that settings give need none: see `links.knock_at`.
"""

import re
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

import anyio
from anyio import to_thread

from nkv_core.contracts.mesh import Found
from nkv_core.errors import StartError
from nkv_core.loop import threadsafe_caller

from .addresses import format_address, is_wildcard, parse_address

if TYPE_CHECKING:
    from zeroconf import ServiceInfo, Zeroconf

#: Seconds between two looks at a name.
_DNS_PAUSE: Final = 10.0
_SERVICE: Final = "_nkv-mesh._tcp.local."
#: Addresses that were found and are not dealt with yet.
_WAITING: Final = 64
#: Milliseconds for asking one node for its address.
_ASKED: Final = 3000
#: Seconds for saying goodbye to the network.
_GOODBYE: Final = 3.0


class DnsDiscovery:
    """Looks up all addresses of names, again and again: they change as nodes come and go."""

    def __init__(self, names: Sequence[str], pause: float = _DNS_PAUSE) -> None:
        """Names are `host:port`. Raises `SettingsError`."""
        self._names: Final = [parse_address(name) for name in names]
        self._pause: Final = pause

    async def run(self, own: str, found: Found) -> None:
        """As `contracts.mesh.Discovery` has it. A name that is not known now may be later."""
        if not self._names:
            raise StartError("The discovery dns needs names: mesh.full.dns.")
        while True:
            for host, port in self._names:
                try:
                    infos = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                except OSError:
                    continue
                for *_, place in infos:
                    address = format_address(str(place[0]), port)
                    if address != own:
                        found(address)
            await anyio.sleep(self._pause)


class MdnsDiscovery:
    """Announces this node by multicast DNS (RFC 6762, RFC 6763), and finds others that do.

    The library runs in a thread of its own, so that it works on any event loop.
    """

    async def run(self, own: str, found: Found) -> None:
        """As `contracts.mesh.Discovery` has it."""
        if find_spec("zeroconf") is None:
            raise StartError("The discovery mdns needs zeroconf: pip install 'nkv-core[mdns]'")
        host, port = parse_address(own)
        try:
            infos = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise StartError(f"mdns: {host} has no address to announce: {error}.") from None
        addresses = sorted({str(place[0]) for *_, place in infos})
        call = threadsafe_caller()
        send, receive = anyio.create_memory_object_stream[str](_WAITING)

        def note(address: str) -> None:
            with suppress(anyio.WouldBlock, anyio.BrokenResourceError, anyio.ClosedResourceError):
                send.send_nowait(address)  # what finds no room is announced again

        def tell(address: str) -> None:
            if address != own:
                call(partial(note, address))

        zeroconf = await to_thread.run_sync(partial(_announce, own, addresses, port, tell))
        try:
            with send, receive:
                async for address in receive:
                    found(address)
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(_GOODBYE):
                await to_thread.run_sync(zeroconf.close, abandon_on_cancel=True)


def _announce(
    own: str, addresses: Sequence[str], port: int, tell: Callable[[str], None]
) -> "Zeroconf":
    """Announce an address, and tell of those that others announce."""
    import zeroconf  # noqa: PLC0415  # an extra

    usable = [address for address in addresses if not is_wildcard(address)]
    made = zeroconf.Zeroconf(interfaces=usable or zeroconf.InterfaceChoice.Default)

    def changed(
        zeroconf: "Zeroconf",
        service_type: str,
        name: str,
        state_change: zeroconf.ServiceStateChange,
    ) -> None:
        if state_change.name != "Removed":
            info = zeroconf.get_service_info(service_type, name, timeout=_ASKED)
            for address in _addresses(info):
                tell(address)

    try:
        info = zeroconf.ServiceInfo(
            _SERVICE,
            f"{re.sub('[^A-Za-z0-9]', '-', own)}.{_SERVICE}",
            port=port,
            parsed_addresses=usable,
            server=f"nkv-{re.sub('[^A-Za-z0-9]', '-', own)}.local.",
        )
        made.register_service(info)
        zeroconf.ServiceBrowser(made, _SERVICE, handlers=[changed])
    except BaseException:
        made.close()
        raise
    return made


def _addresses(info: "ServiceInfo | None") -> list[str]:
    if info is None or not info.port:
        return []
    return [format_address(address, info.port) for address in info.parsed_addresses()]
