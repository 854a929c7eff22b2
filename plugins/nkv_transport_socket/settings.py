"""The section `transport.socket`. Durations are seconds, sizes are bytes."""

from typing import Annotated, Final

import msgspec

from nkv_core.errors import SettingsError

Seconds = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(gt=0)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Mode = Annotated[str, msgspec.Meta(pattern="^0?[0-7]{3}$")]

#: Where the clients of these dialects look for the server.
USUAL_PATH: Final = "/tmp/nkv/nkv.sock"  # noqa: S108  # the folder is checked before it is used
USUAL_HOST: Final = "127.0.0.1"
USUAL_PORT: Final = 4222


class SocketSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the socket transport listens, and how much it takes from one client."""

    path: str = USUAL_PATH  #: of the Unix socket; none where empty
    mode: Mode = "0600"  #: of the Unix socket's file, in octal
    host: str | None = None  #: address to listen at over TCP; 127.0.0.1 where only `port` is set
    port: Port | None = None  #: of TCP, 0 takes a free one; 4222 where only `host` is set

    max_connections: Count = 10_000  #: at once; one more is refused
    max_subscriptions: Count = 1000  #: of one connection
    max_request_bytes: Count = 8 * 1024 * 1024  #: of one line or frame
    max_answer_bytes: Count = 8 * 1024 * 1024  #: of one answer; a `GET` of more fails
    max_known_keys: Count = 100_000  #: of one subscription; one that covers more is ended
    remembered_keys: Count = 10_000  #: that were subscribed to once, for `UNSUB` to know

    request_timeout: Seconds = 10.0  #: from a request's first byte to its last
    idle_timeout: Seconds = 600.0  #: how long a connection without subscriptions may lie idle
    send_timeout: Seconds = 60.0  #: how long a client may take nothing of what is sent to it

    def __post_init__(self) -> None:
        """Raise `SettingsError` where there is nothing to listen at."""
        if not self.path and self.tcp is None:
            raise SettingsError("Set path, or host and port, or both: there is nowhere to listen.")

    @property
    def tcp(self) -> tuple[str, int] | None:
        """Host and port to listen at over TCP, or None."""
        if self.host is None and self.port is None:
            return None
        return self.host or USUAL_HOST, USUAL_PORT if self.port is None else self.port
