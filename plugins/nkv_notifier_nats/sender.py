"""Sender: publishes what it is given until the server, or a stream, has it.

While there is no connection nothing is kept for it: the hub's cursor stays where it is.
"""

import logging
from collections.abc import Sequence
from typing import Any, Final

import anyio
import msgspec
import nats.errors
from anyio.lowlevel import checkpoint
from nats.aio.client import Client

from nkv_core.contracts.context import Context
from nkv_core.contracts.watch import Changed
from nkv_core.nats_link import LinkLost, NatsSession, TooLarge, keep_linked
from nkv_core.outward import Delivery, Follower, backoff

from .message import Message, message_of, without_value
from .settings import NatsSettings

#: How a stream says that a message is larger than it takes: `err_code` of its answer.
_TOO_LARGE: Final = 10054


class NotStored(Exception):
    """No stream has stored it."""


class _Refusal(msgspec.Struct):
    err_code: int = 0
    description: str = ""


class _Stored(msgspec.Struct):
    stream: str = ""
    error: _Refusal | None = None


_decode: Final = msgspec.json.Decoder(_Stored).decode


class Sender:
    """Delivers for one generation of the plugin."""

    def __init__(self, ctx: Context, follower: Follower) -> None:
        self._ctx = ctx
        self._settings: NatsSettings = ctx.settings
        self._follower = follower
        self._session: NatsSession | None = None
        self._linked = anyio.Event()
        self.published = 0
        self.left_out = 0  #: changes of keys that a subject cannot carry
        self.values_left_out = 0  #: changes told without their value, which was too large
        self.too_large = 0  #: changes that were too large even so
        self.failures = 0
        self.failing: str | None = None  #: why nothing is delivered now, if it is not

    def status(self) -> dict[str, Any]:
        """How it goes, for JSON."""
        saved = self._follower.saved
        return {
            "connected": self._session is not None,
            "pattern": self._settings.pattern,
            "token": None if saved is None else str(saved),
            "behind": self._follower.behind,
            "published": self.published,
            "gaps": self._follower.gaps,
            "left_out_no_subject": self.left_out,
            "left_out_too_large": self.too_large,
            "values_left_out": self.values_left_out,
            "failures": self.failures,
            "failing": self.failing,
        }

    async def stay_connected(self) -> None:
        """Keep a connection, until cancelled."""
        name = f"nkv {self._ctx.node.name} {self._ctx.name}"
        await keep_linked(
            self._settings, name, Client, self._use, log=self._ctx.log, failed=self._note_failure
        )

    async def deliver(self, items: Sequence[Delivery]) -> None:
        """Publish all of these, in order, until they are acknowledged."""
        attempt = 0
        while True:
            session = await self._connected()
            attempt += 1
            try:
                await self._send_all(session, items)
            except LinkLost as error:
                self._note_failure(str(error))
                session.reason = str(error)
                session.lost.set()
            except NotStored as error:
                self._note_failure(str(error))
                self._ctx.log.log(
                    logging.WARNING if attempt == 1 else logging.DEBUG,
                    "not stored, attempt %d: %s",
                    attempt,
                    error,
                )
                settings = self._settings
                await anyio.sleep(backoff(attempt, settings.backoff, settings.max_backoff))
            else:
                self.failing = None
                return

    def _note_failure(self, reason: str) -> None:
        self.failures += 1
        self.failing = reason

    async def _use(self, session: NatsSession) -> None:
        self._session = session
        self._linked.set()
        try:
            await session.lost.wait()
        finally:
            self._session = None
            self._linked = anyio.Event()
        raise LinkLost(session.reason)

    async def _connected(self) -> NatsSession:
        while self._session is None or self._session.lost.is_set():
            if self._session is None:
                await self._linked.wait()
            else:
                await checkpoint()  # it is about to be let go
        return self._session

    async def _send_all(self, session: NatsSession, items: Sequence[Delivery]) -> None:
        sent = left_out = values = large = 0
        for item in items:
            message = message_of(item, self._settings.prefix, self._ctx.keyspace.history)
            if message is None:
                left_out += 1
                continue
            try:
                try:
                    await self._send(session, message)
                except TooLarge:
                    if not isinstance(item, Changed) or item.change.value is None:
                        raise
                    await self._send(session, without_value(item, message))
                    values += 1
                sent += 1
            except TooLarge as error:
                large += 1
                self._ctx.log.error("%s is left out: %s", message.headers["Nats-Msg-Id"], error)
        if self._settings.acknowledge == "server":
            await session.confirm()
        # Only now: what is sent again is counted once.
        self.published += sent
        self.left_out += left_out
        self.values_left_out += values
        self.too_large += large

    async def _send(self, session: NatsSession, message: Message) -> None:
        """Send one. Raises `TooLarge`, `NotStored`."""
        if self._settings.acknowledge == "server":
            await session.publish(message.subject, message.payload, headers=message.headers)
            return
        session.check_size(message.payload, message.headers)
        try:
            answer = await session.client.request(
                message.subject, message.payload, session.timeout, headers=message.headers
            )
        except nats.errors.NoRespondersError:
            raise NotStored(f"no stream takes {message.subject}") from None
        except TimeoutError:
            # A subscriber counts as somebody who could answer. A dead server the pings find out.
            raise NotStored(f"no stream has stored {message.subject} in time") from None
        except (nats.errors.Error, OSError) as error:
            raise LinkLost(str(error) or type(error).__name__) from error
        try:
            stored = _decode(answer.data)
        except msgspec.MsgspecError:
            raise NotStored(f"somebody other than a stream answers at {message.subject}") from None
        if stored.error is not None:
            if stored.error.err_code == _TOO_LARGE:
                raise TooLarge(stored.error.description)
            raise NotStored(stored.error.description)
        if not stored.stream:
            raise NotStored(f"somebody other than a stream answers at {message.subject}")
