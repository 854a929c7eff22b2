"""The crash-safe frame around an upgrade of the data directory.

What is there is copied to `backup-format-N`; then a marker is written that names the copy; then the
steps run; then the marker goes. A start that finds the marker knows that an upgrade did not end: it
puts the files back as they were and the upgrade begins again. A copy without a marker is either
unfinished or of an earlier upgrade, and is never read.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from nkv_core.errors import DataDamaged, DataDirError
from nkv_core.files import sync_folder, write_atomically

MARKER: Final = "nkv.upgrading"
BACKUP_PREFIX: Final = "backup-format-"

#: Names that belong to a running node or to the file system, and are neither copied nor put back.
_APART: Final = frozenset({MARKER, f"{MARKER}.new", "nkv.lock", "admin.sock", "lost+found"})


def upgrade(folder: Path, found: int, run_steps: Callable[[], None]) -> Path:
    """Run the steps, after a copy of the files; returns where the copy is.

    Raises `DataDirError` where a step fails: the files are then as they were.
    """
    backup = _free_name(folder, found)
    _copy(folder, backup)
    write_atomically(folder / MARKER, json.dumps({"backup": backup.name}).encode())
    try:
        run_steps()
        _sync_tree(folder)
    except Exception as error:
        finish_upgrade(folder)
        if isinstance(error, OSError):
            raise
        raise DataDirError(
            f"The upgrade of {folder} from format {found} failed ({error!r}); everything is as it"
            " was before."
        ) from error
    _remove_marker(folder)
    return backup


def finish_upgrade(folder: Path) -> None:
    """Put the files back as they were, where an upgrade was interrupted. May itself be interrupted.

    Raises `DataDamaged` where the marker or the copy that it names is gone or none of ours.
    """
    marker = folder / MARKER
    try:
        name = json.loads(marker.read_bytes())["backup"]
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError):
        name = ""
    is_ours = isinstance(name, str) and name.startswith(BACKUP_PREFIX) and "/" not in name
    if not is_ours or not (folder / name).is_dir():
        raise DataDamaged(f"{marker} names no copy of the files before an interrupted upgrade.")
    for entry in _own(folder):
        _remove(entry)
    for entry in _own(folder / name):
        _copy_entry(entry, folder / entry.name)
    sync_folder(folder)
    _remove_marker(folder)


def _remove_marker(folder: Path) -> None:
    (folder / MARKER).unlink()
    sync_folder(folder)


def _free_name(folder: Path, found: int) -> Path:
    """A name for the copy; those of earlier upgrades are left to whoever may need them."""
    names = (
        f"{BACKUP_PREFIX}{found}" + (f"-{again}" if again > 1 else "") for again in range(1, 1000)
    )
    for name in names:
        if not (folder / name).exists():
            return folder / name
    raise DataDirError(
        f"{folder} has too many copies of earlier upgrades ({BACKUP_PREFIX}{found})."
    )


def _copy(folder: Path, backup: Path) -> None:
    unfinished = folder / f"{BACKUP_PREFIX}unfinished"
    _remove(unfinished)
    try:
        unfinished.mkdir(mode=0o700)
        for entry in _own(folder):
            _copy_entry(entry, unfinished / entry.name)
        sync_folder(unfinished)
        unfinished.replace(backup)
        sync_folder(folder)
    except BaseException:
        _remove(unfinished)  # on a full disk the room is needed back
        raise


def _own(folder: Path) -> list[Path]:
    return [
        entry
        for entry in sorted(folder.iterdir())
        if entry.name not in _APART and not entry.name.startswith(BACKUP_PREFIX)
    ]


def _copy_entry(source: Path, target: Path) -> None:
    if source.is_symlink():
        target.symlink_to(source.readlink())
    elif source.is_dir():
        target.mkdir(mode=0o700)
        for entry in sorted(source.iterdir()):
            _copy_entry(entry, target / entry.name)
        shutil.copystat(source, target)
        sync_folder(target)
    elif source.is_file():
        shutil.copy2(source, target)
        _sync_file(target)
    # Sockets and pipes hold nothing that could be kept.


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink(missing_ok=True)


def _sync_tree(folder: Path) -> None:
    """Make what the steps wrote durable before the marker goes."""
    for root, _, files in os.walk(folder):
        for name in files:
            path = Path(root, name)
            if path.is_file() and not path.is_symlink():
                _sync_file(path)
        sync_folder(Path(root))


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
