"""What keeps web pages from using their visitors' browsers against a node.

A page may send requests to a node that its visitor can reach, without seeing the answers; and under
a name of its own that it lets point at the node, with seeing them (DNS rebinding). `Host` gives the
second away, `Origin` and `Sec-Fetch-Site` the first.
"""

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Final

from nkv_core.errors import BadRequest, ForeignOrigin, MisdirectedHost

_SAFE: Final = frozenset(("GET", "HEAD", "OPTIONS"))
#: So many different hosts are remembered as good, and no more: clients choose them.
_REMEMBERED: Final = 256


class Hosts:
    """The names by which the node may be called."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names: Final = frozenset(_canonical(name) for name in (*names, "localhost"))
        self._good: set[tuple[str, str]] = set()

    def check(self, host: str | None, address: str) -> None:
        """Check the `Host` of a request that came in at this address of the machine.

        Raises `BadRequest` where there is none, `MisdirectedHost` where it is not the node's.
        """
        if host is None:
            raise BadRequest("The request has no Host.")
        if (host, address) in self._good:
            return
        name = _canonical(_without_port(host))
        if name not in self._names and name != _canonical(address):
            raise MisdirectedHost(
                f"{host[:100]!r} is none of this node's names: list it in transport.http.hosts."
            )
        if len(self._good) < _REMEMBERED:
            self._good.add((host, address))


def check_origin(
    method: str, path: str, headers: Mapping[str, str], changing: frozenset[str]
) -> None:
    """Check that a request that may change data comes from no foreign web page.

    That is any but a GET, HEAD or OPTIONS, and all requests to the `changing` paths. Raises
    `ForeignOrigin`.
    """
    if method in _SAFE and path not in changing:
        return
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2].lower() != headers["host"].lower():
        raise ForeignOrigin
    if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        # Same-site is another port, or another name below the same domain: another program.
        raise ForeignOrigin


def _without_port(host: str) -> str:
    if host.startswith("["):
        inside, bracket, behind = host[1:].partition("]")
        return inside if bracket and _is_port(behind) else ""
    name, colon, port = host.rpartition(":")
    return name if colon and _is_port(colon + port) else host


def _is_port(text: str) -> bool:
    return not text or (text[0] == ":" and (not text[1:] or text[1:].isdigit()))


def _canonical(name: str) -> str:
    """A name in lower case without the dot at its end; an address in its shortest form."""
    try:
        return str(ipaddress.ip_address(name.partition("%")[0]))
    except ValueError:
        return name.lower().removesuffix(".")
