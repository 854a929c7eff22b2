"""Source: the files of a plugin, read once. What is hashed here is what is executed later."""

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Final

import msgspec

from nkv_core.errors import PluginInvalid, PluginNotFound, UntrustedFile
from nkv_core.plugin_host.discovery import Candidate

MAX_FILES: Final = 2_000
MAX_BYTES: Final = 32 * 1024 * 1024
_INIT: Final = "__init__.py"


class SourceFile(msgspec.Struct, frozen=True):
    """One file. `module` is its name below the plugin's: empty for the plugin itself."""

    module: str
    path: Path
    data: bytes
    is_package: bool
    on_disk: bool = True  #: not so for the `__init__.py` that a package may go without


class Source(msgspec.Struct, frozen=True):
    """All files of a plugin, by module.

    `sha256` is that of the file's bytes where there is one; of a package, that of a list such as
    `sha256sum` prints it, with paths inside the package, in their order.
    """

    name: str
    files: Mapping[str, SourceFile]
    sha256: str


def read_source(candidate: Candidate, folders: tuple[str, ...] = ()) -> Source:
    """Read all source of a plugin. It may take a while: call it from a worker thread.

    What a path led to is trusted only where none but the node's user and root can change it, and it
    lies in one of `folders`, if there are any; what is installed is the installer's to guard.
    Raises `UntrustedFile`, `PluginNotFound`, and `PluginInvalid` for extension modules and for more
    than `MAX_FILES` files or `MAX_BYTES`.
    """
    if not candidate.installed:
        _check_folder(candidate, folders)
    if not candidate.is_package:
        data = _read(candidate.path, checked=not candidate.installed)
        file = SourceFile("", candidate.path, data, is_package=False)
        return Source(candidate.name, {"": file}, hashlib.sha256(data).hexdigest())
    folder = candidate.path.parent
    files: dict[str, SourceFile] = {}
    size = 0
    for file in _walk(candidate, folder, ""):
        size += len(file.data)
        if len(files) >= MAX_FILES or size > MAX_BYTES:
            raise PluginInvalid(
                f"{candidate.name}: a plugin has at most {MAX_FILES} files of source and"
                f" {MAX_BYTES >> 20} MiB in all."
            )
        files[file.module] = file
    listing = hashlib.sha256()
    on_disk = [file for file in files.values() if file.on_disk]
    for path, data in sorted((str(file.path.relative_to(folder)), file.data) for file in on_disk):
        listing.update(f"{hashlib.sha256(data).hexdigest()}  {path}\n".encode())
    return Source(candidate.name, files, listing.hexdigest())


def check_pins(source: Source, *pins: str | None) -> None:
    """Raise `UntrustedFile` where one of the `pins` is not the SHA-256 of what was read."""
    for pin in pins:
        if pin is not None and pin.lower() != source.sha256:
            raise UntrustedFile(
                f"{source.name}: its SHA-256 is {source.sha256}, and {pin} was asked for. Nothing"
                " of it was executed."
            )


def _walk(candidate: Candidate, folder: Path, package: str) -> Iterator[SourceFile]:
    """The files of a package and of those in it. A folder without `__init__.py` is one as well."""
    checked = not candidate.installed
    if checked:
        _check(folder, folder.lstat(), stat.S_ISDIR)
    init = folder / _INIT
    has_init = init.exists()
    if has_init:
        yield SourceFile(package, init, _read(init, checked=checked), is_package=True)
    below = package + "." if package else ""
    found = False
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in ("__pycache__", _INIT):
            continue
        if any(path.name.endswith(suffix) for suffix in EXTENSION_SUFFIXES):
            raise PluginInvalid(
                f"{candidate.name}: {path} is an extension module, which Python cannot unload."
                " Install it as a package of its own and import that."
            )
        if path.is_dir() and path.name.isidentifier():
            for file in _walk(candidate, path, below + path.name):
                found = True
                yield file
        elif path.suffix == ".py" and path.stem.isidentifier():
            if (path.parent / path.stem / _INIT).exists():
                continue  # as Python has it, the package goes before the module
            found = True
            data = _read(path, checked=checked)
            yield SourceFile(below + path.stem, path, data, is_package=False)
    if found and not has_init:
        yield SourceFile(package, init, b"", is_package=True, on_disk=False)


def _read(path: Path, *, checked: bool) -> bytes:
    # Not blocking, so that a pipe in the place of a file holds up nobody.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_NOFOLLOW if checked else 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UntrustedFile(f"{path} is a symbolic link: give the file it leads to.") from None
        if isinstance(error, FileNotFoundError):
            raise PluginNotFound(f"There is no file {path}.") from None
        raise PluginInvalid(f"{path} cannot be read: {error.strerror}.") from None
    with open(descriptor, "rb") as file:  # noqa: PTH123  # checked by its descriptor, not its name
        info = os.fstat(descriptor)
        if checked or not stat.S_ISREG(info.st_mode):
            _check(path, info, stat.S_ISREG)
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise PluginInvalid(f"{path} has more than {MAX_BYTES >> 20} MiB.")
    return data


def _check_folder(candidate: Candidate, folders: tuple[str, ...]) -> None:
    """Raise `UntrustedFile` where the path lies in none of the folders, or others could put
    something else in its place.
    """
    real = candidate.path.resolve()
    if folders and not any(
        real.is_relative_to(Path(folder).expanduser().resolve()) for folder in folders
    ):
        raise UntrustedFile(
            f"{candidate.path} lies in none of the plugins.folders: {', '.join(folders)}."
        )
    for folder in candidate.path.absolute().parents:
        try:
            info = folder.stat()
        except OSError:
            continue  # what cannot be reached is told when it is read
        # In a folder such as /tmp, others can add files of their own, but not touch those of ours.
        if _is_open_to_others(info) and not info.st_mode & stat.S_ISVTX:
            raise UntrustedFile(
                f"{folder} can be written by others, who could replace what lies in it:"
                f" chmod go-w {folder}"
            )


def _is_open_to_others(info: os.stat_result) -> bool:
    # A group that has its user's number is that user's alone, by custom.
    of_group = bool(info.st_mode & stat.S_IWGRP) and info.st_gid != info.st_uid
    return of_group or bool(info.st_mode & stat.S_IWOTH)


def _check(path: Path, info: os.stat_result, right_kind: Callable[[int], bool]) -> None:
    """Raise `UntrustedFile` where somebody else could change the file or folder."""
    if not right_kind(info.st_mode):
        raise UntrustedFile(f"{path} is not a regular file or folder.")
    if info.st_uid not in (0, os.geteuid()):
        raise UntrustedFile(
            f"{path} belongs to user {info.st_uid}: it must belong to the node's own or to root."
        )
    if _is_open_to_others(info):
        raise UntrustedFile(f"{path} can be written by others: chmod go-w {path}")
