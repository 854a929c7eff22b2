"""How a node is reached: what both clients hand to httpx2."""

import ssl
from typing import Any, Final

import httpx2

from nkv_core.errors import SettingsError

DEFAULT_URL: Final = "http://127.0.0.1:8080"
DEFAULT_TIMEOUT: Final = 10.0
DEFAULT_MAX_REPLY: Final = 64 * 1024 * 1024

#: An SSL context for HTTPS, True for the usual authorities, False to trust anybody.
Verify = ssl.SSLContext | bool

#: Shorter than the five seconds after which servers close an idle connection, so that a request
#: does not meet a connection that is being closed.
_IDLE: Final = 3.0
_CONNECTIONS: Final = 100
#: For connections that stay open.
NO_LIMITS: Final = httpx2.Limits(max_connections=None, max_keepalive_connections=0)


class Endpoint:
    """A node's address and the token for it. Its text form never shows the token."""

    __slots__ = ("_token", "url")

    def __init__(self, url: str, token: str | None = None) -> None:
        """Raises `SettingsError` where either is none."""
        try:
            parsed = httpx2.URL(url)
        except httpx2.InvalidURL as error:
            raise SettingsError(f"{url!r} is not a URL: {error}.") from None
        if parsed.userinfo or parsed.query or parsed.fragment:
            raise SettingsError("The URL of a node is http://HOST:PORT, with nothing else in it.")
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise SettingsError(f"{url!r} is not the URL of a node: http://HOST:PORT.")
        if token is not None and not _fits_header(token):
            raise SettingsError("The token has characters that no token of nkv has.")
        self.url: Final = url.rstrip("/")
        self._token = token

    def options(self, verify: Verify) -> dict[str, Any]:
        """What the clients of httpx2 are made with.

        Neither proxies nor a `.netrc` are taken from the environment: a token goes to the node
        that was named and to nobody else. For the same reason redirects are not followed.
        """
        headers = {"accept-encoding": "identity", "user-agent": "nkv"}
        if self._token is not None:
            headers["authorization"] = f"Bearer {self._token}"
        return {
            "headers": headers,
            "trust_env": False,
            "follow_redirects": False,
            # Reading the authorities takes longer than a request, and plain HTTP has no use for it.
            "verify": verify if self.url.startswith("https") else False,
            "limits": httpx2.Limits(
                max_connections=_CONNECTIONS,
                max_keepalive_connections=_CONNECTIONS,
                keepalive_expiry=_IDLE,
            ),
        }


def _fits_header(token: str) -> bool:
    return token.isascii() and token.isprintable() and " " not in token and token != ""
