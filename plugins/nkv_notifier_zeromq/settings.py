"""The section `notifier.zeromq`. Durations are seconds."""

from typing import Annotated

import msgspec

from nkv_core.errors import InvalidPattern, SettingsError
from nkv_core.keys import EVERYTHING, Pattern

Seconds = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(gt=0)]


class ZeromqSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where to publish, and what."""

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 5556
    pattern: str = EVERYTHING.text  #: of the keys whose changes are published
    pending: Count = 1000  #: messages that wait for one subscriber before it loses the next ones
    heartbeat: Seconds = 5.0  #: between two messages that say how far the stream is

    def __post_init__(self) -> None:
        """Raise `SettingsError` where the pattern cannot be used."""
        try:
            Pattern(self.pattern)
        except InvalidPattern as error:
            raise SettingsError(f"pattern: {error.detail}") from None
