"""The socket's file: its address, how it comes, and how it goes."""

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from nkv_core.errors import AddressInUse, DataDirError

_MAX_ADDRESS: Final = 107  #: bytes that the system has for the path of a Unix socket


@contextmanager
def address_of(path: Path) -> Iterator[str]:
    """The path in a form that fits into a socket's address: a long one through an open folder."""
    if not _is_long(path):
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def listen(path: Path, backlog: int) -> tuple[socket.socket, os.stat_result]:
    """A listening, non-blocking socket at the path, and which file that is.

    The socket of a node that is gone is replaced. Raises `AddressInUse` where one serves it, and
    `DataDirError` where something else is there or the socket cannot be made.
    """
    raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        os.fchmod(raw.fileno(), 0o600)  # before it has a name, so that it never was more open
        with address_of(path) as address:
            raw.bind(address)
        raw.listen(backlog)
        raw.setblocking(False)
        return raw, path.lstat()
    except OSError as error:
        raw.close()
        long = f" (it has more than {_MAX_ADDRESS} bytes, which needs /proc)" * _is_long(path)
        reason = f"The admin socket {path} cannot be made{long}: {error.strerror}."
        raise DataDirError(reason) from error
    except BaseException:
        raw.close()
        raise


def remove(path: Path, made: os.stat_result) -> None:
    """Remove the socket's file, unless another has its place."""
    try:
        if os.path.samestat(path.lstat(), made):
            path.unlink()
    except FileNotFoundError:
        pass


def _remove_stale(path: Path) -> None:
    """Remove the socket of a node that is gone. Anything else at the path stays, and is refused."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise DataDirError(f"{path} is in the way: it is no socket, and was not made by nkv.")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, address_of(path) as address:
        probe.setblocking(False)
        try:
            probe.connect(address)
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass  # somebody listens, with a full queue
    raise AddressInUse(f"Another process serves {path}.")


def _is_long(path: Path) -> bool:
    return len(os.fsencode(path)) > _MAX_ADDRESS
