"""Migration: a node's storage is exchanged for another one while it serves."""

from nkv_core.keyspace.migration.journal import Entry, Journal, Place
from nkv_core.keyspace.migration.migration import Migration

__all__ = ["Entry", "Journal", "Migration", "Place"]
