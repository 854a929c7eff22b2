"""The section `notifier.webhook`. Durations are seconds."""

from typing import Annotated, Final
from urllib.parse import urlsplit

import anyio
import msgspec

from nkv_core.errors import InvalidPattern, SettingsError
from nkv_core.keys import EVERYTHING, Pattern

Seconds = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(gt=0)]

#: The state of a plugin has room for so many records of the size that `dead_letters` makes them.
MAX_DEAD_LETTERS: Final = 200
_MAX_SECRET: Final = 4096


class WebhookSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where changes are sent, which, and for how long."""

    url: str = ""  #: http or https; it has to be given
    pattern: str = EVERYTHING.text  #: of the keys whose changes are sent
    secret_file: str | None = None  #: what the signature is made with; none is no signature
    timeout: Seconds = 10.0  #: of one attempt, from the look-up of the name to the answer
    attempts: Count = 10  #: for one change, before it becomes a dead letter
    backoff: Seconds = 1.0  #: before the second attempt; doubled before each further one
    max_backoff: Seconds = 60.0  #: the longest wait between two attempts
    dead_letters: Count = 100  #: kept, the latest of them; at most 200
    allow_private: bool = False  #: send to private, loopback and link-local addresses too

    def __post_init__(self) -> None:
        """Raise `SettingsError` where the address or the pattern cannot be used."""
        if not self.url:
            raise SettingsError("url: the webhook needs the address to send to.")
        try:
            parts = urlsplit(self.url)
            usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise SettingsError("url: this is no http or https address.")
        if parts.username is not None or parts.password is not None:
            raise SettingsError("url: it must hold no password; give a secret_file instead.")
        try:
            Pattern(self.pattern)
        except InvalidPattern as error:
            raise SettingsError(f"pattern: {error.detail}") from None
        if self.dead_letters > MAX_DEAD_LETTERS:
            raise SettingsError(f"dead_letters: at most {MAX_DEAD_LETTERS} can be kept.")


async def read_secret(path: str | None) -> bytes | None:
    """The secret in a file, without the line's end. Raises `SettingsError`; never shows it."""
    if path is None:
        return None
    try:
        secret = (await anyio.Path(path).read_bytes()).rstrip(b"\r\n")
    except OSError as error:
        raise SettingsError(f"secret_file: {path} cannot be read: {error.strerror}.") from None
    if not secret or len(secret) > _MAX_SECRET:
        raise SettingsError(f"secret_file: {path} is empty, or has more than {_MAX_SECRET} bytes.")
    return secret
