"""The command `nkv`: arguments and printing only."""

from nkv_core.cli.main import main

__all__ = ["main"]
