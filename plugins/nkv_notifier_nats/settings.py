"""The section `notifier.nats`. Durations are seconds."""

from typing import Literal

from nkv_core.errors import InvalidPattern, SettingsError
from nkv_core.keys import EVERYTHING, Pattern
from nkv_core.nats_link import NatsServer, is_subject


class NatsSettings(NatsServer, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where changes are published, which, and when they count as delivered."""

    prefix: str = "nkv"  #: of the subjects
    pattern: str = EVERYTHING.text  #: of the keys whose changes are published
    #: `server`: once the server has it. `stream`: once a stream of JetStream has stored it.
    acknowledge: Literal["server", "stream"] = "server"

    def __post_init__(self) -> None:
        """Raise `SettingsError` where prefix or pattern cannot be used."""
        super().__post_init__()
        if not is_subject(self.prefix) or self.prefix.startswith(("$", "_INBOX")):
            raise SettingsError(f"prefix: {self.prefix!r} cannot begin a subject.")
        try:
            Pattern(self.pattern)
        except InvalidPattern as error:
            raise SettingsError(f"pattern: {error.detail}") from None
