"""What an operator may set, and what diskcache is always told."""

from types import MappingProxyType
from typing import Final

import msgspec

MIB: Final = 1024 * 1024
PAGE_BYTES: Final = 4096
CHECKPOINT_PAGES: Final = 1_000  # that are written, before they are moved into the file
LONG_PAGES: Final = 20_000  # of the write-ahead log, from which on it is to begin anew
LONGEST_PAGES: Final = 40_000  # from which on the writer itself moves all of it
WAL_KEPT_BYTES: Final = LONGEST_PAGES * PAGE_BYTES  # a longer log is cut back once it can be


class DiskcacheSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Section `storage.diskcache`."""

    directory: str | None = None  #: where the file is; a folder in the data directory where None
    page_cache_bytes: int = 32 * MIB  #: of the connection that writes
    mapped_bytes: int = 1024 * MIB  #: of the file, for reading it without copying; at most 2 GiB
    max_wal_bytes: int = 1024 * MIB  #: of the write-ahead log, while a stranger's reader pins it


#: Set on every open, since diskcache obeys what the file says where it is not told otherwise. Its
#: defaults drop data beyond 1 GB and do not wait for the disk.
FORCED: Final = MappingProxyType(
    {
        "cull_limit": 0,
        "disk_min_file_size": 2**62,  # values stay in the file: diskcache never syncs side files
        "eviction_policy": "none",
        "sqlite_auto_vacuum": 0,
        "sqlite_journal_mode": "wal",
        "sqlite_mmap_size": 0,  # ours to map, on the connections that read
        "sqlite_synchronous": 2,  # FULL: a commit is on disk when it returns
        "sqlite_wal_autocheckpoint": LONGEST_PAGES,
        "statistics": 0,
        "tag_index": 0,
    }
)
