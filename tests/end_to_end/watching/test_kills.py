"""Subscribers of all kinds at a node that is killed again and again while it is written to."""

import os
from random import Random

import anyio
import pytest

from .dialects import DIALECTS, buffered
from .place import until
from .subscribers import (
    LOST,
    PATTERN,
    Command,
    EventStream,
    Library,
    Mirror,
    Socket,
    SocketIo,
    Webhook,
    WebSocket,
)

pytestmark = pytest.mark.anyio

KILLS = 5
WRITES = 10_000
#: What one goes through at once: as many lines in one write, operations in a batch, or requests.
AT_ONCE = {"lines": 60, "batch": 40, "requests": 5}
KEYS = 50


def twenty(place):
    return [
        *(EventStream(place) for _ in range(4)),
        *(WebSocket(place) for _ in range(3)),
        *(Library(place) for _ in range(3)),
        Webhook(place),
        *(Command(place) for _ in range(2)),
        SocketIo(place),
        SocketIo(place, ("polling",)),
        *(Socket(place, dialect) for dialect in DIALECTS),
        *(Mirror(place) for _ in range(2)),
    ]


class Writer:
    """Writes, each value once, and knows which writes were acknowledged."""

    def __init__(self, place, seed):
        self.place = place
        self.dice = Random(seed)
        self.made = 0
        self.acknowledged = []  #: in the order in which they were made
        self.unknown = set()  #: numbers of writes whose answer was lost

    def _next(self):
        """The next write: its kind, its key, and the value of a put."""
        self.made += 1
        key = f"a.{self.dice.randrange(KEYS)}"
        if self.dice.random() < 0.15:
            return "delete", key, None
        return "put", key, b"%d" % self.made

    async def write(self):
        """Some writes over one of several ways, however it may end."""
        way = self.dice.choice(list(AT_ONCE))
        writes = [self._next() for _ in range(AT_ONCE[way])]
        known = []
        try:
            with anyio.fail_after(30):
                await getattr(self, f"_{way}")(writes, known)
        except LOST:
            await anyio.sleep(0.01)
        self.acknowledged += known
        done = {write[2] for write in known}
        self.unknown |= {write[2] for write in writes if write[2] and write[2] not in done}

    async def _lines(self, writes, known):
        """Pipelined: many in one packet, answered in order."""
        line = DIALECTS[0]
        async with await self.place.connect() as stream:
            verbs = {"put": "PUT", "delete": "DEL"}
            await stream.send(
                b"".join(line.request(verbs[kind], "1", "me", k, v) for kind, k, v in writes)
            )
            receiving = buffered(stream)
            for write in writes:
                if line.succeeded(await line.read(receiving)):
                    known.append(write)

    async def _batch(self, writes, known):
        """All or nothing."""
        operations = [
            {"op": kind, "key": key, **({"value": value.decode()} if value else {})}
            for kind, key, value in writes
        ]
        answer = await self.http.post("/v1/batch", json={"operations": operations})
        answer.raise_for_status()
        known += writes

    async def _requests(self, writes, known):
        for kind, key, value in writes:
            if kind == "put":
                answer = await self.http.put(f"/v1/kv/{key}", content=value)
                answer.raise_for_status()
            else:
                answer = await self.http.delete(f"/v1/kv/{key}")
                assert answer.status_code in (204, 404)
                if answer.status_code == 404:
                    continue
            known.append((kind, key, value))

    async def run(self, count, moments):
        """Write so many; each of `moments` is set on the way."""
        async with self.place.http() as self.http:
            due = [count * (number + 1) // (len(moments) + 1) for number in range(len(moments))]
            while self.made < count:
                await self.write()
                for moment, at in zip(moments, due, strict=True):
                    if self.made >= at:
                        moment.set()


async def log_of(place, since):
    """All changes behind a token, as the log has them."""
    reader = EventStream(place)
    reader.place_known = since
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reader.run)
        await until(lambda: reader.told and reader.told[-1].key == "a.end", "the whole log")
        tasks.cancel_scope.cancel()
    return reader.told


def check_log(log, writer):
    """Every acknowledged write is there, in order; what else is there was made, and once."""
    puts = [each.value for each in log if each.kind == "put" and each.key != "a.end"]
    assert len(puts) == len(set(puts))
    acknowledged = [value for kind, _, value in writer.acknowledged if kind == "put"]
    known = set(acknowledged)
    assert [value for value in puts if value in known] == acknowledged
    assert {value for value in puts if value not in known} <= writer.unknown


def check_socketio(subscriber, puts):
    """No hole and no repeat while a connection lasts; what is put in between it is not told."""
    told = [(each.key, each.value) for each in subscriber.told]
    assert len(told) == len(set(told))
    ends = [*subscriber.begins[1:], len(told)]
    place = 0
    for begin, end in zip(subscriber.begins, ends, strict=True):
        if begin == end:
            continue
        place = puts.index(told[begin], place)
        assert told[begin:end] == puts[place : place + end - begin]
        place += end - begin
    assert place == len(puts), "the last change was not told"


async def kill_under_writing(place, watching, writes, kills, seed):
    place.start()
    async with place.http() as http:
        since = (await http.get("/v1/status")).json()["token"]
    subscribers = twenty(place)
    assert len(subscribers) == 20
    async with watching(subscribers):
        writer = Writer(place, seed)
        moments = [anyio.Event() for _ in range(kills)]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(writer.run, writes, moments)
            for moment in moments:
                await moment.wait()
                await place.restart()
        # Those that have no word for where they were must be there for the last change.
        for subscriber in subscribers:
            if not subscriber.every and not isinstance(subscriber, Mirror):
                await until(lambda one=subscriber: one.start == place.starts, subscriber.name)
        async with place.http() as http:
            await http.put("/v1/kv/a.end", content=b"end")
            records = (await http.get("/v1/kv", params={"pattern": PATTERN, "limit": 1000})).json()
        store = {each["key"]: each["value"].encode() for each in records["records"]}
        for subscriber in subscribers:
            await until(lambda one=subscriber: "a.end" in one.store, subscriber.name)
        log = await log_of(place, since)
    check_log(log, writer)
    puts = [(each.key, each.value) for each in log if each.kind == "put"]
    for subscriber in subscribers:
        assert subscriber.gaps == [], subscriber.name
        if subscriber.every:
            assert subscriber.told == log, subscriber.name
        if subscriber.puts_only:
            check_socketio(subscriber, puts)
        else:
            assert subscriber.store == store, subscriber.name
    return log


async def test_kills_under_writing_leave_no_gap_no_hole_and_no_repeat(placed, watching):
    writes = WRITES if os.environ.get("NKV_SOAK") == "1" else WRITES // 5
    place = placed()
    log = await kill_under_writing(place, watching, writes, KILLS, seed=3)
    assert len(log) > writes / 2
