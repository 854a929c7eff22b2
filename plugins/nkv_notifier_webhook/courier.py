"""Courier: takes one change after another to the receiver, and keeps how far it has come.

The next change is not sent before the receiver has taken the one before it, or that one was given
up. The place is kept durably after each: what was sent but not noted before a crash is sent again,
under the same idempotency key.
"""

import logging
import random
from typing import Any, Final

import anyio

from nkv_core.contracts.context import Context
from nkv_core.contracts.watch import Changed, Cursor, Ended, Gap, Watcher
from nkv_core.errors import InvalidToken, NkvError, Overloaded, Stopping, ValueTooLarge
from nkv_core.records import Token, wall_clock

from .dead_letters import DeadLetters
from .message import Message, message_of
from .receiver import DeliveryFailed, Receiver
from .settings import WebhookSettings

#: Seconds before the store, or the hub, is asked again after it failed.
_PAUSE: Final = 1.0


class Courier:
    """Delivers for one generation of the plugin."""

    def __init__(self, ctx: Context, receiver: Receiver, dead: DeadLetters) -> None:
        self._ctx = ctx
        self._settings: WebhookSettings = ctx.settings
        self._receiver = receiver
        self._cursor = Cursor(ctx.state, "webhook")
        self._watcher: Watcher | None = None
        self._since: Token
        self._lost: Gap | None = None  #: a gap that is not the hub's, to be told first
        self.dead: Final = dead
        self.delivered = 0
        self.gaps = 0
        self.failures = 0  #: attempts that failed
        self.failing: str | None = None  #: why the last attempt failed, if it did

    async def begin(self) -> None:
        """Find the place to go on from; the first time it is the end of the stream, now."""
        now = self._ctx.node.hub.token
        try:
            self._since = await self._cursor.begin(now)
        except InvalidToken as error:
            self._ctx.log.error("%s Changes before %s may be lost.", error.detail, now)
            self._since, self._lost = now, Gap(Token(now.history, 0), now, resync=False)
            return
        if self._since.history != now.history or self._since.revision > now.revision:
            # Another store, or one that was set back. The gap ends here and now, so that whatever
            # is written from now on is told.
            self._ctx.log.error("The stream is at %s, and %s is not in it.", now, self._since)
            self._lost = Gap(self._since, now, resync=False)
            self._since = now

    async def run(self) -> None:
        """Deliver until the node stops."""
        while True:
            try:
                if self._lost is not None:
                    self.gaps += 1
                    await self._deliver(message_of(self._lost, self._lost.upto.history))
                    await self._note(self._lost.upto)
                    self._lost = None
                if await self._follow():
                    return
            except Stopping:
                return
            except Overloaded as error:
                self._ctx.log.warning("The hub takes no watcher: %s", error)
            await anyio.sleep(_PAUSE)

    def status(self) -> dict[str, Any]:
        """How it goes, for JSON."""
        saved, watcher = self._cursor.saved, self._watcher
        return {
            "receiver": self._receiver.place,
            "pattern": self._settings.pattern,
            "token": None if saved is None else str(saved),
            "behind": 0 if watcher is None or watcher.closed else watcher.info().behind,
            "delivered": self.delivered,
            "gaps": self.gaps,
            "failed_attempts": self.failures,
            "failing": self.failing,
            "dead_letters_dropped": self.dead.dropped,
            "dead_letters": [letter.to_json() for letter in self.dead.letters],
        }

    async def _follow(self) -> bool:
        """Deliver what the hub tells; whether the node is stopping, else the watch is to be begun
        again. Raises `Stopping` and `Overloaded`.
        """
        watcher = self._watcher = self._ctx.node.hub.watch(
            self._settings.pattern,
            since=self._since,
            resync=False,  # the receiver is told what it missed; what to read anew is its choice
            label=f"webhook {self._receiver.place}",
        )
        try:
            async for item in watcher:
                if isinstance(item, Ended):
                    if item.code == Stopping.code:
                        return True
                    self._ctx.log.warning("The watch has ended: %s", item.detail)
                    return False
                if isinstance(item, Changed | Gap):
                    self.gaps += isinstance(item, Gap)
                    await self._deliver(message_of(item, self._ctx.keyspace.history))
                    await self._note(item.token)
        finally:
            watcher.close()
        return False

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
                await anyio.sleep(_PAUSE)

    async def _note(self, token: Token | None) -> None:
        """Keep the place durably, however long the store cannot."""
        if token is None:
            return
        self._since = token
        while True:
            try:
                await self._cursor.save(token)
                return
            except Stopping:
                raise
            except NkvError as error:
                self._ctx.log.error("The place %s cannot be kept yet: %s", token, error)
                await anyio.sleep(_PAUSE)


def pause(settings: WebhookSettings, attempt: int, asked: float = 0.0) -> float:
    """Seconds to wait behind a failed attempt: doubled each time, and never twice the same.

    What the receiver asks for is waited as well, up to `max_backoff`.
    """
    # At 2**32 any bound is long passed, and a float far from its own.
    longest = min(settings.max_backoff, settings.backoff * 2.0 ** min(attempt - 1, 32))
    jittered = longest * random.uniform(0.5, 1.0)  # noqa: S311  # spreads load, hides nothing
    return max(jittered, min(asked, settings.max_backoff))
