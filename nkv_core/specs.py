"""SPEC: what names a plugin that is to be loaded. It is the name of an entry point, a module, or a
path to a file or to the folder of a package.
"""

import os
from pathlib import Path


def is_path(spec: str) -> bool:
    """Whether a SPEC is a path: it has a separator, or looks like one's file or home."""
    return os.sep in spec or spec.endswith(".py") or spec.startswith("~")


def absolute_spec(spec: str) -> str:
    """A SPEC that means the same wherever the working directory is."""
    return str(Path(spec).expanduser().absolute()) if is_path(spec) else spec
