"""What people can see of the webhook, over HTTP. It shows keys, so it needs the right to all."""

from typing import Any, Final

from nkv_core.contracts.handlers import Handlers, Reply, Request
from nkv_core.errors import Forbidden

from .courier import Courier

PATH: Final = "/v1/notifiers/webhook"


def register(handlers: Handlers, courier: Courier) -> None:
    """Register the path for one generation."""

    async def status(request: Request) -> dict[str, Any]:
        _refuse_others(request, write=False)
        return courier.status()

    async def clear(request: Request) -> Reply:
        _refuse_others(request, write=True)
        return Reply(body={"removed": await courier.dead.clear()})

    handlers.add(PATH, status, command="webhook status")
    handlers.add(f"{PATH}/dead-letters", clear, ("DELETE",), command="webhook clear")


def _refuse_others(request: Request, *, write: bool) -> None:
    who = request.identity
    if who is not None and not (who.may_write("") if write else who.may_read("")):
        raise Forbidden
