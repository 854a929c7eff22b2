"""The section `notifier.socketio`. Durations are seconds, sizes are bytes."""

from typing import Annotated

import msgspec

Seconds = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(gt=0)]


class SocketioSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How many clients there may be, and how much is kept for one that does not read."""

    max_clients: Count = 10_000  #: at once; one more is told to try again
    pending: Count = 1000  #: messages that wait for one client before it is dropped
    pending_bytes: Count = 4 * 1024 * 1024  #: the same in bytes
    max_message_bytes: Count = 64 * 1024  #: of what a client sends
    ping_interval: Seconds = 25.0  #: between two pings
    ping_timeout: Seconds = 20.0  #: for a client to answer a ping
