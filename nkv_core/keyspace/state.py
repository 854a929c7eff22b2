"""The durable state of one plugin: a small map in the storage, under the plugin's name."""

from collections.abc import Callable
from functools import partial
from typing import Final, Protocol, TypeVar

from nkv_core.contracts.storage import Storage
from nkv_core.keys import check_key, prefix_range
from nkv_core.keyspace.draft import Draft
from nkv_core.keyspace.layout import chunks, state_key
from nkv_core.keyspace.plans import set_state
from nkv_core.keyspace.reading import Steps

T = TypeVar("T")


class Carrier(Protocol):
    """Carries reads and writes out where the storage wants them."""

    @property
    def storage(self) -> Storage:
        """The storage in charge, which may be another one later."""

    async def read(self, steps: Steps[T]) -> T:
        """Drive a read to its end."""

    async def write(self, plan: Callable[[Draft], T], size: int) -> T:
        """Have a write planned and committed."""


class PluginState:
    """See `contracts.context.State`. Keys follow the rules of the keyspace's own."""

    def __init__(self, plugin: str, carrier: Carrier, most: int) -> None:
        self._plugin: Final = plugin
        self._carrier: Final = carrier
        self._most: Final = most  # bytes of keys and values

    async def get(self, key: str) -> bytes | None:
        """The value of a key, or None."""
        row = state_key(self._plugin, check_key(key))
        return await self._carrier.read(self._get(row))

    async def put(self, key: str, value: bytes) -> None:
        """Set a value. Raises `ValueTooLarge` where the map would grow past its bound."""
        if not isinstance(value, bytes):
            raise TypeError(f"A value is bytes, not {type(value).__name__}.")
        await self._set(check_key(key), value)

    async def delete(self, key: str) -> None:
        """Delete a key, whether it exists or not."""
        await self._set(check_key(key), None)

    async def items(self) -> list[tuple[str, bytes]]:
        """All keys and values, in key order."""
        return await self._carrier.read(self._items())

    async def _set(self, key: bytes, value: bytes | None) -> None:
        plan = partial(set_state, self._plugin, key, value, self._most)
        await self._carrier.write(plan, len(key) + len(value or b""))

    def _get(self, row: bytes) -> Steps[bytes | None]:
        value = self._carrier.storage.get("state", row)
        yield
        return value

    def _items(self) -> Steps[list[tuple[str, bytes]]]:
        start = state_key(self._plugin)
        found: list[tuple[str, bytes]] = []
        for pairs in chunks(self._carrier.storage, "state", *prefix_range(start)):
            found += [(row[len(start) :].decode(), value) for row, value in pairs]
            yield
        return found
