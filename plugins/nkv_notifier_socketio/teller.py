"""Teller: reads the change stream, and tells all clients of every put in it."""

from typing import Final

import anyio

from nkv_core.contracts.context import Context
from nkv_core.contracts.watch import Changed, Ended, Gap, Item
from nkv_core.errors import Overloaded, Stopping
from nkv_core.keys import EVERYTHING
from nkv_core.records import Token

from .clients import Clients

#: Seconds before the hub is asked again after it failed.
_PAUSE: Final = 1.0


class Teller:
    """Tells of what changes from its making on."""

    def __init__(self, ctx: Context, clients: Clients) -> None:
        self._ctx = ctx
        self._clients = clients
        self._since: Token = ctx.node.hub.token
        self.told = 0
        self.left_out = 0  #: puts of keys or values that are not text
        self.gaps = 0

    async def run(self) -> None:
        """Tell until the node stops."""
        while True:
            try:
                if await self._follow():
                    return
            except Stopping:
                return
            except Overloaded as error:
                self._ctx.log.warning("The hub takes no watcher: %s", error)
            await anyio.sleep(_PAUSE)

    async def _follow(self) -> bool:
        """Tell of what the hub tells; whether the node is stopping, else begin again."""
        watcher = self._ctx.node.hub.watch(
            EVERYTHING, since=self._since, resync=False, label="socketio"
        )
        try:
            async for item in watcher:
                if isinstance(item, Ended):
                    return item.code == Stopping.code
                self._tell(item)
                self._since = item.token or self._since
        finally:
            watcher.close()
        return False

    def _tell(self, item: Item) -> None:
        if isinstance(item, Gap):
            # The dialect has no word for it.
            self.gaps += 1
            self._ctx.log.warning(
                "Socket.IO clients missed the changes behind %s up to %s.", item.after, item.upto
            )
            return
        if not isinstance(item, Changed) or item.change.kind != "put":
            return
        change = item.change
        try:
            value = (change.value or b"").decode()
        except UnicodeDecodeError:
            self.left_out += 1
            return
        self.told += 1
        told = {"data": f"Key: {change.key} set with value: {value}"}
        self._clients.tell("key_update", told, lambda outbox: outbox.may_see(change.key))
