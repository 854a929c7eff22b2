"""NATS link: how the plugins that speak to a NATS server reach it, and stay connected to it.

The client library is the plugin's to import; here its client is a `NatsClient`. It is used for one
connection, and thrown away with it: what it would keep for the next connection has no bound that is
of use here, and what it says was flushed need not have been. Whoever sends keeps what it sends
until `confirm` returns, and sends it again over the next connection.
"""

import itertools
import logging
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final, Protocol
from urllib.parse import urlsplit

import anyio
import msgspec
from anyio import CancelScope, current_time

from nkv_core.errors import SettingsError
from nkv_core.outward import backoff

Seconds = Annotated[float, msgspec.Meta(gt=0)]

_PORT: Final = 4222
#: Seconds for a connection to close in good order.
_CLOSING: Final = 1.0
_FLUSHING: Final = 10.0  #: seconds for a flush, where the library itself asks for one
_SILENT: Final = 10.0  #: seconds between two pings of a connection; two unanswered end it
#: What a client can subscribe to literally: levels without spaces and wildcards, none empty.
_SUBJECT: Final = re.compile(r"[^\s.*>]+(\.[^\s.*>]+)*")
_HEAD: Final = len(b"NATS/1.0\r\n\r\n")
_FIELD: Final = len(b": \r\n")
#: What the library says where it was not allowed to send or subscribe.
_DENIED: Final = "permissions violation"


class LinkLost(ConnectionError):
    """There is no connection, or it is no longer to be used."""


class TooLarge(Exception):
    """The message is larger than the server takes."""


def is_subject(text: str) -> bool:
    """Whether this is a subject that can be published to and subscribed to as it stands."""
    return _SUBJECT.fullmatch(text) is not None


class NatsServer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the server is and how to prove who we are: the base of these plugins' settings."""

    servers: tuple[str, ...] = (f"nats://127.0.0.1:{_PORT}",)  #: tried in turn; nats or tls
    user: str | None = None
    password: str | None = None
    token: str | None = None
    credentials_file: str | None = None  #: with a JWT and its seed
    tls_ca: str | None = None  #: PEM file with the authority to trust; the system's where none
    tls_certificate: str | None = None  #: PEM file to prove who we are with
    tls_key: str | None = None  #: PEM file with its key
    timeout: Seconds = 5.0  #: for connecting, and for the server to confirm
    backoff: Seconds = 0.5  #: before the second attempt; doubled before each further one
    max_backoff: Seconds = 30.0  #: the longest wait between two attempts

    def __post_init__(self) -> None:
        """Raise `SettingsError` where a server is not one, or credentials are incomplete."""
        if not self.servers:
            raise SettingsError("servers: there is none.")
        for server in self.servers:
            _check_server(server)
        ways = (self.user, self.token, self.credentials_file)
        if sum(way is not None for way in ways) > 1:
            raise SettingsError("Set one of user, token and credentials_file.")
        if (self.user is None) != (self.password is None):
            raise SettingsError("user and password go together.")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise SettingsError("tls_certificate and tls_key go together.")

    def __repr__(self) -> str:
        """Only where it goes: the rest may be secret."""
        return f"{type(self).__name__}(servers={self.servers!r}, ...)"

    def options(self, name: str) -> dict[str, Any]:
        """The keyword arguments of the client's `connect`. Reads files: raises `OSError`."""
        options: dict[str, Any] = {
            "name": name,
            "allow_reconnect": False,
            # Else an address where nobody listens is tried for ever.
            "max_reconnect_attempts": 1,
            "reconnect_time_wait": 0,
            "connect_timeout": self.timeout,
            "ping_interval": _SILENT,
            "user": self.user,
            "password": self.password,
            "token": self.token,
            "user_credentials": self.credentials_file,
        }
        if self.tls_ca or any(server.startswith("tls:") for server in self.servers):
            context = ssl.create_default_context(cafile=self.tls_ca)
            if self.tls_certificate is not None:
                context.load_cert_chain(self.tls_certificate, self.tls_key)
            options["tls"] = context
        return options


def _check_server(server: str) -> None:
    try:
        parts = urlsplit(server)
        usable = parts.scheme in ("nats", "tls") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise SettingsError("servers: one is no nats or tls address.")
    if parts.username is not None or parts.password is not None:
        raise SettingsError("servers: they must hold no password; set user and password instead.")


class NatsMessage(Protocol):
    """What a subscription is told."""

    subject: str
    reply: str
    data: bytes

    @property
    def headers(self) -> Mapping[str, str] | None:
        """The header fields, or None."""


class NatsClient(Protocol):
    """As much of `nats.aio.client.Client` as is used here."""

    async def connect(self, servers: Any, *, error_cb: Any, closed_cb: Any, **options: Any) -> None:
        """Connect."""

    async def close(self) -> None:
        """End the connection."""

    async def publish(
        self, subject: str, payload: bytes, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Have a message sent."""

    async def request(
        self,
        subject: str,
        payload: bytes,
        timeout: float,  # noqa: ASYNC109  # the library's
        *,
        headers: dict[str, str] | None,
    ) -> Any:
        """Send a message and return the answer."""

    async def subscribe(self, subject: str, **options: Any) -> Any:
        """Have messages told of."""

    async def flush(self, timeout: int) -> None:  # noqa: ASYNC109  # the library's
        """Have the server answer a ping."""

    @property
    def max_payload(self) -> int:
        """The largest message that the server takes, header fields included."""

    @property
    def pending_data_size(self) -> int:
        """Bytes not yet written."""

    @property
    def is_connected(self) -> bool:
        """Whether it is connected."""


class NatsSession:
    """One connection, from its making to its loss. What fails here raises `LinkLost`."""

    def __init__(self, client: NatsClient, server: str, timeout: float) -> None:
        parts = urlsplit(server)
        self.client: Final = client
        self.host: Final = str(parts.hostname)
        self.port: Final = parts.port or _PORT
        self.timeout: Final = timeout
        self.lost: Final = anyio.Event()
        self.reason = "the connection was closed"
        self.denied: str | None = None  #: what the server did not allow last

    async def publish(
        self,
        subject: str,
        payload: bytes,
        *,
        reply: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        """Have a message sent. Raises `TooLarge`."""
        self.check_size(payload, headers)
        await self._call(self.client.publish(subject, payload, reply, headers))

    def check_size(self, payload: bytes, headers: dict[str, str] | None) -> None:
        """Raise `TooLarge` where the server would end the connection for it.

        The client looks at the payload alone.
        """
        size = len(payload)
        if headers:
            fields = (len(k) + len(v.encode()) + _FIELD for k, v in headers.items())
            size += _HEAD + sum(fields)
        if size > self.client.max_payload:
            raise TooLarge(f"{size} bytes are more than {self.client.max_payload}")

    async def flush(self) -> None:
        """Return once the server has read all that was published here before."""
        await self._call(self.client.flush(self.timeout))  # type: ignore[arg-type]  # any number

    async def confirm(self) -> None:
        """As `flush`, and nothing of it was refused. Raises `LinkLost` where that is not so."""
        await self.flush()
        if self.denied is not None:
            raise LinkLost(self.denied)

    async def subscribe(self, subject: str, **options: Any) -> Any:
        """Subscribe, with the client's options. Returns the client's subscription."""
        return await self._call(self.client.subscribe(subject, **options))

    async def drain(self, subscription: Any) -> None:
        """Have no more messages come to a subscription, and wait until its last were heard."""
        await self._call(subscription.drain())

    async def _call(self, call: Awaitable[Any]) -> Any:
        if self.lost.is_set():
            if hasattr(call, "close"):
                call.close()
            raise LinkLost(self.reason)
        try:
            result = await call
        except Exception as error:  # whatever the library raises says the same: start anew
            raise LinkLost(_told(error)) from error
        if self.lost.is_set():
            raise LinkLost(self.reason)
        return result


def _flush_in_order(client: Any) -> None:
    """Have the client's `flush` wait for what it was given before.

    The library's own writes its ping at once, before what the client has not written yet. So the
    draining of a subscription, which flushes too, would end before the server knew of it, and what
    the server sent meanwhile would be lost.
    """
    ping = client.flush

    async def flush(timeout: float = _FLUSHING) -> None:  # noqa: ASYNC109  # the library's
        while client.pending_data_size and client.is_connected:
            await ping(timeout)
        await ping(timeout)

    client.flush = flush


@asynccontextmanager
async def nats_session(
    client: NatsClient, server: str, settings: NatsServer, name: str
) -> AsyncIterator[NatsSession]:
    """Connect a fresh client to one server. Raises `LinkLost` where that does not succeed."""
    _flush_in_order(client)
    session = NatsSession(client, server, settings.timeout)

    async def failed(error: Exception) -> None:
        text = _told(error)
        session.reason = text
        if _DENIED in text.lower():
            session.denied = text

    async def closed() -> None:
        session.lost.set()

    try:
        with anyio.move_on_after(settings.timeout) as patience:
            try:
                options = await anyio.to_thread.run_sync(settings.options, name)
                await client.connect([server], error_cb=failed, closed_cb=closed, **options)
            except Exception as error:  # noqa: BLE001  # of the library, of TLS, of the files that are read
                told = _told(error)
                hidden = "no servers" in told.lower()
                raise LinkLost(session.reason if hidden else told) from None
        if patience.cancelled_caught or not client.is_connected:
            raise LinkLost(f"no answer within {settings.timeout:g} s")
        yield session
    finally:
        session.lost.set()
        with CancelScope(shield=True), anyio.move_on_after(_CLOSING):
            await client.close()
        _abort(client)


async def keep_linked(
    settings: NatsServer,
    name: str,
    make_client: Callable[[], Any],  # the library's; its types are narrower than our use of them
    use: Callable[[NatsSession], Awaitable[None]],
    *,
    log: logging.Logger,
    failed: Callable[[str], None],
) -> None:
    """Connect, have the connection used, and connect again, until `use` returns.

    `failed` is told why there is no connection.
    """
    attempt = 0
    for server in itertools.cycle(settings.servers):
        began = current_time()
        try:
            async with nats_session(make_client(), server, settings, name) as session:
                log.info("connected to %s", server)
                await use(session)
                return
        except LinkLost as error:
            lasted = current_time() - began
            attempt = 1 if lasted > settings.max_backoff else attempt + 1
            failed(str(error))
            log.log(
                logging.WARNING if attempt == 1 else logging.DEBUG,
                "no connection to %s: %s",
                server,
                error,
            )
        await anyio.sleep(backoff(attempt, settings.backoff, settings.max_backoff))


def _told(error: BaseException) -> str:
    return (str(error) or type(error).__name__)[:300]


def _abort(client: Any) -> None:
    """Close by force what a server that does not read keeps from closing."""
    writer = getattr(getattr(client, "_transport", None), "_bare_io_writer", None)
    if writer is not None:
        writer.transport.abort()
