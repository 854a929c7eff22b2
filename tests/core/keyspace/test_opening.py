"""Opening a store: a new one, one's own, a stranger's, a newer one, an older one, a damaged one."""

import pytest

from nkv_core.contracts.storage import TABLES, Batch
from nkv_core.errors import (
    DataDamaged,
    DataDirError,
    NewerFormat,
    StartError,
    Stopping,
    StorageFailed,
    StorageFull,
)
from nkv_core.keyspace import LocalKeyspace, upgrade
from nkv_core.keyspace.layout import FORMAT, META_FORMAT, META_HISTORY, META_NODE, chunks

pytestmark = pytest.mark.anyio


def everything(storage):
    return {table: storage.scan(table, limit=10**6) for table in TABLES}


def put_row(storage, table, key, value):
    batch = Batch()
    batch.put(table, key, value)
    storage.apply(batch)


async def test_a_new_store_begins_a_history_that_it_keeps(storage, open_keyspace):
    async with open_keyspace(storage) as keyspace:
        history = keyspace.history
        await keyspace.put("a", b"1")
    async with open_keyspace(storage) as keyspace:
        assert keyspace.history == history
        assert (await keyspace.get("a")).value == b"1"


async def test_two_stores_have_two_histories(kept_storage, open_keyspace):
    histories = set()
    for _ in range(2):
        async with open_keyspace(kept_storage()) as keyspace:
            histories.add(keyspace.history)
    assert len(histories) == 2


async def refused(storage, open_keyspace, error, match, **options):
    """Opening is refused, changes nothing, and leaves nothing open."""
    before = everything(storage)
    with pytest.raises(error, match=match):
        async with open_keyspace(storage, **options):
            pass
    assert everything(storage) == before
    assert not storage.opened


async def test_a_store_of_another_node_is_refused(storage, open_keyspace):
    async with open_keyspace(storage, node_id=1) as keyspace:
        await keyspace.put("a", b"1")
    await refused(storage, open_keyspace, DataDirError, "belongs to node", node_id=2)
    async with open_keyspace(storage, node_id=1) as keyspace:
        assert await keyspace.get("a") is not None


async def test_a_store_of_a_newer_format_is_refused(storage, open_keyspace):
    async with open_keyspace(storage):
        pass
    put_row(storage, "meta", META_FORMAT, b"%d" % (FORMAT + 1))
    await refused(storage, open_keyspace, NewerFormat, "a newer nkv")


@pytest.mark.parametrize("table", TABLES)
async def test_what_is_not_of_nkv_is_refused(kept_storage, open_keyspace, table):
    storage = kept_storage()
    put_row(storage, table, b"k", b"v")
    await refused(storage, open_keyspace, DataDamaged, table)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (META_FORMAT, b"x"),
        (META_NODE, b"1234"),
        (META_HISTORY, b"\xff"),
        (b"log", b"1234"),
    ],
)
async def test_damaged_rows_are_refused(kept_storage, open_keyspace, key, value):
    storage = kept_storage()
    async with open_keyspace(storage):
        pass
    put_row(storage, "meta", key, value)
    await refused(storage, open_keyspace, DataDamaged, "[Ss]tore")


async def test_a_damaged_record_is_told_and_the_others_are_read(storage, open_keyspace):
    async with open_keyspace(storage) as keyspace:
        await keyspace.put("a", b"1")
    put_row(storage, "records", b"b", b"rubbish")
    async with open_keyspace(storage) as keyspace:
        with pytest.raises(StorageFailed, match="'b' is damaged"):
            await keyspace.get("b")
        with pytest.raises(StorageFailed, match="'b' is damaged"):
            await keyspace.put("b", b"1")
        assert (await keyspace.get("a")).value == b"1"
        await keyspace.put("c", b"1")


async def test_a_full_disk_at_the_first_start_is_named(storage, open_keyspace):
    storage.fill()
    await refused(storage, open_keyspace, StorageFull, "full")
    storage.heal()
    async with open_keyspace(storage):
        pass


async def test_a_keyspace_that_is_not_open_says_so(kept_storage, open_keyspace):
    from nkv_core.contracts.settings import KeyspaceSettings

    keyspace = LocalKeyspace(kept_storage(), KeyspaceSettings(), node_id=1)
    for call in (keyspace.get("a"), keyspace.put("a", b"1"), keyspace.count(), keyspace.run()):
        with pytest.raises(Stopping):
            await call
    with pytest.raises(Stopping):
        _ = keyspace.token
    await keyspace.aclose()
    await keyspace.open()
    with pytest.raises(RuntimeError):
        await keyspace.open()
    await keyspace.aclose()


# --- upgrades -------------------------------------------------------------------------------------


@pytest.fixture
def old_storage(kept_storage):
    """A store of format 7 with a few rows."""
    storage = kept_storage()
    put_row(storage, "meta", META_FORMAT, b"7")
    for number in range(2000):
        put_row(storage, "records", b"%04d" % number, b"old")
    return storage


class Kill(BaseException):
    """The end of the process, as far as an upgrade can see."""


def rewrite(storage, *, old, new, kill_after=None):
    """An upgrade step that can be killed and begun again."""
    for count, pairs in enumerate(chunks(storage, "records", b"", None)):
        if count == kill_after:
            raise Kill
        batch = Batch()
        for key, value in pairs:
            if value == old:
                batch.put("records", key, new)
        storage.apply(batch)


STEPS = {
    7: lambda storage: rewrite(storage, old=b"old", new=b"newer"),
    8: lambda storage: rewrite(storage, old=b"newer", new=b"newest"),
}


def values(storage):
    return {value for _, value in storage.scan("records", limit=10**6)}


def test_an_older_store_is_copied_and_brought_up_to_date(old_storage, kept_storage, tmp_path):
    before = everything(old_storage)
    upgrade.bring_up_to_date(old_storage, tmp_path, steps=STEPS, wanted=9)
    assert values(old_storage) == {b"newest"}
    assert old_storage.get("meta", META_FORMAT) == b"9"
    assert [path.name for path in tmp_path.iterdir()] == ["store-format-7.copy"]
    again = kept_storage()
    upgrade.read_copy(tmp_path / "store-format-7.copy", again)
    assert everything(again) == before


def test_an_upgrade_that_was_killed_is_finished_and_the_copy_stays_the_first(
    old_storage, kept_storage, tmp_path
):
    before = everything(old_storage)
    killed = {**STEPS, 7: lambda s: rewrite(s, old=b"old", new=b"newer", kill_after=1)}
    with pytest.raises(Kill):
        upgrade.bring_up_to_date(old_storage, tmp_path, steps=killed, wanted=9)
    assert values(old_storage) == {b"old", b"newer"}
    assert old_storage.get("meta", META_FORMAT) == b"7"
    upgrade.bring_up_to_date(old_storage, tmp_path, steps=STEPS, wanted=9)
    assert values(old_storage) == {b"newest"}
    again = kept_storage()
    upgrade.read_copy(tmp_path / "store-format-7.copy", again)
    assert everything(again) == before


def test_what_cannot_be_upgraded_is_left_alone(old_storage, tmp_path):
    before = everything(old_storage)
    (tmp_path / "a-file").write_bytes(b"")
    for steps, folder, match in (
        ({}, tmp_path, "cannot upgrade"),
        ({7: STEPS[7]}, tmp_path, "cannot upgrade"),
        (STEPS, None, "needs room for a copy"),
        (STEPS, tmp_path / "a-file" / "below", "cannot be copied"),
    ):
        with pytest.raises(StartError, match=match):
            upgrade.bring_up_to_date(old_storage, folder, steps=steps, wanted=9)
        assert everything(old_storage) == before


def test_a_store_of_this_format_is_not_copied(old_storage, tmp_path):
    upgrade.bring_up_to_date(old_storage, tmp_path, steps=STEPS, wanted=7)
    assert list(tmp_path.iterdir()) == []


async def test_opening_upgrades(old_storage, open_keyspace, tmp_path, monkeypatch):
    from nkv_core.contracts.settings import KeyspaceSettings
    from nkv_core.records import Record, pack_record

    storage = old_storage
    put_row(storage, "meta", META_FORMAT, b"0")
    put_row(storage, "meta", META_NODE, (1).to_bytes(8, "big"))
    put_row(storage, "meta", META_HISTORY, b"0123456789abcdef")

    def step(storage):
        for key, value in storage.scan("records", limit=10**6):
            put_row(storage, "records", key, pack_record(Record("", value, 1, 1, 1)))

    monkeypatch.setattr(
        upgrade.bring_up_to_date, "__kwdefaults__", {"steps": {0: step}, "wanted": 1}
    )
    keyspace = LocalKeyspace(storage, KeyspaceSettings(), node_id=1, copy_to=tmp_path)
    await keyspace.open()
    assert keyspace.history == "0123456789abcdef"
    assert (await keyspace.get("0007")).value == b"old"
    await keyspace.aclose()
    assert (tmp_path / "store-format-0.copy").exists()


@pytest.mark.parametrize("length", [0, 5, 17, 20, 40, 20_000, -1])
def test_a_copy_that_is_cut_short_is_refused(old_storage, kept_storage, tmp_path, length):
    whole = tmp_path / "copy"
    upgrade.write_copy(old_storage, whole)
    assert not (tmp_path / "copy.part").exists()
    cut = tmp_path / "cut"
    cut.write_bytes(whole.read_bytes()[:length])
    with pytest.raises(DataDamaged):
        upgrade.read_copy(cut, kept_storage())


def test_a_damaged_copy_is_refused(old_storage, kept_storage, tmp_path):
    whole = tmp_path / "copy"
    upgrade.write_copy(old_storage, whole)
    data = whole.read_bytes()
    for bad in (b"x" + data, data[:21] + b"\xc1" + data[22:], data.replace(b"records", b"recards")):
        whole.write_bytes(bad)
        with pytest.raises(DataDamaged):
            upgrade.read_copy(whole, kept_storage())
