"""The path `/v1/watch`: what a client asks for, and the stream that answers it."""

import random
from collections.abc import Mapping
from typing import Final

from nkv_core.announcements import hub_of
from nkv_core.contracts.handlers import Handlers, Request, Stream
from nkv_core.contracts.watch import Mode
from nkv_core.errors import BadRequest
from nkv_core.keys import EVERYTHING, Pattern
from nkv_core.records import Token

from .settings import SseSettings
from .stream import Bell, EventStream

PATH: Final = "/v1/watch"
EVENT_STREAM: Final = "text/event-stream"

#: Neither a cache nor a proxy that collects is to stand between a change and its reader.
_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_MODES: Final[Mapping[str, Mode]] = {"every": "every", "latest": "latest"}
_SWITCH: Final = {"1": True, "true": True, "0": False, "false": False}


class Watch:
    """Answers the path."""

    def __init__(self, settings: SseSettings) -> None:
        self._settings = settings

    def register(self, handlers: Handlers) -> None:
        """Register the path."""
        handlers.add(PATH, self.watch, command="watch", timeout=None)

    def watch(self, request: Request) -> Stream:
        """Tell of changes as they happen.

        Raises `BadRequest` and its kin, `Forbidden`, and what the hub raises.
        """
        params = request.params
        pattern = params.get("pattern")
        hub, bell = hub_of(request), Bell()
        watcher = hub.watch(
            EVERYTHING if pattern is None else Pattern(pattern),
            mode=_mode(params.get("mode")),
            since=_since(request),
            subtree=_switch("subtree", params.get("subtree")),
            snapshot=_switch("snapshot", params.get("snapshot")),
            wake=bell.ring,
            label=f"sse {request.peer}",
        )
        # Spread, so that all who were cut off together do not come back together.
        retry = self._settings.retry * random.uniform(0.5, 1.5)  # noqa: S311  # not a secret
        stream = EventStream(watcher, hub, bell, heartbeat=self._settings.heartbeat, retry=retry)
        return Stream(stream, EVENT_STREAM, stream.goodbye, _HEADERS)


def _since(request: Request) -> Token | None:
    """Where to resume: `Last-Event-ID`, which a client has from this stream, wins over `since`."""
    text = request.headers.get("last-event-id") or request.params.get("since")
    return None if text is None else Token.parse(text)


def _mode(text: str | None) -> Mode:
    if text is None:
        return "every"
    mode = _MODES.get(text)
    if mode is None:
        raise BadRequest(f"The mode {text[:40]!r} is neither every nor latest.")
    return mode


def _switch(name: str, text: str | None) -> bool:
    if text is None:
        return False
    switch = _SWITCH.get(text)
    if switch is None:
        raise BadRequest(f"{name}={text[:40]!r} is neither 1 nor 0.")
    return switch
