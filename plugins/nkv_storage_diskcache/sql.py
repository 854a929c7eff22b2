"""The statements, and the key prefixes that tell the tables apart.

All tables live in diskcache's one. The writer says everything in one statement where it can: each
statement lets go of the interpreter's lock, and getting it back from a busy event loop takes up to
5 ms. Next to such a loop, one statement of 64 rows is some 70 times faster than 64 of one row
(`executemany`), and three times faster than the same one between a BEGIN and a COMMIT.
"""

from functools import lru_cache
from types import MappingProxyType
from typing import Final

from nkv_core.contracts.storage import Table

#: Without a gap, so that two comparisons find every key that is not one of ours.
PREFIXES: Final = MappingProxyType[Table, bytes](
    {
        "records": b"\x01",
        "tombstones": b"\x02",
        "expiry": b"\x03",
        "changes": b"\x04",
        "state": b"\x05",
        "meta": b"\x06",
    }
)
BEHIND: Final = MappingProxyType[Table, bytes](
    {table: bytes((prefix[0] + 1,)) for table, prefix in PREFIXES.items()}
)

APPLICATION_ID: Final = 0x6E6B7601  # "nkv", 1: in the file's header, for `file` and for us
FORMAT: Final = 1

#: Counts are kept by the file itself: as right as its transactions, and read without counting.
SCHEMA: Final = (
    "CREATE TABLE nkv_counts (prefix BLOB PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID",
    "INSERT INTO nkv_counts VALUES (x'01', 0), (x'02', 0), (x'03', 0), (x'04', 0), (x'05', 0),"
    " (x'06', 0)",
    "CREATE TRIGGER nkv_counts_insert AFTER INSERT ON Cache BEGIN UPDATE nkv_counts"
    " SET count = count + 1 WHERE prefix = substr(NEW.key, 1, 1); END",
    "CREATE TRIGGER nkv_counts_delete AFTER DELETE ON Cache BEGIN UPDATE nkv_counts"
    " SET count = count - 1 WHERE prefix = substr(OLD.key, 1, 1); END",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {FORMAT}",
)

#: A view that exists for the writer's connection only: inserting into it puts a value, or deletes
#: the key where the value is NULL. So a batch with both is one statement too.
WRITER_SCHEMA: Final = (
    "CREATE TEMP VIEW nkv_batch (key, value) AS SELECT NULL, NULL",
    "CREATE TEMP TRIGGER nkv_batch_insert INSTEAD OF INSERT ON nkv_batch BEGIN"
    " DELETE FROM Cache WHERE key = NEW.key AND NEW.value IS NULL;"
    " INSERT INTO Cache (key, raw, mode, value) SELECT NEW.key, 1, 1, NEW.value"
    " WHERE NEW.value IS NOT NULL ON CONFLICT (key, raw)"
    " DO UPDATE SET mode = 1, size = 0, filename = NULL, value = excluded.value; END",
)

ROWS_AT_ONCE: Final = 256  # of one statement: more gain little, and each length is a statement

_PUT_ROWS: Final = (
    "INSERT INTO Cache (key, raw, mode, value) VALUES ROWS ON CONFLICT (key, raw)"
    " DO UPDATE SET mode = 1, size = 0, filename = NULL, value = excluded.value"
)
_WRITE_ROWS: Final = "INSERT INTO nkv_batch VALUES ROWS"
GET: Final = "SELECT raw, mode, filename, value FROM Cache WHERE key = ?"
_GET_ROWS: Final = "SELECT key, raw, mode, filename, value FROM Cache WHERE key IN"
SCAN: Final = (
    "SELECT key, raw, mode, filename, value FROM Cache"
    " WHERE key >= ? AND key < ? ORDER BY key LIMIT ?"
)
SCAN_REVERSE: Final = SCAN.replace("ORDER BY key", "ORDER BY key DESC")
COUNT: Final = "SELECT count FROM nkv_counts WHERE prefix = ?"
DELETE_RANGE: Final = "DELETE FROM Cache WHERE key >= ? AND key < ?"
#: Text and numbers sort before every blob, so the first comparison finds them too.
FOREIGN_KEY: Final = "SELECT 1 FROM Cache WHERE key IS NULL OR key < x'01' OR key >= x'07' LIMIT 1"


@lru_cache(ROWS_AT_ONCE)
def get_rows(count: int) -> str:
    """The statement that finds so many keys."""
    return f"{_GET_ROWS} ({', '.join('?' * count)})"


@lru_cache(ROWS_AT_ONCE)
def put_rows(count: int) -> str:
    """The statement that puts so many rows: keys and values by turns."""
    rows = ", ".join(["(?, 1, 1, ?)"] * count)
    return _PUT_ROWS.replace("ROWS", rows)


@lru_cache(ROWS_AT_ONCE)
def write_rows(count: int) -> str:
    """The statement that puts or deletes so many rows: keys and values or NULL by turns."""
    rows = ", ".join(["(?, ?)"] * count)
    return _WRITE_ROWS.replace("ROWS", rows)
