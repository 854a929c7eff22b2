"""Teller: reads the change stream, and tells all clients of every put in it."""

from collections.abc import Sequence

from nkv_core.contracts.context import Context
from nkv_core.contracts.watch import Changed, Gap
from nkv_core.outward import Follower

from .clients import Clients


class Teller:
    """Tells of what changes from its making on."""

    def __init__(self, ctx: Context, clients: Clients) -> None:
        self._ctx = ctx
        self._clients = clients
        self._follower = Follower(ctx, None, label="socketio")
        self.told = 0
        self.left_out = 0  #: puts of keys or values that are not text

    @property
    def gaps(self) -> int:
        """How often changes were lost."""
        return self._follower.gaps

    async def run(self) -> None:
        """Tell until the node stops."""
        await self._follower.run(self._tell_all)

    async def _tell_all(self, items: Sequence[Changed | Gap]) -> None:
        for item in items:
            self._tell(item)

    def _tell(self, item: Changed | Gap) -> None:
        if isinstance(item, Gap):
            # The dialect has no word for it.
            self._ctx.log.warning(
                "Socket.IO clients missed the changes behind %s up to %s.", item.after, item.upto
            )
            return
        change = item.change
        if change.kind != "put":
            return
        try:
            value = (change.value or b"").decode()
        except UnicodeDecodeError:
            self.left_out += 1
            return
        self.told += 1
        told = {"data": f"Key: {change.key} set with value: {value}"}
        self._clients.tell("key_update", told, lambda outbox: outbox.may_see(change.key))
