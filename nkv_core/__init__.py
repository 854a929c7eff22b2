"""nkv: a key-value node that tells its clients when a value changes, made of plugins.

What a plugin's author and an embedder import. The rest of the public contracts is in
`nkv_core.contracts`, the clients in `nkv_core.client`, and the suites for plugins in
`nkv_core.testing`.
"""

from typing import TYPE_CHECKING, Any

from nkv_core.contracts.handlers import Reply, Request, Stream, WebSocket
from nkv_core.contracts.keyspace import Check, Clear, Delete, Presence, Put, Touch
from nkv_core.contracts.markers import hookimpl
from nkv_core.errors import ConditionFailed, NkvError, NotFound, Rejected
from nkv_core.events import (
    Connect,
    Disconnect,
    PeerDown,
    PeerUp,
    PluginFailed,
    PluginLoaded,
    PluginUnloaded,
    RequestComplete,
    RequestEnd,
    RequestStart,
)
from nkv_core.keys import Pattern
from nkv_core.records import Change, Record, Token, Version

if TYPE_CHECKING:
    from nkv_core.config import Settings, load_settings
    from nkv_core.node import Node

__all__ = [
    # a node in a program of one's own
    "Node",
    "Settings",
    "load_settings",
    # plugins
    "hookimpl",
    "Reply",
    "Request",
    "Stream",
    "WebSocket",
    # events
    "Connect",
    "Disconnect",
    "PeerDown",
    "PeerUp",
    "PluginFailed",
    "PluginLoaded",
    "PluginUnloaded",
    "RequestComplete",
    "RequestEnd",
    "RequestStart",
    # data
    "Change",
    "Check",
    "Clear",
    "Delete",
    "Pattern",
    "Presence",
    "Put",
    "Record",
    "Token",
    "Touch",
    "Version",
    # errors
    "ConditionFailed",
    "NkvError",
    "NotFound",
    "Rejected",
]

_LATE = {
    "Node": "nkv_core.node",
    "Settings": "nkv_core.config",
    "load_settings": "nkv_core.config",
}


def __getattr__(name: str) -> Any:
    """Import the node on first use: clients and plugins have no need of it."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib  # noqa: PLC0415  # as late as what it imports

    return getattr(importlib.import_module(_LATE[name]), name)
