"""`/livez`, `/readyz` and `/v1/status`: how the node is."""

from collections.abc import Callable
from typing import Any

from nkv_core.contracts.handlers import Handlers, Request
from nkv_core.errors import Stopping

from .openapi import described
from .replies import JSON


def register(handlers: Handlers) -> None:
    """Register the paths that need no token."""
    handlers.add("/livez", livez, command="livez", timeout=None, public=True)
    handlers.add("/readyz", readyz, command="readyz", timeout=None, public=True)


@described(answers={200: JSON})
def livez(_: Request) -> dict[str, Any]:
    """That the node's event loop turns."""
    return {"status": "ok"}


@described(answers={200: JSON, 503: None})
def readyz(request: Request) -> dict[str, Any]:
    """Whether every part of the node serves."""
    if not request.node.ready:
        raise Stopping("The node is starting or stopping.")
    return {"status": "ok"}


def register_status(handlers: Handlers, figures: Callable[[], dict[str, Any]]) -> None:
    """Register `/v1/status`; `figures` are what the transport says about itself."""

    @described(answers={200: JSON})
    async def status(request: Request) -> dict[str, Any]:
        """What the node says about itself."""
        return {**await request.node.status(), "http": figures()}

    handlers.add("/v1/status", status, command="status")
