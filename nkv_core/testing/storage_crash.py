"""A program that writes to a storage until it is killed, and the check of what it left.

`python -m nkv_core.testing.storage_crash PLUGIN NAME SETTINGS` opens the storage and makes batch
after batch, printing the number of each once `apply` has returned. Every batch touches several
tables, overwrites and deletes, so that one that is there in part shows.
"""

import itertools
import sys
from importlib import import_module
from typing import Any, Final

import msgspec

from nkv_core.contracts.storage import TABLES, Batch, Storage, Table

_KEYS: Final = 40  # a batch, over what the last few batches wrote


def make_storage(plugin: str, name: str, settings: dict[str, Any]) -> Storage:
    """The storage that a plugin's hooks offer by this name, not yet open."""
    module = import_module(plugin)
    converted: Any = settings
    if hasattr(module, "nkv_settings"):
        converted = msgspec.convert(settings, module.nkv_settings())
    storage: Storage | None = module.nkv_storage(name=name, settings=converted)
    if storage is None:
        raise LookupError(f"{plugin} offers no storage called {name!r}.")
    return storage


def batch_number(number: int) -> Batch:
    """The batch of this number, always the same."""
    batch = Batch()
    batch.put("meta", b"last", b"%d" % number)
    for key in range(_KEYS):
        batch.put("records", b"%d" % ((number * 7 + key) % 200), b"%d" % number * (1 + key % 50))
        batch.delete("records", b"%d" % ((number * 7 + key + 100) % 200))
    batch.put("changes", b"%08d" % number, b"%d" % number * 100)
    batch.delete("changes", b"%08d" % (number - 20))
    return batch


def left_by(batches: int) -> dict[Table, dict[bytes, bytes]]:
    """What is to be in the tables behind so many batches."""
    tables: dict[Table, dict[bytes, bytes]] = {table: {} for table in TABLES}
    for number in range(batches):
        for table, writes in batch_number(number).writes.items():
            for key, value in writes.items():
                if value is None:
                    tables[table].pop(key, None)
                else:
                    tables[table][key] = value
    return tables


def main(plugin: str, name: str, settings: str) -> None:
    """Write until killed, going on behind the last batch that is there."""
    storage = make_storage(plugin, name, msgspec.json.decode(settings))
    storage.open()
    last = storage.get("meta", b"last")
    for number in itertools.count(0 if last is None else int(last) + 1):
        storage.apply(batch_number(number))
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
