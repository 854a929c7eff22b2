"""Store: what the mesh keeps durably, in the state of its plugin.

A cursor is kept where what it stands for is kept: by the one who takes the changes, in the same
storage. So a node that is restored from a backup goes back to where it was then, and one whose
storage forgets begins anew.
"""

from typing import Final

import msgspec

from nkv_core.contracts.context import State

from .messages import Rumour

_MEMBERS: Final = "members"
_INCARNATION: Final = "incarnation"
_CURSOR: Final = "cursor."

_encode: Final = msgspec.msgpack.encode


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """How far the changes of one node have been taken."""

    history: str
    revision: int
    mark: int | None  #: timestamp of the change of that revision, to know a copy of the stream by
    own: int  #: timestamp up to which all that the node itself wrote has come
    seen: int  #: when that was all there was, in milliseconds since 1970


_rumours: Final = msgspec.msgpack.Decoder(list[Rumour])
_cursor: Final = msgspec.msgpack.Decoder(Cursor)


class Store:
    """The durable part. What cannot be read is as if it were not there: it is found out anew."""

    def __init__(self, state: State) -> None:
        self._state: Final = state
        self.cursors: Final[dict[int, Cursor]] = {}

    async def load(self) -> tuple[list[Rumour], int]:
        """Take up the cursors; returns the nodes known, and the incarnation of the last life."""
        members: list[Rumour] = []
        incarnation = 0
        for key, value in await self._state.items():
            try:
                if key == _MEMBERS:
                    members = _rumours.decode(value)
                elif key == _INCARNATION:
                    incarnation = int(value)
                elif key.startswith(_CURSOR):
                    self.cursors[int(key.removeprefix(_CURSOR), 16)] = _cursor.decode(value)
            except (msgspec.MsgspecError, ValueError):
                continue
        return members, incarnation

    async def save_members(self, members: list[Rumour], incarnation: int) -> None:
        """Keep whom to look for, and the incarnation."""
        await self._state.put(_MEMBERS, _encode(members))
        await self._state.put(_INCARNATION, str(incarnation).encode())

    async def save_cursor(self, node_id: int, cursor: Cursor) -> None:
        """Keep how far the changes of a node have been taken."""
        self.cursors[node_id] = cursor
        await self._state.put(f"{_CURSOR}{node_id:016x}", _encode(cursor))

    async def forget(self) -> None:
        """Keep nothing of other nodes any longer."""
        self.cursors.clear()
        for key, _ in await self._state.items():
            if key != _INCARNATION:
                await self._state.delete(key)
