"""Subscribers of all kinds at a node that is killed again and again while it is written to."""

from random import Random

import anyio
import pytest

from .brokers import NatsDialect, NatsNotifier, RedisEvents, ZeroMq
from .dialects import DIALECTS, buffered
from .place import until
from .subscribers import (
    END,
    LOST,
    PATTERN,
    Command,
    EventStream,
    Library,
    Mirror,
    Socket,
    SocketIo,
    Told,
    Webhook,
    WebSocket,
)

pytestmark = [pytest.mark.anyio, pytest.mark.one_python]

KILLS = 5
WRITES = 10_000
#: What one goes through at once: as many lines in one write, operations in a batch, or requests.
AT_ONCE = {"lines": 250, "batch": 150, "requests": 10}
#: A webhook is told of one change after the other, so it is told of a tenth of the keys only.
SLOW = "a.w.*"
KEYS = [*(f"a.{number}" for number in range(45)), *(f"a.w.{number}" for number in range(5))]


#: The one key that is never deleted, so that one can go on watching it in the NATS dialect.
KEPT = "a.0"


def twenty(place):
    return [
        *(EventStream(place, mode) for mode in ("every", "every", "every", "latest")),
        *(WebSocket(place, mode) for mode in ("every", "latest")),
        *(Library(place) for _ in range(2)),
        Webhook(place),
        Command(place),
        SocketIo(place),
        SocketIo(place, ("polling",)),
        *(Socket(place, dialect) for dialect in DIALECTS),
        *(Mirror(place) for _ in range(2)),
        ZeroMq(place),
        NatsNotifier(place),
        RedisEvents(place),
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
        key = self.dice.choice(KEYS)
        if key != KEPT and self.dice.random() < 0.15:
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
        """Write until so many are acknowledged; each of `moments` is set on the way."""
        async with self.place.http() as self.http:
            due = [count * (number + 1) // (len(moments) + 1) for number in range(len(moments))]
            while len(self.acknowledged) < count:
                await self.write()
                for moment, at in zip(moments, due, strict=True):
                    if len(self.acknowledged) >= at:
                        moment.set()


async def log_of(place, since):
    """All changes behind a token, as the log has them."""
    reader = EventStream(place)
    reader.place_known = since
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reader.run)
        await until(lambda: reader.told and reader.told[-1].key == END, "the whole log")
        tasks.cancel_scope.cancel()
    assert reader.gaps == []
    return reader.told


def check_log(log, writer):
    """Every acknowledged write is there, in order; what else is there was made, and once."""
    puts = [each.value for each in log if each.kind == "put" and each.key != END]
    assert len(puts) == len(set(puts))
    acknowledged = [value for kind, _, value in writer.acknowledged if kind == "put"]
    known = set(acknowledged)
    assert [value for value in puts if value in known] == acknowledged
    assert {value for value in puts if value not in known} <= writer.unknown


def check_parts(subscriber, log):
    """No hole and no repeat while a connection lasts; what is put in between it is not told."""
    told = subscriber.told
    ends = [*subscriber.begins[1:], len(told)]
    place = 0
    for begin, end in zip(subscriber.begins, ends, strict=True):
        part = told[begin:end]
        while log[place : place + len(part)] != part:
            place += 1
            assert place < len(log), f"{subscriber.name}: a part that the log does not have"
        place += len(part)
    assert place == len(log), f"{subscriber.name} was not told of the last change"
    assert len(told) > len(log) / 2, f"{subscriber.name} was told of little"


def as_told(subscriber, log):
    """The log, as far as the protocol of a subscriber has words for it."""
    match subscriber:
        case SocketIo():
            return [Told("put", each.key, each.value) for each in log if each.kind == "put"]
        case RedisEvents():
            return [Told(each.kind, each.key, None) for each in log]
    return log


async def write_and_kill(place, writes, kills, seed):
    """Everything acknowledged and unknown, after so many writes and kills."""
    writer = Writer(place, seed)
    moments = [anyio.Event() for _ in range(kills)]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(writer.run, writes, moments)
        for moment in moments:
            await moment.wait()
            await place.restart()
    return writer


async def test_kills_under_writing_leave_no_gap_no_hole_and_no_repeat(placed, watching):
    place = placed(notifier__webhook__pattern=SLOW)
    place.start()
    async with place.http() as http:
        since = (await http.get("/v1/status")).json()["token"]
    subscribers, dialect = twenty(place), NatsDialect(place)
    assert len(subscribers) == 20
    async with watching([*subscribers, dialect]):
        async with place.http() as http:
            (await http.put(f"/v1/kv/{KEPT}", content=b"0")).raise_for_status()
        assert await dialect.ask_for(KEPT) == 200
        writer = await write_and_kill(place, WRITES, KILLS, seed=3)
        writer.acknowledged.insert(0, ("put", KEPT, b"0"))
        # Those that have no word for where they were must be there for the last change.
        for subscriber in subscribers:
            if subscriber.begins is not None:
                await until(lambda one=subscriber: one.start == place.starts, subscriber.name)
        async with place.http() as http:
            await http.put(f"/v1/kv/{END}", content=b"end")
            records = (await http.get("/v1/kv", params={"pattern": PATTERN, "limit": 1000})).json()
        store = {each["key"]: each["value"].encode() for each in records["records"]}
        for subscriber in [*subscribers, dialect]:
            await until(lambda one=subscriber: one.caught_up(store), subscriber.name)
        log = await log_of(place, since)
    check_log(log, writer)
    for subscriber in subscribers:
        assert subscriber.gaps == [], subscriber.name
        if subscriber.every:
            wanted = [each for each in log if subscriber.watches(each.key)]
            assert subscriber.told == wanted, subscriber.name
        if subscriber.begins is not None:
            check_parts(subscriber, as_told(subscriber, log))
        else:
            wanted = {key: store[key] for key in store if subscriber.watches(key)}
            assert subscriber.store == wanted, subscriber.name
    assert dialect.store == {KEPT: store[KEPT]}
