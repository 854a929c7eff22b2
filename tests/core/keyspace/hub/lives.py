"""The life of a watcher that loses its connection and comes back, and how it has to end."""


class Client:
    """One who watches, loses the connection, and comes back with the last token."""

    def __init__(self, hub, follower, watched, mode, *, snapshot, pending):
        self.hub, self.follower, self.mode = hub, follower, mode
        self.watched, self.pending = watched, pending
        self.snapshot = snapshot
        self.watcher = None
        self.start = follower.keyspace.token.revision
        follower.begin(snapshot=snapshot)
        self.open()

    def open(self):
        text, subtree = self.watched
        self.watcher = self.hub.watch(
            text,
            subtree=subtree,
            mode=self.mode,
            snapshot=self.snapshot,
            since=self.follower.kept,
            pending=self.pending,
        )

    def resume(self):
        if self.watcher is None:
            follower = self.follower
            if follower.kept is None:
                follower.begin(snapshot=True)
            elif follower.snapshot is not None:  # cut in a snapshot behind a gap
                follower.snapshot = None
                follower.place = follower.kept.revision
            self.open()

    def drop(self):
        if self.watcher is not None:
            self.watcher.close()
            self.watcher = None

    def live(self):
        return self.watcher.info().state == "live"

    def take(self, limit=1000):
        return [] if self.watcher is None else self.follower.take(self.watcher, limit)


def finish(client, keyspace, hub):
    told = client.follower
    assert client.watcher.token == hub.token
    assert told.snapshot is None
    if client.snapshot or told.complete:
        told.check_equal()
    elif not told.gaps:
        assert told.store == {
            key: (record.value, record.revision, record.expires)
            for key, record in keyspace.records.items()
            if told.watched.matches(key) and record.revision > client.start
        }
    if client.mode == "every":
        left = [c for c in keyspace.log if c.revision > told.place and told._is_for(c)]
        assert not left, "the last changes were not told"
