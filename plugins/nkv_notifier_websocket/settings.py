"""The section `notifier.websocket`. Durations are seconds."""

from typing import Annotated

import msgspec

Seconds = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(gt=0)]


class WebSocketSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one connection may hold, and how often it is told how far it has come."""

    heartbeat: Seconds = 15.0  #: between heartbeats while there is nothing to tell
    max_subscriptions: Count = 100  #: of one connection
