"""The section `transport.resp`. Durations are seconds, sizes are bytes."""

from typing import Annotated, Final

import msgspec

Seconds = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(gt=0)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]

#: Where the clients of this protocol look for the server.
USUAL_PORT: Final = 6379


class RespSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the RESP transport listens, and how much it takes from one client."""

    host: str = "127.0.0.1"  #: address to listen at
    port: Port = USUAL_PORT  #: 0 takes a free one

    max_clients: Count = 10_000  #: at once; one more is refused
    max_arguments: Count = 100_000  #: of one command
    max_bulk_bytes: Count = 8 * 1024 * 1024  #: of one argument; a client that announces more is cut
    max_query_bytes: Count = 64 * 1024 * 1024  #: of one command; of a transaction's all together
    max_output_bytes: Count = 64 * 1024 * 1024  #: that wait for a client; one with more is cut
    max_queued: Count = 10_000  #: commands of one transaction
    max_subscriptions: Count = 10_000  #: channels and patterns of one client
    max_tracked_keys: Count = 1_000_000  #: that all clients together have been told to cache

    idle_timeout: Seconds = 3600.0  #: how long a client without subscriptions may say nothing
