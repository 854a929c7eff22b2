"""Courier: takes one change after another to the receiver, and keeps how far it has come.

The next change is not sent before the receiver has taken the one before it, or that one was given
up. The place is kept durably after each: what was sent but not noted before a crash is sent again,
under the same idempotency key.
"""

import logging
from collections.abc import Sequence
from typing import Any, Final

import anyio

from nkv_core.contracts.context import Context
from nkv_core.errors import NkvError, Stopping, ValueTooLarge
from nkv_core.outward import PAUSE, Delivery, Follower, backoff
from nkv_core.records import wall_clock

from .dead_letters import DeadLetters
from .message import Message, message_of
from .receiver import DeliveryFailed, Receiver
from .settings import WebhookSettings


class Courier:
    """Delivers for one generation of the plugin."""

    def __init__(self, ctx: Context, receiver: Receiver, dead: DeadLetters) -> None:
        self._ctx = ctx
        self._settings: WebhookSettings = ctx.settings
        self._receiver = receiver
        self.follower: Final = Follower(
            ctx, "webhook", pattern=self._settings.pattern, label=f"webhook {receiver.place}"
        )
        self.dead: Final = dead
        self.delivered = 0
        self.failures = 0  #: attempts that failed
        self.failing: str | None = None  #: why the last attempt failed, if it did

    async def run(self) -> None:
        """Deliver until the node stops."""
        await self.follower.run(self._deliver_all)

    def status(self) -> dict[str, Any]:
        """How it goes, for JSON."""
        saved = self.follower.saved
        return {
            "receiver": self._receiver.place,
            "pattern": self._settings.pattern,
            "token": None if saved is None else str(saved),
            "behind": self.follower.behind,
            "delivered": self.delivered,
            "gaps": self.follower.gaps,
            "failed_attempts": self.failures,
            "failing": self.failing,
            "dead_letters_dropped": self.dead.dropped,
            "dead_letters": [letter.to_json() for letter in self.dead.letters],
        }

    async def _deliver_all(self, items: Sequence[Delivery]) -> None:
        for item in items:
            await self._deliver(message_of(item, self._ctx.keyspace.history))

    async def _deliver(self, message: Message) -> None:
        """Try until the receiver has taken it, or it is given up as a dead letter."""
        settings = self._settings
        for attempt in range(1, settings.attempts + 1):
            try:
                await self._receiver.post(message)
            except DeliveryFailed as error:
                self.failures += 1
                reason = self.failing = str(error)
                self._ctx.log.log(
                    logging.WARNING if attempt == 1 else logging.INFO,
                    "%s: attempt %d to deliver %s: %s",
                    self._receiver.place,
                    attempt,
                    message.id,
                    reason,
                )
                if attempt < settings.attempts:
                    await anyio.sleep(pause(settings, attempt, error.wait))
            else:
                self.delivered += 1
                self.failing = None
                return
        self._ctx.log.error(
            "%s: %s of %r was given up after %d attempts: %s",
            self._receiver.place,
            message.id,
            message.key,
            settings.attempts,
            reason,
        )
        await self._bury(message, reason)

    async def _bury(self, message: Message, reason: str) -> None:
        while True:
            try:
                await self.dead.add(message, self._settings.attempts, reason, wall_clock())
                return
            except ValueTooLarge as error:
                # The room was made smaller since: better no record of this one than no more at all.
                self._ctx.log.error("%s is not kept as a dead letter: %s", message.id, error)
                self.dead.dropped += 1
                return
            except Stopping:
                raise
            except NkvError as error:
                self._ctx.log.error("A dead letter cannot be kept yet: %s", error)
                await anyio.sleep(PAUSE)


def pause(settings: WebhookSettings, attempt: int, asked: float = 0.0) -> float:
    """Seconds to wait behind a failed attempt: doubled each time, and never twice the same.

    What the receiver asks for is waited as well, up to `max_backoff`.
    """
    jittered = backoff(attempt, settings.backoff, settings.max_backoff)
    return max(jittered, min(asked, settings.max_backoff))
