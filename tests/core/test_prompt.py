"""Prompt: reading, writing and transactions as plain functions, over any keyspace."""

from collections.abc import Awaitable

import anyio
import pytest

from nkv_core.auth import GuardedKeyspace
from nkv_core.contracts.identity import Identity, Right
from nkv_core.contracts.keyspace import Clear, Delete, Put, Touch, Written
from nkv_core.contracts.settings import KeyspaceSettings
from nkv_core.errors import Forbidden, InvalidKey, Overloaded, ValueTooLarge
from nkv_core.keyspace import LocalKeyspace
from nkv_core.prompt import TRIES, Optimistic, prompt_of
from nkv_core.testing import FaultyStorage

pytestmark = pytest.mark.anyio


def storage(where):
    from nkv_storage_memory.storage import MemoryStorage

    reads = "thread" if where == "both" else "inline"
    writes = "inline" if where == "inline" else "thread"
    return FaultyStorage(MemoryStorage(), writes=writes, reads=reads)


@pytest.fixture(params=["inline", "writes", "both"])
async def keyspace(request):
    pytest.importorskip("nkv_storage_memory")
    keyspace = LocalKeyspace(storage(request.param), KeyspaceSettings(), node_id=1)
    await keyspace.open()
    yield keyspace
    await keyspace.aclose()


@pytest.fixture(params=["own", "optimistic", "guarded"])
def prompt(request, keyspace):
    """The functions of the keyspace, those made of it, and those of one who may do everything."""
    if request.param == "own":
        assert prompt_of(keyspace) is keyspace
        return keyspace
    if request.param == "optimistic":
        return Optimistic(keyspace)
    return prompt_of(GuardedKeyspace(keyspace, Identity("a", (Right("", write=True),))))


async def got(result):
    return await result if isinstance(result, Awaitable) else result


async def test_one_operation(prompt, keyspace):
    written = await got(prompt.write_now(Put("a", b"1", None, None, "set")))
    assert isinstance(written, Written)
    record = await got(prompt.get_now("a"))
    assert record.value == b"1"
    assert (await got(prompt.write_now(Touch("a", 2**43)))).record.expires == 2**43
    assert (await got(prompt.write_now(Delete("a")))).previous.value == b"1"
    assert await got(prompt.get_now("a")) is None
    await got(prompt.write_now(Put("a", b"1")))
    await got(prompt.write_now(Clear()))
    assert await keyspace.count() == 0


async def test_what_is_written_inline_needs_no_waiting():
    pytest.importorskip("nkv_storage_memory")
    keyspace = LocalKeyspace(storage("inline"), KeyspaceSettings(), node_id=1)
    await keyspace.open()
    assert isinstance(keyspace.write_now(Put("a", b"1")), Written)
    assert keyspace.get_now("a").value == b"1"
    assert keyspace.transact_now(lambda view: view.get("a").value, ["a"]) == b"1"
    await keyspace.aclose()


async def test_a_transaction_sees_what_it_has_done(prompt):
    def transaction(view):
        assert view.get("a") is None
        view.put("a", b"1")
        view.put("b", b"2", expires=view.now + 60_000)
        view.touch("b", None)
        assert view.get("b").expires is None
        view.delete("a")
        assert view.get("a") is None
        view.clear("b")
        assert view.get("b") is None
        view.put("c", b"3", cause="mine")
        return view.get("c").value

    assert await got(prompt.transact_now(transaction, ["a", "b"])) == b"3"
    assert await got(prompt.get_now("a")) is None
    assert await got(prompt.get_now("b")) is None
    assert (await got(prompt.get_now("c"))).value == b"3"


async def test_a_transaction_that_raises_changes_nothing(prompt):
    def transaction(view):
        view.put("a", b"1")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await got(prompt.transact_now(transaction, ["a"]))
    assert await got(prompt.get_now("a")) is None


async def test_what_is_written_is_checked(prompt):
    with pytest.raises(InvalidKey):
        await got(prompt.transact_now(lambda view: view.put("", b""), []))
    with pytest.raises(ValueTooLarge):
        await got(prompt.transact_now(lambda view: view.put("a", bytes(2**21)), ["a"]))
    with pytest.raises(InvalidKey):
        await got(prompt.write_now(Put("", b"")))


async def test_a_record_past_its_expiry_is_not_seen(prompt):
    await got(prompt.write_now(Put("a", b"1", 1)))
    assert await got(prompt.transact_now(lambda view: view.get("a"), ["a"])) is None


async def test_counting_together_loses_nothing(prompt):
    def add(view):
        before = view.get("n")
        number = 1 + (0 if before is None else int(before.value))
        view.put("n", b"%d" % number)
        return number

    seen = []

    async def client():
        for _ in range(5):
            seen.append(await got(prompt.transact_now(add, ["n"])))  # noqa: PERF401

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(client)
    assert sorted(seen) == list(range(1, 41))
    assert (await got(prompt.get_now("n"))).value == b"40"


async def test_writes_that_wait_keep_their_order(keyspace):
    results = [keyspace.write_now(Put("a", b"%d" % n)) for n in range(20)]
    last = keyspace.transact_now(lambda view: view.get("a").value, ["a"])
    assert await got(last) == b"19"
    revisions = [(await got(one)).revision for one in results]
    assert revisions == sorted(revisions)


async def test_a_transaction_that_is_never_first_is_given_up(keyspace):
    tries = []

    class Interfering:
        history = keyspace.history

        async def get(self, key):
            record = await keyspace.get(key)
            await keyspace.put(key, b"other")
            return record

        def __getattr__(self, name):
            return getattr(keyspace, name)

    prompt = Optimistic(Interfering())

    def transaction(view):
        tries.append(view.get("a"))
        view.put("a", b"mine")

    with pytest.raises(Overloaded):
        await prompt.transact_now(transaction, ["a"])
    assert len(tries) == TRIES


async def test_a_guarded_transaction_may_do_what_its_owner_may(keyspace):
    rights = (Right("a."), Right("w.", read=False, write=True))
    guarded = GuardedKeyspace(keyspace, Identity("x", rights))
    await keyspace.put("a.1", b"1")
    await keyspace.put("b", b"2")
    await keyspace.put("w.1", b"secret")
    assert (await got(guarded.get_now("a.1"))).value == b"1"
    with pytest.raises(Forbidden):
        guarded.get_now("b")
    with pytest.raises(Forbidden):
        guarded.write_now(Put("a.1", b""))
    with pytest.raises(Forbidden):
        guarded.write_now(Clear())
    assert (await got(guarded.write_now(Put("w.1", b"3")))).previous.value == b""
    for refused in (
        lambda view: view.get("b"),
        lambda view: view.put("a.1", b""),
        lambda view: view.delete("a.1"),
        lambda view: view.touch("a.1", None),
        lambda view: view.clear(),
    ):
        with pytest.raises(Forbidden):
            await got(guarded.transact_now(refused, []))
    written = await got(guarded.transact_now(lambda view: view.put("w.1", b"4"), []))
    assert written.previous.value == b""
