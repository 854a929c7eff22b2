"""The section `transport.http`. Durations are seconds, sizes are bytes."""

from typing import Annotated, Literal

import msgspec

from nkv_core.errors import SettingsError

Seconds = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(gt=0)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class HttpSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the HTTP transport listens, whom it answers, and how much it takes from one client."""

    host: str = "127.0.0.1"  #: address to listen at
    port: Port = 8080  #: 0 takes a free one
    server: Literal["auto", "fast", "hypercorn"] = "auto"  #: what serves plain HTTP/1.1
    hosts: tuple[str, ...] = ()  #: names in `Host` that are answered besides those it listens at
    tls_certificate: str | None = None  #: PEM file: the certificate and those that it rests on
    tls_key: str | None = None  #: PEM file: the certificate's key

    max_connections: Count = 10_000  #: at once; one more is told to try again
    max_streams: Count = 100  #: requests at once on one HTTP/2 connection
    max_header_bytes: Count = 16 * 1024  #: request line and header fields together
    max_message_bytes: Count = 2 * 1024 * 1024  #: of one WebSocket message

    handshake_timeout: Seconds = 10.0  #: for the TLS handshake
    header_timeout: Seconds = 10.0  #: from a request's first byte to the end of its header
    body_timeout: Seconds = 60.0  #: for the whole body of a request
    keep_alive_timeout: Seconds = 75.0  #: how long a connection may lie idle
    send_timeout: Seconds = 60.0  #: how long a client may take nothing of what is sent to it
    ping_interval: Seconds = 30.0  #: between pings on a WebSocket

    nkvd_max_key_length: Count = 64  #: UTF-16 units; the nkvd paths take keys that are shorter
    nkvd_max_value_length: Count = 256  #: UTF-16 units; they take values that are shorter

    def __post_init__(self) -> None:
        """Raise `SettingsError` where the TLS files are not both there."""
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise SettingsError("tls_certificate and tls_key belong together: set both or neither.")
        if self.server == "fast" and self.tls_certificate is not None:
            raise SettingsError("server = fast is for plain HTTP/1.1: with TLS use auto.")
