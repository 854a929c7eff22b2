"""Settings of the mesh: the section `mesh.full`."""

from typing import Annotated, Literal

import msgspec

from nkv_core.contracts.settings import Seconds, Text
from nkv_core.errors import SettingsError

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Level = Literal["local", "majority", "all"]


class FullSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Section `mesh.full`."""

    host: Text = "127.0.0.1"  #: address to listen at for other nodes
    port: Port = 8081  #: 0 takes a free one
    advertise: str | None = None  #: `host:port` under which other nodes reach this one
    join: tuple[str, ...] = ()  #: addresses of other nodes
    discovery: tuple[str, ...] = ()  #: names of discoveries
    dns: tuple[str, ...] = ()  #: `host:port`, for the discovery `dns`
    secret: str | None = None  #: what all nodes of the mesh know
    secret_file: str | None = None  #: a file with it, instead
    tls_certificate: str | None = None
    tls_key: str | None = None
    tls_authority: str | None = None  #: that signs the certificates of all nodes, and no others
    ping_interval: Seconds = 0.5
    suspect_after: Seconds = 2.0  #: of silence
    down_after: Seconds = 4.0  #: of silence
    forget_after: Seconds = 24 * 3600.0  #: of a node that is down
    max_skew: Seconds = 10.0  #: between the clocks of two nodes
    compare_interval: Seconds = 60.0  #: between comparisons with some other node
    mergers: tuple[str, ...] = ()  #: `PATTERN=NAME`
    nkvd: tuple[str, ...] = ()  #: `host:port` of nkvd nodes that are members
    nkvd_port: Port = 8082  #: where these reach this node
    acknowledge: Level = "local"
    acknowledge_deadline: Seconds = 5.0

    def __post_init__(self) -> None:
        if self.secret is not None and self.secret_file is not None:
            raise SettingsError("Of secret and secret_file only one can be given.")
        if self.secret is not None and len(self.secret) < 16:
            raise SettingsError("The secret needs 16 characters at least.")
        parts = (self.tls_certificate, self.tls_key, self.tls_authority)
        if any(parts) and not all(parts):
            raise SettingsError("TLS needs tls_certificate, tls_key and tls_authority.")
        if not self.ping_interval < self.suspect_after < self.down_after:
            raise SettingsError("ping_interval, suspect_after and down_after must grow.")
