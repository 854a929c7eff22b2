"""The data directory: one node at a time, an identity, a format, and upgrades of older ones.

It holds `nkv.json` (the format's number and the node's id), `nkv.lock` (locked while a node lives),
the admin socket, and one folder for each storage or plugin that asks for one. A folder that cannot
be used as it is is refused before anything in it is touched.
"""

import errno
import fcntl
import json
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NoReturn

from nkv_core.data_dir_upgrade import MARKER, finish_upgrade, upgrade
from nkv_core.errors import DataDamaged, DataDirBusy, DataDirError, NewerFormat
from nkv_core.files import sync_folder, write_atomically

FORMAT: Final = 1
IDENTITY: Final = "nkv.json"
LOCK: Final = "nkv.lock"
ADMIN_SOCKET: Final = "admin.sock"
UNFINISHED: Final = "nkv.restoring"  #: is in a folder while `new_data_dir` fills it

#: Brings a folder from one format to the next. It may be interrupted at any point: it is then run
#: again, on the files as they were before.
Step = Callable[[Path], None]
STEPS: Final[Mapping[int, Step]] = MappingProxyType({})

_MAX_IDENTITY: Final = 64 * 1024  #: bytes; ours has less than a hundred
#: What a file system puts into its topmost folder, and what a first start may leave behind.
_HARMLESS: Final = frozenset({"lost+found", LOCK, f"{IDENTITY}.new"})
#: The folder of plugins, which may be filled before the node is started for the first time.
PLUGIN_FOLDER: Final = "plugins.d"

_log = logging.getLogger("nkv.data_dir")


class DataDir:
    """A data directory that this process holds. Made by `DataDir.open`."""

    def __init__(self, path: Path, node_id: int, lock: int) -> None:
        self.path: Final = path
        self.node_id: Final = node_id
        self._lock: int | None = lock

    @classmethod
    def open(
        cls, path: Path | str, *, format_number: int = FORMAT, steps: Mapping[int, Step] = STEPS
    ) -> "DataDir":
        """Take the folder, made where it does not exist, and upgrade it where it is older.

        Raises `DataDirBusy` naming the process that holds it, `NewerFormat`, `DataDamaged`, and
        `DataDirError` where it is no folder, not ours or not writable.
        """
        folder = Path(path).absolute()
        try:
            _check_or_create(folder, format_number)
            lock = _take_lock(folder)
            try:
                node_id = _identify(folder, format_number, steps)
            except BaseException:
                os.close(lock)
                raise
        except OSError as error:
            _refuse(folder, error)
        return cls(folder, node_id, lock)

    @property
    def admin_socket(self) -> Path:
        """Where the node's admin socket is."""
        return self.path / ADMIN_SOCKET

    def close(self) -> None:
        """Release the folder. Closing twice does nothing."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)  # the file stays: whoever removed it would pull it from under the next

    def __enter__(self) -> "DataDir":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def new_data_dir(path: Path | str) -> Iterator[DataDir]:
    """Make a data directory, which is one only once the block has ended well.

    Until then the folder holds files but no identity, so that no node takes it. If the block
    raises, the folder is left empty; if the process dies, the next call empties it. Raises
    `DataDirError` where the folder has anything in it, and as `DataDir.open`.
    """
    folder = Path(path).absolute()
    try:
        _check_unused(folder)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        lock = _take_lock(folder)
    except OSError as error:
        _refuse(folder, error)
    try:
        _check_unused(folder)  # somebody else may have been faster to the lock, and be done
        _remove_all(folder)
        (folder / UNFINISHED).touch(0o600)
        data = DataDir(folder, secrets.randbelow(2**64 - 1) + 1, lock)
        try:
            yield data
            sync_folder(folder)
            _write_identity(folder, FORMAT, data.node_id)
        except BaseException:
            _remove_all(folder)
            raise
        (folder / UNFINISHED).unlink()
    finally:
        os.close(lock)


def _check_unused(folder: Path) -> None:
    try:
        names = {entry.name for entry in folder.iterdir()}
    except FileNotFoundError:
        return
    if names - _HARMLESS and (UNFINISHED not in names or IDENTITY in names):
        raise DataDirError(
            f"{folder} is in use, or was: name a new folder, or move this one away first."
        )


def _remove_all(folder: Path) -> None:
    """Remove what an unfinished making has left: the folder was empty when it began."""
    for entry in folder.iterdir():
        if entry.name in (LOCK, "lost+found"):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _check_or_create(folder: Path, format_number: int) -> None:
    """Refuse, by looking alone, what could not be used; make the folder where there is none."""
    try:
        names = {entry.name for entry in folder.iterdir()}
    except FileNotFoundError:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_folder(folder.parent)
        return
    except NotADirectoryError:
        raise DataDirError(f"{folder} is not a folder.") from None
    foreign = sorted(names - _HARMLESS - {PLUGIN_FOLDER})
    if IDENTITY in names:
        _read_identity(folder, format_number)
    elif MARKER not in names and foreign:
        shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise DataDirError(
            f"{folder} holds files ({shown}) but no {IDENTITY}: it is no data directory of nkv."
            " Choose an empty or a new folder."
        )
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        raise DataDirError(f"{folder} is not writable for user {os.geteuid()}.")
    if not foreign and folder.stat().st_uid == os.geteuid():
        folder.chmod(0o700)  # taken over while empty: what comes into it is for this user alone


def _take_lock(folder: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    lock = os.open(folder / LOCK, flags, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n" % os.getpid(), 0)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).strip()
        os.close(lock)
        who = f"process {holder.decode()}" if holder.isdigit() else "another process"
        raise DataDirBusy(f"{folder} is in use by {who}.") from None
    except BaseException:
        os.close(lock)
        raise
    return lock


def _identify(folder: Path, format_number: int, steps: Mapping[int, Step]) -> int:
    """The node's id, once the folder has the format asked for. The lock is held."""
    finish_upgrade(folder)
    path = folder / IDENTITY
    if not path.exists():
        node_id = secrets.randbelow(2**64 - 1) + 1
        _write_identity(folder, format_number, node_id)
        return node_id
    found, node_id = _read_identity(folder, format_number)
    if found < format_number:
        missing = [number for number in range(found, format_number) if number not in steps]
        if missing:
            raise DataDirError(
                f"{folder} has format {found}, which this nkv can no longer upgrade to"
                f" {format_number}: upgrade with an earlier release first."
            )
        _log.warning("upgrading %s from format %d to %d", folder, found, format_number)

        def run_steps() -> None:
            for number in range(found, format_number):
                steps[number](folder)
            _write_identity(folder, format_number, node_id)

        backup = upgrade(folder, found, run_steps)
        _log.warning("upgraded %s; what was there before is in %s", folder, backup)
    return node_id


def _read_identity(folder: Path, format_number: int) -> tuple[int, int]:
    """The format's number and the node's id. Raises `DataDamaged`, `NewerFormat`."""
    path = folder / IDENTITY
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            regular = stat.S_ISREG(os.fstat(handle).st_mode)
            content = os.read(handle, _MAX_IDENTITY + 1) if regular else b""
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        content = b""
    try:
        identity: Any = json.loads(content) if len(content) <= _MAX_IDENTITY else None
    except (ValueError, RecursionError):
        identity = None
    found = identity.get("format") if isinstance(identity, dict) else None
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise DataDamaged(
            f"{path} is damaged; nothing was changed. Restore it, or the folder, from a backup."
        )
    if found > format_number:
        raise NewerFormat(
            f"{folder} has format {found}; this nkv knows formats up to {format_number}."
            " Use the release that wrote it, or a newer one."
        )
    text = identity.get("node_id")
    if not (isinstance(text, str) and len(text) == 16 and not text.strip("0123456789abcdef")):
        raise DataDamaged(f"{path} has no valid node id; nothing was changed.")
    return found, int(text, 16)


def _write_identity(folder: Path, format_number: int, node_id: int) -> None:
    content = json.dumps({"format": format_number, "node_id": f"{node_id:016x}"})
    write_atomically(folder / IDENTITY, content.encode() + b"\n")


def _refuse(folder: Path, error: OSError) -> NoReturn:
    reason = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EROFS: "the file system is read-only",
        errno.EACCES: f"user {os.geteuid()} has no right to it",
        errno.EPERM: f"user {os.geteuid()} has no right to it",
        errno.ENOTDIR: "a part of its path is not a folder",
        errno.ENOLCK: "its file system has no locks",
        errno.EOPNOTSUPP: "its file system has no locks",
    }.get(error.errno or 0, error.strerror or str(error))
    raise DataDirError(f"{folder} cannot be used: {reason}.") from error
