"""Courier: takes one change after another to the receiver.

The next change is not sent before the receiver has taken the one before it, or that one was given
up. What was sent but not noted before a crash is sent again, under the same idempotency key.
"""

import logging
import random
from collections.abc import Sequence
from typing import Any

import anyio

from nkv_core.contracts.context import Context
from nkv_core.contracts.watch import Changed, Cursor, Gap
from nkv_core.delivery import PAUSE, Delivery
from nkv_core.errors import NkvError, Stopping, ValueTooLarge
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
        self._cursor = Cursor(ctx.state, "webhook")
        self._delivery = Delivery(
            ctx,
            self._deliver_all,
            label=f"webhook {receiver.place}",
            pattern=self._settings.pattern,
            cursor=self._cursor,
        )
        self.dead = dead
        self.delivered = 0
        self.failures = 0  #: attempts that failed
        self.failing: str | None = None  #: why the last attempt failed, if it did

    async def begin(self) -> None:
        """Find the place to go on from; the first time it is the end of the stream, now."""
        await self._delivery.begin()

    async def run(self) -> None:
        """Deliver until the node stops."""
        await self._delivery.run()

    def status(self) -> dict[str, Any]:
        """How it goes, for JSON."""
        saved = self._cursor.saved
        return {
            "receiver": self._receiver.place,
            "pattern": self._settings.pattern,
            "token": None if saved is None else str(saved),
            "behind": self._delivery.behind,
            "delivered": self.delivered,
            "gaps": self._delivery.gaps,
            "failed_attempts": self.failures,
            "failing": self.failing,
            "dead_letters_dropped": self.dead.dropped,
            "dead_letters": [letter.to_json() for letter in self.dead.letters],
        }

    async def _deliver_all(self, items: Sequence[Changed | Gap]) -> None:
        for item in items:
            history = item.upto.history if isinstance(item, Gap) else self._ctx.keyspace.history
            await self._deliver(message_of(item, history))

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
    # At 2**32 any bound is long passed, and a float far from its own.
    longest = min(settings.max_backoff, settings.backoff * 2.0 ** min(attempt - 1, 32))
    jittered = longest * random.uniform(0.5, 1.0)  # noqa: S311  # spreads load, hides nothing
    return max(jittered, min(asked, settings.max_backoff))
