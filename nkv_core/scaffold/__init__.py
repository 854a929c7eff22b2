"""Scaffold: writes a whole distribution with a plugin that works, for somebody to begin with.

The files are in `templates`, those of all kinds in `templates/any`. They end in `.txt`, so that no
tool takes them for code of this package. In their text, and in their paths, `[[module]]` stands for
the module's name, and so on: see `Names`.
"""

import re
import shutil
from importlib.resources import files
from importlib.resources.abc import Traversable
from keyword import iskeyword
from pathlib import Path
from typing import Final, Literal, get_args

import msgspec

from nkv_core.errors import BadRequest, DataDirError

Kind = Literal["storage", "transport", "notifier", "mesh", "handlers"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

_NAME: Final = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_LONGEST: Final = 40
_MARK: Final = re.compile(r"\[\[(\w+)\]\]")


class Names(msgspec.Struct, frozen=True):
    """What a plugin is called, in all the ways in which it is."""

    name: str  #: as its author gave it
    module: str  #: also the plugin's name
    distribution: str  #: as it is installed
    prefix: str  #: of the names of its classes
    kind: str


def names_of(kind: Kind, name: str) -> Names:
    """The names of a plugin. Raises `BadRequest` where `name` is none."""
    if _NAME.fullmatch(name) is None or iskeyword(name) or len(name) > _LONGEST:
        raise BadRequest(
            f"{name!r} is no name for a plugin: small letters and digits, with single underscores "
            f"between them, beginning with a letter, {_LONGEST} at most."
        )
    module = f"nkv_{name}" if kind == "handlers" else f"nkv_{kind}_{name}"
    prefix = "".join(part.capitalize() for part in name.split("_"))
    return Names(name, module, module.replace("_", "-"), prefix, kind)


def write(kind: Kind, name: str, into: Path) -> Path:
    """Write a distribution into a new folder below `into`; returns that folder.

    Raises `BadRequest` where the name is none, and `DataDirError` where the folder exists or cannot
    be written; then nothing is left there.
    """
    names = names_of(kind, name)
    folder = into / names.distribution
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise DataDirError(f"{folder} exists already.") from None
    except OSError as error:
        raise DataDirError(f"{folder} cannot be made: {error.strerror}.") from error
    try:
        templates = files(__name__) / "templates"
        for part in ("any", kind):
            _copy(templates / part, folder, names)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise DataDirError(f"{folder} cannot be written: {error.strerror}.") from error
    return folder


def _copy(source: Traversable, target: Path, names: Names) -> None:
    for entry in source.iterdir():
        name = _filled(entry.name.removesuffix(".txt"), names)
        if entry.is_dir():
            (target / name).mkdir(exist_ok=True)
            _copy(entry, target / name, names)
        elif entry.name.endswith(".txt"):
            (target / name).write_text(_filled(entry.read_text("utf-8"), names), "utf-8")


def _filled(text: str, names: Names) -> str:
    return _MARK.sub(lambda mark: str(getattr(names, mark[1])), text)
