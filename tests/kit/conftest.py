"""Whole nodes, as the tests from end to end have them."""

from ..end_to_end.conftest import clean_env, serve

__all__ = ["clean_env", "serve"]
