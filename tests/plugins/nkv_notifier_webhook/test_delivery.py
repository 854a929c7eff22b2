"""What a receiver gets: everything, in order, however it behaves."""

import hashlib
import hmac
import logging

import anyio
import httpx2
import pytest

from nkv_core.errors import SettingsError

pytestmark = pytest.mark.anyio
WEBHOOK = "nkv_notifier_webhook"
STATUS = "/v1/notifiers/webhook"


async def put_all(node, count, begin=0):
    for number in range(begin, begin + count):
        await node.keyspace.put("k", str(number).encode())


def values(posts):
    return [post.value for post in posts]


def numbers(count, begin=0):
    return [str(number) for number in range(begin, begin + count)]


async def ask(node, method, path):
    async with httpx2.AsyncClient(base_url=node.addresses[0], trust_env=False) as client:
        return await client.request(method, path)


async def shown(node):
    return (await ask(node, "GET", STATUS)).json()


async def settled(node, condition):
    """Wait until what the plugin shows fulfils a condition."""
    while not condition(status := await shown(node)):
        await anyio.sleep(0.01)
    return status


async def test_each_change_is_posted_once_and_in_order_with_its_token(serving, receiver):
    async with serving() as node:
        await node.keyspace.put("a", b"1")
        await node.keyspace.put("b", b"\xff")
        await node.keyspace.touch("a", 2**42)
        await node.keyspace.delete("a")
        await node.keyspace.clear("b")
        await receiver.until_taken(5)
        history = node.keyspace.history
    assert [post.json["event"] for post in receiver.got] == [
        "put",
        "put",
        "touch",
        "delete",
        "clear",
    ]
    assert [post.id for post in receiver.got] == [f"1.{history}.{n}" for n in range(1, 6)]
    first = receiver.got[0]
    assert first.path == "/hook"
    assert first.headers["content-type"] == "application/json"
    assert first.headers["nkv-event"] == "put"
    assert first.headers["nkv-token"] == first.json["token"] == first.id
    assert first.json["data"]["key"] == "a"
    assert first.json["data"]["version"] == f"{history}-1"
    assert receiver.got[1].json["data"]["value_base64"] == "/w=="
    assert "nkv-signature" not in first.headers


async def test_only_changes_of_the_pattern_are_sent(serving, receiver):
    async with serving(pattern="a.*") as node:
        await node.keyspace.put("b", b"no")
        await node.keyspace.put("a.b", b"yes")
        await receiver.until_taken(1)
    assert values(receiver.got) == ["yes"]


async def test_the_body_is_signed_with_the_secret_which_no_log_shows(
    serving, receiver, tmp_path, caplog
):
    secret = tmp_path / "secret"
    secret.write_bytes(b"keep it quiet\n")
    receiver.answers = [500]
    with caplog.at_level(logging.DEBUG, "nkv"):
        async with serving(secret_file=str(secret)) as node:
            await node.keyspace.put("a", b"1")
            await receiver.until_taken(1)
            seen = str(await shown(node))
    (post,) = receiver.taken
    digest = hmac.new(b"keep it quiet", post.body, hashlib.sha256).hexdigest()
    assert post.headers["nkv-signature"] == f"sha256={digest}"
    assert "keep it quiet" not in caplog.text + seen
    assert "answered 500" in caplog.text


@pytest.mark.parametrize("fault", [500, 404, "close", "hang", (301, "location: /other\r\n")])
async def test_what_the_receiver_did_not_take_is_sent_again_under_the_same_id(
    serving, receiver, fault
):
    receiver.answers = [200, fault, fault, 200, fault]
    async with serving(timeout=0.2 if fault == "hang" else 5.0) as node:
        await put_all(node, 4)
        await receiver.until_taken(4)
    assert values(receiver.taken) == numbers(4)
    assert values(receiver.got) == ["0", "1", "1", "1", "2", "2", "3"]
    assert len({post.id for post in receiver.got}) == 4
    assert {post.path for post in receiver.got} == {"/hook"}


async def test_a_receiver_that_is_not_there_gets_everything_once_it_is(serving, receiver):
    receiver.always = "close"
    async with serving(attempts=1000) as node:
        await put_all(node, 20)
        await receiver.until(lambda: len(receiver.got) >= 3)
        assert values(receiver.got) == ["0"] * len(receiver.got)
        receiver.always = 200
        await receiver.until_taken(20)
    assert values(receiver.taken) == numbers(20)


async def test_the_receiver_may_ask_for_time(serving, receiver):
    receiver.answers = [(503, "retry-after: 1\r\n")]
    async with serving(max_backoff=0.3, backoff=0.01) as node:
        await node.keyspace.put("a", b"1")
        await receiver.until(lambda: len(receiver.got) == 1)
        before = anyio.current_time()
        await receiver.until_taken(1)
        # It waits as long as it is asked to, up to the bound: no timing, only an order of size.
        assert anyio.current_time() - before > 0.1


async def test_a_node_that_restarts_goes_on_where_it_was(serving, receiver, flags):
    flags["storage.name"] = "diskcache"
    async with serving() as node:
        await put_all(node, 5)
        await receiver.until_taken(5)
        receiver.always = "hang"
        await put_all(node, 5, begin=5)
        await receiver.until(lambda: len(receiver.got) > 5)
    del flags["plugins.load"]
    for name in [name for name in flags if name.startswith("notifier.webhook")]:
        flags[f"kept {name}"] = flags.pop(name)
    kept = {name: flags.pop(name) for name in list(flags) if name.startswith("kept ")}
    async with serving() as node:  # nobody delivers meanwhile
        await put_all(node, 5, begin=10)
    flags.update({name.removeprefix("kept "): value for name, value in kept.items()})
    flags["plugins.load"] = [WEBHOOK]
    receiver.always = 200
    async with serving() as node:
        await put_all(node, 5, begin=15)
        await receiver.until_taken(20)
    assert values(receiver.taken) == numbers(20)


async def test_a_replacement_goes_on_with_the_change_that_was_under_way(serving, receiver):
    receiver.always = "hang"
    async with serving() as node:
        await put_all(node, 3)
        await receiver.until(lambda: len(receiver.got) == 1)
        await node.plugins.replace(WEBHOOK)
        await receiver.until(lambda: len(receiver.got) == 2)
        receiver.always = 200
        await node.plugins.replace(WEBHOOK)
        await receiver.until_taken(3)
        await settled(node, lambda status: status["behind"] == 0)
    assert values(receiver.got) == ["0", "0", "0", "1", "2"]


async def test_what_is_given_up_becomes_a_dead_letter_and_the_next_goes_on(
    serving, receiver, flags
):
    flags["storage.name"] = "diskcache"
    receiver.answers = [500, 500, 500]
    async with serving(attempts=3) as node:
        await put_all(node, 2)
        await receiver.until_taken(1)
        status = await settled(node, lambda status: status["delivered"] == 1)
    assert values(receiver.taken) == ["1"]
    async with serving(attempts=3) as node:
        again = await shown(node)
        (letter,) = again["dead_letters"]
        assert letter == status["dead_letters"][0]
        assert letter["id"] == receiver.got[0].id
        assert letter["key"] == "k"
        assert letter["attempts"] == 3
        assert letter["reason"] == "answered 500"
        assert letter["body"] == receiver.got[0].json
        assert (await ask(node, "DELETE", f"{STATUS}/dead-letters")).json() == {"removed": 1}
        assert (await shown(node))["dead_letters"] == []
        assert not [k for k, _ in await node.keyspace.state(WEBHOOK).items() if "dead" in k]


async def test_dead_letters_are_bounded_and_those_that_made_room_are_counted(serving, receiver):
    receiver.always = 500
    async with serving(attempts=1, dead_letters=3) as node:
        await put_all(node, 4)
        await node.keyspace.put("k", b"x" * 10_000)
        status = await settled(node, lambda status: len(receiver.got) == 5 == _given_up(status))
        letters = status["dead_letters"]
        assert [each["token"] for each in letters] == [post.id for post in receiver.got[2:]]
        assert letters[-1]["body"] is None
        assert status["dead_letters_dropped"] == 2
        stored = await node.keyspace.state(WEBHOOK).items()
        assert len([key for key, _ in stored if key.startswith("dead.")]) == 3


def _given_up(status):
    return status["dead_letters_dropped"] + len(status["dead_letters"])


@pytest.mark.parametrize("stored", [b"1.00000000000000aa.7", b"1.HISTORY.900", b"no token"])
async def test_a_place_that_is_gone_is_told_as_a_gap(serving, receiver, stored):
    async with serving() as node:
        await node.plugins.unload(WEBHOOK)
        await node.keyspace.put("a", b"lost")
        now = str(node.keyspace.token)
        stored = stored.replace(b"HISTORY", node.keyspace.history.encode())
        await node.keyspace.state(WEBHOOK).put("cursor.webhook", stored)
        await node.plugins.load(WEBHOOK)
        await node.keyspace.put("a", b"told")
        await receiver.until_taken(2)
        gap, change = receiver.taken
        assert gap.json["event"] == "gap"
        assert gap.json["data"]["upto"] == gap.json["token"] == now
        assert gap.json["data"]["snapshot_follows"] is False
        assert gap.id == f"{gap.json['data']['after']}..{now}"
        assert change.value == "told"
        await settled(node, lambda status: status["token"] == change.id)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"url": ""}, "needs the address"),
        ({"url": "ftp://example.org/"}, "no http or https"),
        ({"url": "http://"}, "no http or https"),
        ({"url": "http://[::1/"}, "no http or https"),
        ({"url": "https://me:secret@example.org/"}, "no password"),
        ({"pattern": "a\n"}, "pattern"),
        ({"dead_letters": 1000}, "at most 200"),
        ({"secret_file": "/nowhere/at/all"}, "cannot be read"),
        ({"allow_private": False}, "no public address"),
        ({"allow_private": False, "url": "http://localhost:1/"}, "no public address"),
        ({"allow_private": False, "url": "http://[::ffff:10.0.0.1]/"}, "no public address"),
    ],
)
async def test_settings_that_cannot_be_used_are_refused_by_name(serving, changed, said):
    with pytest.raises(SettingsError, match=said) as refused:
        async with serving(**changed):
            pass
    assert "me:secret" not in str(refused.value)


async def test_what_is_stored_is_put_right_where_it_is_damaged(serving, receiver):
    receiver.always = 500
    async with serving(attempts=1) as node:
        await node.plugins.unload(WEBHOOK)
        await node.keyspace.state(WEBHOOK).put("dead.x", b"rubbish")
        await node.plugins.load(WEBHOOK)
        assert (await shown(node))["dead_letters_dropped"] == 1
        assert await node.keyspace.state(WEBHOOK).get("dead.x") is None
