"""The section `notifier.sse`. Durations are seconds."""

from typing import Annotated

import msgspec

Seconds = Annotated[float, msgspec.Meta(gt=0)]


class SseSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How streams are kept alive, and how soon clients come back to them."""

    heartbeat: Seconds = 15.0  #: between signs of life on a stream that has nothing to tell
    retry: Seconds = 1.0  #: a client is asked to wait half to one and a half times as long
