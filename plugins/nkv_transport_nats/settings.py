"""The section `transport.nats`. Sizes are bytes."""

from typing import Annotated

import msgspec

from nkv_core.errors import SettingsError
from nkv_core.nats_link import NatsServer, is_subject

Count = Annotated[int, msgspec.Meta(gt=0)]


class NatsSettings(NatsServer, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which server the dialect is spoken over, and how much is taken at once."""

    group: str = "nkv"  #: nodes of one group share the requests; each is answered by one of them
    max_requests: Count = 1000  #: under way at once; one more is refused
    max_request_bytes: Count = 64 * 1024 * 1024  #: of all that are under way
    max_keys: Count = 1000  #: subscribed to at once; one more is refused

    def __post_init__(self) -> None:
        """Raise `SettingsError` where the group's name cannot be one."""
        super().__post_init__()
        if not is_subject(self.group):
            raise SettingsError(f"group: {self.group!r} cannot be the name of a group.")
