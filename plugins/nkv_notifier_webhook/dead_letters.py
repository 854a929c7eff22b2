"""Dead letters: what was given up, kept in the plugin's state for people to look at."""

import json
from typing import Any, Final

import msgspec

from nkv_core.contracts.context import State

from .message import Message

_PREFIX: Final = "dead."
#: A longer body is left out: two hundred of these have room in the state of a plugin.
_MAX_BODY: Final = 3 * 1024
_MAX_REASON: Final = 200


class DeadLetter(msgspec.Struct, frozen=True):
    """One message that was given up."""

    id: str
    event: str
    token: str
    key: str
    attempts: int
    given_up: int  #: milliseconds since 1970
    reason: str  #: why the last attempt failed
    body: str | None  #: JSON, or None where it was too long to be kept

    def to_json(self) -> dict[str, Any]:
        """It as JSON, with the body as the object that it is."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        fields["body"] = None if self.body is None else json.loads(self.body)
        return fields


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(DeadLetter).decode


class DeadLetters:
    """The latest of them, at most `most`; `dropped` counts those that had to make room."""

    def __init__(self, state: State, most: int) -> None:
        self._state = state
        self._most = most
        self._letters: dict[str, DeadLetter] = {}
        self.dropped = 0

    @property
    def letters(self) -> list[DeadLetter]:
        """All that are kept, the oldest first."""
        return list(self._letters.values())

    async def load(self) -> None:
        """Take over what earlier generations kept; what cannot be read is removed."""
        found: list[tuple[str, DeadLetter]] = []
        for key, stored in await self._state.items():
            if key.startswith(_PREFIX):
                try:
                    found.append((key, _decode(stored)))
                except msgspec.MsgspecError:
                    await self._state.delete(key)
                    self.dropped += 1
        found.sort(key=lambda pair: pair[1].given_up)
        self._letters = dict(found)
        await self._make_room(self._most)

    async def add(self, message: Message, attempts: int, reason: str, now: int) -> None:
        """Keep a message. One that is kept already is replaced."""
        letter = DeadLetter(
            id=message.id,
            event=message.event,
            token=message.token,
            key=message.key,
            attempts=attempts,
            given_up=now,
            reason=reason[:_MAX_REASON],
            body=message.body.decode() if len(message.body) <= _MAX_BODY else None,
        )
        key = _PREFIX + message.id
        self._letters.pop(key, None)
        await self._make_room(self._most - 1)
        self._letters[key] = letter
        await self._state.put(key, _encode(letter))

    async def clear(self) -> int:
        """Remove all; returns how many there were."""
        count = len(self._letters)
        keys = list(self._letters)
        self._letters.clear()
        for key in keys:
            await self._state.delete(key)
        return count

    async def _make_room(self, most: int) -> None:
        while len(self._letters) > most:
            oldest = next(iter(self._letters))
            del self._letters[oldest]
            self.dropped += 1
            await self._state.delete(oldest)
