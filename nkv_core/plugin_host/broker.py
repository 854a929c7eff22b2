"""Broker: holds the node's listening sockets, so that a transport can be replaced under traffic.

A socket belongs to a plugin's name and is shared by its generations. Each gets duplicates: closing
one ends nobody's queue of connections, which lives as long as the broker's own.
"""

import contextlib
import errno
import ipaddress
import os
import secrets
import socket
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import anyio

from nkv_core.contracts.context import Address, Guard, TcpAddress, UnixAddress
from nkv_core.contracts.owner import Owner
from nkv_core.errors import AddressInUse, StartError, Stopping

BACKLOG: Final = 4096
_TRIES: Final = 10  #: to find one port that is free for every address of a name
_MAX_PATH: Final = 107  #: bytes in the path of a Unix socket, the closing zero not counted


class HeldSocket:
    """One listening socket, and who uses it."""

    def __init__(self, sock: socket.socket, address: Address, plugin: str, wanted: Address) -> None:
        self.sock: Final = sock
        self.address: Final = address  #: where it listens indeed
        self.plugin: Final = plugin
        self.wanted: Final = wanted  #: the address of its family that was asked for, port 0 too
        self.users: set[Owner] = set()
        self.announced = False  #: whether `Connect` was emitted
        self._inode = Path(address.path).stat().st_ino if isinstance(address, UnixAddress) else 0

    @property
    def place(self) -> tuple[str, int]:
        """Its host and port; of a Unix socket the path and 0."""
        address = self.address
        return (
            (address.path, 0) if isinstance(address, UnixAddress) else (address.host, address.port)
        )

    def close(self) -> None:
        """Close it; the file of a Unix socket goes too, unless another has taken its place."""
        self.sock.close()
        if isinstance(self.address, UnixAddress):
            path = Path(self.address.path)
            with contextlib.suppress(OSError):  # it went before, or its folder did
                if path.stat().st_ino == self._inode:
                    path.unlink()


class ReachedPlace:
    """A place elsewhere, over a connection to which a transport is reached, and who has one."""

    def __init__(self, place: tuple[str, int], plugin: str) -> None:
        self.place: Final = place
        self.plugin: Final = plugin
        self.users: set[Owner] = set()
        self.announced = False  #: whether `Connect` was emitted

    def close(self) -> None:
        """Nothing: the connection is its plugin's."""


Held = HeldSocket | ReachedPlace


class BrokeredListener:
    """What `ctx.listen` returns."""

    def __init__(self, held: tuple[HeldSocket, ...], owner: Owner) -> None:
        self._held = held
        self._owner = owner

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where it listens indeed, one for each socket."""
        return tuple(held.address for held in self._held)

    def sockets(self) -> list[socket.socket]:
        """Duplicates of the listening sockets, non-blocking, the caller's to close."""
        if any(self._owner not in held.users for held in self._held):
            raise Stopping("The plugin that listened here has been closed.")
        return [held.sock.dup() for held in self._held]


class Broker:
    """Opens and closes listening sockets. Used on the event loop only."""

    def __init__(self, *, insecure: bool, authenticated: bool) -> None:
        """`insecure`: whether everything is allowed; `authenticated`: whether tokens are used."""
        self._insecure = insecure
        self._authenticated = authenticated
        self._held: list[HeldSocket] = []
        self._reached: list[ReachedPlace] = []

    async def listen(
        self, owner: Owner, address: Address, guard: Guard = "tokens"
    ) -> BrokeredListener:
        """Listen at an address, or share what an earlier generation listens at there.

        Raises `AddressInUse`, and `StartError` where it cannot or may not be listened at.
        """
        if guard == "nobody" and self._authenticated and not self._insecure:
            raise StartError(
                "A listener that serves whoever comes, on a node that uses tokens: allow it with"
                " --insecure."
            )
        held: tuple[HeldSocket, ...]
        if isinstance(address, UnixAddress):
            held = (self._at_path(owner, address),)
        else:
            held = await self._at_port(owner, address, guard)
        for each in held:
            each.users.add(owner)
        return BrokeredListener(held, owner)

    def reach(self, owner: Owner, host: str, port: int) -> ReachedPlace:
        """Note that a generation is connected to a place, or shares it with an earlier one."""
        place = (host, port)
        for reached in self._reached:
            if reached.plugin == owner.name and reached.place == place:
                break
        else:
            reached = ReachedPlace(place, owner.name)
            self._reached.append(reached)
        reached.users.add(owner)
        return reached

    def used_by(self, owner: Owner) -> list[Held]:
        """The sockets of one generation, and the places that it has reached."""
        every: list[Held] = [*self._held, *self._reached]
        return [held for held in every if owner in held.users]

    def release(self, owner: Owner, only: Held | None = None) -> list[Held]:
        """Take from a generation what it uses, or one of these; what nobody uses any more is closed
        and returned.
        """
        closed = []
        for held in self.used_by(owner):
            if only is not None and held is not only:
                continue
            held.users.discard(owner)
            if not held.users:
                if isinstance(held, HeldSocket):
                    self._held.remove(held)
                else:
                    self._reached.remove(held)
                held.close()
                closed.append(held)
        return closed

    # --- TCP --------------------------------------------------------------------------------------

    async def _at_port(
        self, owner: Owner, address: TcpAddress, guard: Guard
    ) -> tuple[HeldSocket, ...]:
        found = await self._resolve(address, guard)
        last: AddressInUse | None = None
        for _ in range(_TRIES if address.port == 0 else 1):
            try:
                return self._bind_all(owner, address, found)
            except AddressInUse as error:
                last = error
        raise last or AddressInUse(_told(address))

    async def _resolve(
        self, address: TcpAddress, guard: Guard
    ) -> list[tuple[int, tuple[Any, ...]]]:
        """The family and address of each place that the host's name stands for."""
        if not 0 <= address.port <= 65535:
            raise StartError(f"{address.port} is no port: it is from 0 to 65535.")
        try:
            infos = await anyio.getaddrinfo(
                address.host or None,
                address.port,
                type=socket.SOCK_STREAM,
                flags=socket.AI_PASSIVE,
            )
        except (OSError, UnicodeError) as error:
            raise StartError(f"The host {address.host!r} cannot be resolved: {error}.") from None
        places = [(family, place) for family, _, _, _, place in infos]
        guarded = guard == "own" or (guard == "tokens" and self._authenticated)
        for _, place in places:
            if not (guarded or self._insecure or _is_loopback(str(place[0]))):
                instead = "set auth.tokens, or " if guard == "tokens" else ""
                raise StartError(
                    f"{_told(address)} can be reached from other machines: {instead}allow it with"
                    " --insecure."
                )
        return list(dict.fromkeys(places))

    def _bind_all(
        self, owner: Owner, address: TcpAddress, places: Iterable[tuple[int, tuple[Any, ...]]]
    ) -> tuple[HeldSocket, ...]:
        """Bind each place; one that this machine has not is left out if another it has.

        Where the port is free to choose, all get the same. No step here gives way to another task.
        """
        port = address.port
        got: list[HeldSocket] = []
        new: list[HeldSocket] = []
        missing: OSError | None = None
        try:
            for family, place in places:
                wanted = TcpAddress(str(place[0]), address.port)
                shared = self._shared(owner, wanted)
                if shared is None:
                    try:
                        sock = _bind(family, (place[0], port, *place[2:]))
                    except OSError as error:
                        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                            missing = error
                            continue
                        raise _refusal(error, TcpAddress(wanted.host, port), self._held) from None
                    indeed = TcpAddress(wanted.host, int(sock.getsockname()[1]))
                    shared = HeldSocket(sock, indeed, owner.name, wanted)
                    new.append(shared)
                got.append(shared)
                if isinstance(shared.address, TcpAddress):
                    port = shared.address.port
            if not got and missing is not None:
                raise _refusal(missing, address, self._held)
        except BaseException:
            for held in new:
                held.close()
            raise
        self._held += new
        return tuple(got)

    def _shared(self, owner: Owner, wanted: Address) -> HeldSocket | None:
        """What another generation of the plugin holds there, not yet taken by this one."""
        for held in self._held:
            if held.plugin != owner.name or owner in held.users:
                continue
            # A transport that had port 0 and is now told the number that it got means the same.
            if wanted in (held.wanted, held.address):
                return held
        return None

    # --- Unix -------------------------------------------------------------------------------------

    def _at_path(self, owner: Owner, address: UnixAddress) -> HeldSocket:
        path = Path(address.path).absolute()
        address = UnixAddress(str(path), address.mode)
        shared = self._shared(owner, address)
        if shared is not None:
            return shared
        for held in self._held:
            if isinstance(held.address, UnixAddress) and held.address.path == address.path:
                raise AddressInUse(
                    f"{path} is taken by the plugin {held.plugin}, with mode"
                    f" {held.address.mode:o}; to change that, unload it and load it again."
                )
        # Bound under another name and then renamed, so that nobody finds it half made, and so that
        # whoever closes it and removes the name it was bound to does not remove what others use.
        bound = Path(f"{path}.{secrets.token_hex(2)}")
        if len(os.fsencode(bound)) > _MAX_PATH:
            raise StartError(f"The path {path} is too long for a socket: use a shorter folder.")
        _refuse_taken(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.bind(str(bound))
            bound.chmod(address.mode)
            sock.listen(BACKLOG)
            bound.rename(path)
            held = HeldSocket(sock, address, owner.name, address)
        except OSError as error:
            sock.close()
            bound.unlink(missing_ok=True)
            raise StartError(f"Cannot listen at {path}: {error.strerror}.") from None
        self._held.append(held)
        return held


def _bind(family: int, place: tuple[Any, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(place)
        # Linux lets two sockets bind an address that reuse it, and refuses the second to listen.
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _refusal(error: OSError, address: TcpAddress, held: list[HeldSocket]) -> StartError:
    if error.errno == errno.EADDRINUSE:
        users = [
            each.plugin
            for each in held
            if isinstance(each.address, TcpAddress) and each.address.port == address.port
        ]
        who = f"the plugin {users[0]}" if users else "another program"
        return AddressInUse(f"{_told(address)} is taken by {who}.")
    if error.errno == errno.EADDRNOTAVAIL:
        return StartError(f"{_told(address)} is no address of this machine.")
    return StartError(f"Cannot listen at {_told(address)}: {error.strerror}.")


def _refuse_taken(path: Path) -> None:
    """Raise where something is at the path that must not be replaced; a dead socket may be."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise AddressInUse(f"{path} exists and is no socket: remove it, or use another path.")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except OSError:
            pass  # full, or not ours to connect to: somebody is there
    raise AddressInUse(f"{path} is taken by another program.")


def _is_loopback(host: str) -> bool:
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _told(address: TcpAddress) -> str:
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{host or '*'}:{address.port}"
