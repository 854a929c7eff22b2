"""Addresses of nodes: `host:port`, as settings and other nodes give them."""

import ipaddress
import re
from typing import Final

from nkv_core.errors import SettingsError

_ADDRESS: Final = re.compile(r"(?:nkv://)?(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]{1,253}):(\d{1,5})/?")

_URL: Final = re.compile(r"https?://(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]{1,253})(?::\d{1,5})?/?")


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of `host:port`, `[ipv6]:port` or `nkv://host:port`. Raises `SettingsError`."""
    found = _ADDRESS.fullmatch(text)
    if found is None or not 0 < int(found[2]) <= 65535:
        raise SettingsError(f"{text[:200]!r} is no address of a node: host:port.")
    return found[1].strip("[]"), int(found[2])


def check_join(text: str) -> None:
    """Raise `SettingsError` where a node cannot be joined there: an address, or the URL of a node's
    HTTP, which tells it.
    """
    if not is_url(text):
        parse_address(text)


def is_url(text: str) -> bool:
    """Whether it is the URL of a node's HTTP."""
    return _URL.fullmatch(text) is not None


def format_address(host: str, port: int) -> str:
    """The reverse of `parse_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can be reached there. A name other than `localhost` may be any."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_wildcard(host: str) -> bool:
    """Whether listening there is listening at all addresses."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
