"""A plugin that kills its node, at once and for good, at a given moment of a migration.

The moment is named by the variable KILL_AT: `before-journal-N` or `behind-journal-N` around the
N-th time that the journal is written, `write-N` behind the N-th write to the storage that is
migrated to, or `behind-take-over`.
"""

import os
import signal

from nkv_core import hookimpl
from nkv_core.keyspace import local
from nkv_core.keyspace.migration import journal

MOMENT = os.environ.get("KILL_AT", "")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Times:
    def __init__(self):
        self.count = 0

    def up(self):
        self.count += 1
        return self.count


def watch_journal():
    times, write = Times(), journal.Journal.write

    def watched(self, entry):
        number = times.up()
        if f"before-journal-{number}" == MOMENT:
            die()
        write(self, entry)
        if f"behind-journal-{number}" == MOMENT:
            die()

    journal.Journal.write = watched


def watch_target():
    times, opening = Times(), local.LocalKeyspace.open_beside

    async def watched(self, storage, fence):
        apply = storage.apply

        def counted(batch):
            apply(batch)
            if f"write-{times.up()}" == MOMENT:
                die()

        storage.apply = counted
        return await opening(self, storage, fence)

    local.LocalKeyspace.open_beside = watched


def watch_take_over():
    take_over = local.LocalKeyspace.take_over

    def watched(self, engine):
        take_over(self, engine)
        if MOMENT == "behind-take-over":
            die()

    local.LocalKeyspace.take_over = watched


@hookimpl
def nkv_handlers(handlers):
    watch_journal()
    watch_target()
    watch_take_over()
