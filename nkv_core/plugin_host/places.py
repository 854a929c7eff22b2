"""Places: where one generation listens or what it reaches, and the events that tell of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from nkv_core.contracts.context import Address, Guard, Listener
from nkv_core.contracts.owner import Owner
from nkv_core.errors import NkvError, Unreachable
from nkv_core.events import Connect, Disconnect
from nkv_core.plugin_host.broker import Held
from nkv_core.plugin_host.context import Services
from nkv_core.plugin_host.serving import Serving


class Places:
    """The places of one generation. They are told of from when it is in charge."""

    def __init__(self, owner: Owner, services: Services, serving: Serving) -> None:
        self._owner: Final = owner
        self._services: Final = services
        self._serving: Final = serving
        self._scheme = ""  #: of the addresses of one that listens and is no transport
        self._told = False

    async def listen(self, address: Address, *, guard: Guard, scheme: str) -> Listener:
        """Listen, as in `Context.listen`."""
        self._scheme = scheme
        listener = await self._services.broker.listen(self._owner, address, guard)
        self._tell_opened()
        return listener

    @contextmanager
    def reach(self, host: str, port: int) -> Iterator[None]:
        """While within, a place elsewhere is reached, as in `Context.reach`."""
        place = self._services.broker.reach(self._owner, host, port)
        self._tell_opened()
        error: NkvError | None = None
        try:
            yield
        except Exception as raised:
            # One of ours: events may be kept, and what was raised holds the frames of the plugin.
            error = Unreachable(f"{host}:{port}: {raised}")
            raise
        finally:
            self._tell_closed(self._services.broker.release(self._owner, place), error)

    def announce(self) -> None:
        """Tell of the places that it has and will have: the generation is in charge."""
        self._told = True
        self._tell_opened()

    def release(self, error: BaseException | None) -> None:
        """Give all of them back. `error` is why the generation ends, if it has failed."""
        self._tell_closed(self._services.broker.release(self._owner), error)

    def _tell_opened(self) -> None:
        if not self._told:
            return
        transport = self._serving.transport
        scheme = self._scheme if transport is None else transport.scheme
        for held in self._services.broker.used_by(self._owner):
            if not held.announced:
                held.announced = True
                event = Connect(*held.place, self._serving.listener, scheme)
                self._services.dispatcher.emit(event)

    def _tell_closed(self, closed: list[Held], error: BaseException | None) -> None:
        for held in closed:
            if held.announced:
                event = Disconnect(*held.place, self._serving.listener, error)
                self._services.dispatcher.emit(event)
