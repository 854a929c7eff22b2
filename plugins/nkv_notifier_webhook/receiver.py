"""Receiver: the other side, as one POST at a time reaches it.

A change must not be a way to reach what only this machine reaches: the receiver's name is looked up
here, once for each attempt, its addresses are judged, and the connection goes to one that was
judged. There are no redirects and no proxies, which would both lead elsewhere.
"""

import ipaddress
import logging
import socket
import ssl
from types import TracebackType
from typing import Final, Self

import anyio
import httpx2

from nkv_core.errors import SettingsError

from .message import Message
from .settings import WebhookSettings

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
#: Of the answer's body so much is read, so that the connection can be used again.
_READ: Final = 64 * 1024
_OK: Final = range(200, 300)
#: Seconds to wait for a look-up while the plugin is set up.
_LOOK: Final = 3.0

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class DeliveryFailed(Exception):
    """An attempt that did not succeed. `wait`: how many seconds the receiver asks for."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait: Final = wait


class Receiver:
    """Sends messages to the address of the settings."""

    def __init__(self, settings: WebhookSettings, secret: bytes | None) -> None:
        self._settings = settings
        self._secret = secret
        self._url: Final = httpx2.URL(settings.url)
        self._client: httpx2.AsyncClient

    @property
    def place(self) -> str:
        """Where it is, for people: without path and query, which may hold secrets."""
        return f"{self._url.scheme}://{self._url.netloc.decode()}"

    async def __aenter__(self) -> Self:
        # Certificates are read from disk, which takes longer than anything else here.
        secure = self._url.scheme == "https"
        tls = await anyio.to_thread.run_sync(ssl.create_default_context) if secure else False
        self._client = httpx2.AsyncClient(
            verify=tls, follow_redirects=False, trust_env=False, timeout=self._settings.timeout
        )
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.__aexit__(kind, error, trace)

    async def post(self, message: Message) -> None:
        """Make one attempt. Raises `DeliveryFailed` unless the answer is a 2xx, in time."""
        seconds = self._settings.timeout
        with anyio.move_on_after(seconds) as patience:
            await self._post(message)
        if patience.cancelled_caught:
            raise DeliveryFailed(f"no answer within {seconds:g} s")

    async def _post(self, message: Message) -> None:
        address = await self._address()
        headers = message.headers(self._secret)
        headers["Host"] = self._url.netloc.decode()
        try:
            async with self._client.stream(
                "POST",
                self._url.copy_with(host=address),
                content=message.body,
                headers=headers,
                extensions={"sni_hostname": self._url.raw_host.decode()},
            ) as response:
                read = 0
                async for piece in response.aiter_raw():
                    read += len(piece)
                    if read > _READ:
                        break  # leaving the block ends the connection
        except (httpx2.HTTPError, httpx2.StreamError, OSError, ValueError) as error:
            raise DeliveryFailed(f"{type(error).__name__}: {error}") from error
        if response.status_code not in _OK:
            wait = _retry_after(response.headers.get("retry-after", ""))
            raise DeliveryFailed(f"answered {response.status_code}", wait)

    async def _address(self) -> str:
        """The address to connect to. Raises `DeliveryFailed`."""
        try:
            addresses = await resolve(self._url.raw_host.decode())
        except OSError as error:
            raise DeliveryFailed(f"the name cannot be looked up: {error}") from error
        if not self._settings.allow_private:
            for address in addresses:
                if is_forbidden(address):
                    raise DeliveryFailed(f"{address} is refused: {_REFUSED}")
        return str(addresses[0])


_REFUSED: Final = "it is no public address; set notifier.webhook.allow_private to send there"


async def refuse_forbidden(url: str, seconds: float, log: logging.Logger) -> None:
    """Raise `SettingsError` where the address of the receiver is one that is refused.

    That a name cannot be looked up now is logged: it may be by the time of the first change.
    """
    host = httpx2.URL(url).raw_host.decode()
    addresses: list[IpAddress] = []
    try:
        with anyio.move_on_after(min(seconds, _LOOK)):
            addresses = await resolve(host)
    except OSError as error:
        log.warning("The name %s cannot be looked up: %s", host, error)
    for address in addresses:
        if is_forbidden(address):
            raise SettingsError(f"url: {host} is {address}: {_REFUSED}.")


async def resolve(host: str) -> list[IpAddress]:
    """The addresses of a host, the best first. Raises `OSError` where there are none."""
    try:
        return [ipaddress.ip_address(host)]
    except ValueError:
        pass
    try:
        found = await anyio.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise OSError("this is no host name") from None
    addresses = [ipaddress.ip_address(str(place[0]).partition("%")[0]) for *_, place in found]
    if not addresses:
        raise OSError("it has no address")
    return addresses


def is_forbidden(address: IpAddress) -> bool:
    """Whether an address is private, loopback, link-local, or otherwise not a public host's."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return is_forbidden(inner)
        if address.is_site_local:
            return True
    return not address.is_global or address.is_multicast


def _retry_after(text: str) -> float:
    """The seconds in a `Retry-After`; a date there counts as none."""
    return float(text) if text.isascii() and text.isdigit() and len(text) < 7 else 0.0
