"""Redis' own clients: redis-py in both of its forms and both protocols, and the programs."""

import shutil
import subprocess
import time

import anyio
import pytest

redis = pytest.importorskip("redis")
from redis import asyncio as redis_asyncio  # noqa: E402
from redis.backoff import NoBackoff  # noqa: E402
from redis.retry import Retry  # noqa: E402

DEADLINE = 60


@pytest.fixture(params=[2, 3])
def db(request, either):
    with redis.Redis(port=either.port, protocol=request.param, socket_timeout=DEADLINE) as db:
        yield db


def test_values(db):
    assert db.set("a", "1") is True
    assert db.get("a") == b"1"
    assert db.set("a", "2", nx=True) is None
    assert db.set("a", "2", xx=True, get=True) == b"1"
    assert db.execute_command("SETNX", "b", "x") in (True, 1)
    assert db.execute_command("SETEX", "c", 100, "y") in (True, b"OK")
    assert db.execute_command("PSETEX", "c", 100_000, "y") in (True, b"OK")
    assert 0 < db.ttl("c") <= 100
    assert db.execute_command("GETSET", "a", "3") == b"2"
    assert db.getdel("a") == b"3"
    assert db.getex("c", persist=True) == b"y"
    assert db.ttl("c") == -1
    assert db.mset({"a": "1", "d": b"\x00\xff"}) is True
    assert db.mget("a", "d", "nope") == [b"1", b"\x00\xff", None]
    assert db.msetnx({"a": "9", "z": "9"}) is False
    assert db.append("a", "23") == 3
    assert db.strlen("a") == 3
    assert db.getrange("a", 0, 1) == b"12"
    assert db.setrange("a", 1, "x") == 3
    assert db.get("a") == b"1x3"


def test_numbers(db):
    assert db.incr("n") == 1
    assert db.incrby("n", 5) == 6
    assert db.decr("n") == 5
    assert db.decrby("n", 10) == -5
    db.set("t", "x")
    with pytest.raises(redis.ResponseError, match="not an integer"):
        db.incr("t")


def test_keys(db):
    db.mset({"a": 1, "b": 2, "c.x": 3, "c.y": 4})
    assert db.exists("a", "b", "nope", "a") == 3
    assert sorted(db.keys("c.*")) == [b"c.x", b"c.y"]
    assert sorted(db.scan_iter(match="c*", count=1)) == [b"c.x", b"c.y"]
    assert len(list(db.scan_iter(_type="STRING"))) == 4
    assert db.type("a") == b"string"
    assert db.type("nope") == b"none"
    assert db.dbsize() == 4
    assert db.randomkey() in (b"a", b"b", b"c.x", b"c.y")
    assert db.rename("a", "z") is True
    assert db.renamenx("z", "b") is False
    assert db.delete("z", "nope") == 1
    assert db.unlink("b") == 1
    assert db.flushdb() is True
    assert db.randomkey() is None
    assert db.dbsize() == 0


def test_expiry(db):
    db.set("a", 1, px=50_000)
    assert 0 < db.pttl("a") <= 50_000
    assert db.set("a", 2, keepttl=True)
    assert db.pttl("a") > 0
    assert db.persist("a") is True
    assert db.expire("a", 100) is True
    assert db.expire("a", 50, gt=True) is False
    assert db.pexpire("a", 100_000) is True
    assert db.expireat("a", 4_000_000_000) is True
    assert db.expiretime("a") == 4_000_000_000
    assert db.expire("a", -1) is True
    assert db.get("a") is None
    assert db.ttl("a") == -2


def test_transactions(db):
    with db.pipeline() as pipe:
        assert pipe.set("a", 1).incr("a").get("a").execute() == [True, 2, b"2"]
    with db.pipeline() as pipe:
        pipe.watch("a")
        db.set("a", "changed")
        pipe.multi()
        pipe.set("a", "mine")
        with pytest.raises(redis.WatchError):
            pipe.execute()
    assert db.get("a") == b"changed"
    assert db.transaction(lambda pipe: pipe.multi() or pipe.set("a", "t"), "a") == [True]


def test_a_long_pipeline_without_transaction(db):
    with db.pipeline(transaction=False) as pipe:
        for n in range(2000):
            pipe.set(f"k{n}", n)
            pipe.get(f"k{n}")
        replies = pipe.execute()
    assert replies == [each for n in range(2000) for each in (True, str(n).encode())]


def test_the_connection(db):
    assert db.ping() is True
    assert db.echo("x") == b"x"
    assert db.client_id() > 0
    assert db.client_setname("me") is True
    assert db.client_getname() in ("me", b"me")
    assert db.client_info()["name"] == "me"
    assert any(each["name"] == "me" for each in db.client_list())
    assert db.info()["redis_mode"] == "standalone"
    assert db.info("server")["redis_version"] == "7.4.0"
    assert db.config_get("save") == {"save": ""}
    assert db.command_count() == len(db.command())
    assert isinstance(db.time()[0], int)
    with pytest.raises(redis.ResponseError, match="unknown command"):
        db.execute_command("NOPE")


def test_messages(db):
    with db.pubsub() as pubsub:
        pubsub.subscribe("news")
        pubsub.psubscribe("n*")
        assert pubsub.get_message(timeout=DEADLINE)["type"] == "subscribe"
        assert pubsub.get_message(timeout=DEADLINE)["type"] == "psubscribe"
        assert db.publish("news", "hello") == 2
        told = [pubsub.get_message(timeout=DEADLINE) for _ in range(2)]
        assert sorted(each["type"] for each in told) == ["message", "pmessage"]
        assert {each["data"] for each in told} == {b"hello"}
        assert db.pubsub_channels() == [b"news"]
        assert db.pubsub_numsub("news", "x") == [(b"news", 1), (b"x", 0)]
        assert db.pubsub_numpat() == 1


def test_a_client_that_was_killed_comes_back(db):
    number = db.client_id()
    with redis.Redis(connection_pool=redis.ConnectionPool(**db.get_connection_kwargs())) as other:
        assert other.client_kill_filter(_id=number) == 1
    assert db.ping() is True


@pytest.mark.parametrize("protocol", [2, 3])
def test_the_asynchronous_client(either, protocol):
    async def main():
        with anyio.fail_after(DEADLINE):
            async with redis_asyncio.Redis(
                port=either.port, protocol=protocol, retry=Retry(NoBackoff(), 0)
            ) as db:
                assert await db.set("a", 1) is True
                async with db.pipeline() as pipe:
                    assert await pipe.incr("a").get("a").execute() == [2, b"2"]
                async with db.pubsub() as pubsub:
                    await pubsub.subscribe("x")
                    await pubsub.get_message(timeout=DEADLINE)
                    assert await db.publish("x", "y") == 1
                    assert (await pubsub.get_message(timeout=DEADLINE))["data"] == b"y"
                assert [key async for key in db.scan_iter()] == [b"a"]

    anyio.run(main)


def test_client_side_caching_of_redis_py(served):
    from redis.cache import CacheConfig

    with (
        redis.Redis(port=served.port, protocol=3, cache_config=CacheConfig()) as db,
        redis.Redis(port=served.port) as other,
    ):
        other.set("a", 1)
        assert db.get("a") == b"1"
        assert db.get("a") == b"1"
        assert db.get_cache().size == 1
        other.set("a", 2)
        assert other.get("a") == b"2"
        end = time.monotonic() + DEADLINE
        while db.get("a") != b"2":  # it looks for what it is told before each answer
            assert time.monotonic() < end
            time.sleep(0.001)


# --- programs -------------------------------------------------------------------------------------


def run(program, *arguments, given=None):
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed")
    done = subprocess.run(
        [found, *arguments], capture_output=True, timeout=DEADLINE, input=given, check=True
    )
    return done.stdout


def test_redis_cli(served):
    def cli(*words, given=None):
        return run("redis-cli", "-p", str(served.port), *words, given=given)

    assert cli("set", "a", "1") == b"OK\n"
    assert cli("-3", "incr", "a") == b"2\n"
    assert cli("-2", "get", "a") == b"2\n"
    assert cli("--scan") == b"a\n"
    assert b"redis_version" in cli("info", "server")
    assert cli(given=b"multi\nset b 1\nget b\nexec\n") == b"OK\nQUEUED\nQUEUED\nOK\n1\n"
    assert cli("nope").startswith(b"ERR unknown command 'nope'")
    assert b"errors: 0, replies: 2" in cli(
        "--pipe", given=b"SET p 1\r\n*3\r\n$3\r\nSET\r\n$1\r\nq\r\n$1\r\n2\r\n"
    )
    assert b"string" in cli("--bigkeys")


def test_redis_benchmark(either):
    out = run(
        *("redis-benchmark", "-p", str(either.port), "-n", "400", "-c", "20", "-P", "4", "-q"),
        *("-t", "ping_inline,ping_mbulk,set,get,incr,mset", "-r", "100", "-d", "20"),
    )
    assert out.count(b"requests per second") == 6
    assert b"rror" not in out
