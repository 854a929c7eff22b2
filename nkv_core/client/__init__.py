"""The clients of a node: `AsyncClient` for asyncio and trio, `Client` for everything else.

with Client("http://127.0.0.1:8080") as client:
    client.put("greeting", b"hello", ttl=60)
    item = client.get("greeting")
    for change in client.watch("greeting"):
        print(change)
"""

from nkv_core.client.asynchronous import AsyncClient
from nkv_core.client.changes import Changed, Gap, SnapshotEnd, SnapshotStart, WatchItem
from nkv_core.client.locking import Held
from nkv_core.client.mirroring import AsyncMirror, Mirror
from nkv_core.client.synchronous import Client
from nkv_core.client.values import Check, Clear, Delete, Item, Operation, Put, Touch, Written
from nkv_core.client.watching import AsyncWatch, Watch

__all__ = [
    "AsyncClient",
    "Client",
    "Item",
    "Written",
    "Operation",
    "Put",
    "Delete",
    "Touch",
    "Clear",
    "Check",
    "AsyncWatch",
    "Watch",
    "WatchItem",
    "Changed",
    "Gap",
    "SnapshotStart",
    "SnapshotEnd",
    "AsyncMirror",
    "Mirror",
    "Held",
]
