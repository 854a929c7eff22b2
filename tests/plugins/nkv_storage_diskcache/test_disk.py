"""diskcache itself, given our `Disk`, can neither write nor read anything but bytes in rows."""

import warnings
from contextlib import closing

import diskcache
import pytest

from nkv_core.errors import DataDamaged
from nkv_storage_diskcache.disk import BytesDisk

KEY = b"\x01k"


@pytest.fixture
def plant(tmp_path, canary):
    """A cache with one row whose columns were changed; opened with the given Disk."""

    def open_planted(disk, **columns):
        directory = str(tmp_path / "cache")
        with closing(diskcache.Cache(directory, disk=BytesDisk)) as cache:
            cache.set(KEY, b"v")
            for name, value in columns.items():
                cache._sql(f"UPDATE Cache SET {name} = ?", (value,))
        return closing(diskcache.Cache(directory, disk=disk))

    return open_planted


@pytest.fixture
def planted_columns(canary, tmp_path):
    (tmp_path / "outside.val").write_bytes(canary.pickled)
    return {
        "value": {"mode": 4, "value": canary.pickled},
        "file": {"mode": 4, "value": None, "filename": "../outside.val"},
        "binary file": {"mode": 2, "value": None, "filename": "../outside.val"},
        "text file": {"mode": 3, "value": None, "filename": "../outside.val"},
        "text": {"value": "text"},
        "number": {"value": 1},
    }


def test_writes_and_reads_bytes(tmp_path):
    with closing(diskcache.Cache(str(tmp_path / "cache"), disk=BytesDisk)) as cache:
        cache.set(KEY, b"v" * 100_000)
        assert cache.get(KEY) == b"v" * 100_000
        assert list(cache) == [KEY]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["cache.db"]


@pytest.mark.parametrize("key", ["text", 1, 1.5, None, ("a",), bytearray(b"k")])
def test_refuses_to_write_other_keys(tmp_path, key):
    with (
        closing(diskcache.Cache(str(tmp_path / "cache"), disk=BytesDisk)) as cache,
        pytest.raises(TypeError),
    ):
        cache.set(key, b"v")


@pytest.mark.parametrize("value", ["text", 1, 1.5, None, ["a"], bytearray(b"v")])
def test_refuses_to_write_other_values(tmp_path, value):
    with closing(diskcache.Cache(str(tmp_path / "cache"), disk=BytesDisk)) as cache:
        with pytest.raises(TypeError):
            cache.set(KEY, value)
        assert len(cache) == 0


def test_the_stock_disk_does_run_a_planted_pickle(plant, planted_columns, canary):
    # The control: without it the tests below might look for something that never happens.
    with plant(diskcache.Disk, **planted_columns["value"]) as cache:
        cache.get(KEY)
    assert canary.path.exists()


@pytest.mark.parametrize("what", ["value", "file", "binary file", "text file", "text", "number"])
def test_refuses_to_read_what_it_did_not_write(plant, planted_columns, canary, what):
    with plant(BytesDisk, **planted_columns[what]) as cache:
        for read in (cache.get, cache.read, cache.__getitem__, cache.pop):
            with pytest.raises(DataDamaged):
                read(KEY)
    assert not canary.path.exists()


def test_refuses_to_read_a_pickled_key(plant, canary):
    with plant(BytesDisk, raw=0, key=canary.pickled) as cache, pytest.raises(DataDamaged):
        list(cache)
    assert not canary.path.exists()


def test_removes_no_file_that_a_row_names(plant, tmp_path):
    bystander = tmp_path / "bystander"
    bystander.touch()
    with plant(BytesDisk, filename="../bystander") as cache:
        cache.delete(KEY)
    assert bystander.exists()


def test_has_no_files_and_hashes_no_keys():
    disk = BytesDisk("nowhere")
    with pytest.raises(TypeError):
        disk.filename()
    with pytest.raises(TypeError):
        disk.hash(KEY)


def test_every_method_that_could_touch_a_pickle_or_a_file_is_replaced():
    theirs = {name for name in vars(diskcache.Disk) if not name.startswith("__")}
    ours = {name for name in vars(BytesDisk) if not name.startswith("__")}
    # `_write` is called by the `store` and `filename` that are replaced.
    assert theirs - ours == {"_write"}


def test_a_cache_with_our_disk_checks_clean(tmp_path):
    with closing(diskcache.Cache(str(tmp_path / "cache"), disk=BytesDisk)) as cache:
        cache.set(KEY, b"v")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert cache.check() == []
