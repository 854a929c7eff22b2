"""What people can see of the notifier, over HTTP."""

from typing import Final

from nkv_core.contracts.handlers import Handlers, Request

from .clients import Clients
from .teller import Teller

PATH: Final = "/v1/notifiers/socketio"


def register(handlers: Handlers, clients: Clients, teller: Teller) -> None:
    """Register the path for one generation."""

    async def status(_: Request) -> dict[str, int]:
        return {
            "clients": clients.count,
            "told": teller.told,
            "left_out_not_text": teller.left_out,
            "gaps": teller.gaps,
            "dropped_clients": clients.dropped,
        }

    handlers.add(PATH, status, command="socketio status")
