"""Many clients at once: nothing is lost, and nothing is half done."""

import threading
from contextlib import suppress

import pytest

redis = pytest.importorskip("redis")

DEADLINE = 60  # seconds
CLIENTS, TIMES = 8, 40


def together(work):
    """Have each of several threads do this, with its number; raises what the first one raised."""
    failures = []

    def run(number):
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001  # raised below
            failures.append(error)

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    if failures:
        raise failures[0]


@pytest.fixture
def connected(either):
    def connect():
        return redis.Redis(port=either.port, socket_timeout=DEADLINE)

    return connect


def test_counting_loses_nothing(connected):
    seen = []

    def count(_):
        with connected() as db:
            seen.extend(db.incr("n") for _ in range(TIMES))

    together(count)
    assert sorted(seen) == list(range(1, CLIENTS * TIMES + 1))


def test_appending_loses_nothing(connected):
    def append(number):
        with connected() as db:
            for _ in range(TIMES):
                db.append("text", str(number))

    together(append)
    with connected() as db:
        text = db.get("text").decode()
    assert {c: text.count(c) for c in set(text)} == {str(n): TIMES for n in range(CLIENTS)}


def test_only_one_sets_what_is_not_there(connected):
    won = []

    def race(number):
        with connected() as db:
            won.extend(
                (turn, number) for turn in range(TIMES) if db.set(f"lock{turn}", number, nx=True)
            )

    together(race)
    assert sorted(turn for turn, _ in won) == list(range(TIMES))
    with connected() as db:
        for turn, number in won:
            assert int(db.get(f"lock{turn}")) == number


def test_money_is_neither_made_nor_lost(connected):
    """Transfers by watching and trying again, while others look at all accounts at once."""
    with connected() as db:
        db.mset({"x": 1000, "y": 1000})
    sums = set()

    def transfer(number):
        with connected() as db:
            for turn in range(TIMES // 4):
                amount = (number + turn) % 7
                if number % 2:
                    sums.add(sum(map(int, db.mget("x", "y"))))
                    continue

                def move(pipe, amount=amount):
                    left, right = int(pipe.get("x")), int(pipe.get("y"))
                    pipe.multi()
                    pipe.set("x", left - amount)
                    pipe.set("y", right + amount)

                db.transaction(move, "x", "y", watch_delay=0.001)

    together(transfer)
    with connected() as db:
        sums.add(sum(map(int, db.mget("x", "y"))))
    assert sums == {2000}


def test_records_are_renamed_as_a_whole(connected):
    """A record moves to and fro: whoever looks sees it in just one place."""
    with connected() as db:
        db.set("here", "1")
    seen = set()

    def move(number):
        with connected() as db:
            for _ in range(TIMES):
                if number % 2:
                    seen.add(db.execute_command("EXISTS", "here", "there"))
                    continue
                for old, new in (("here", "there"), ("there", "here")):
                    with suppress(redis.ResponseError):  # somebody else has moved it
                        db.rename(old, new)

    together(move)
    assert seen == {1}
