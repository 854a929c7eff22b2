"""A storage, its file by the back door, small disks, a canary for code that must not run."""

import pickle
import sqlite3
import subprocess
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from nkv_core.contracts.storage import Batch
from nkv_storage_diskcache.settings import DiskcacheSettings
from nkv_storage_diskcache.storage import DiskcacheStorage


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def make(directory):
    """Makes an open storage of the directory; all are closed behind the test."""
    made = []

    def make_storage(**settings):
        storage = DiskcacheStorage(DiskcacheSettings(**{"directory": str(directory), **settings}))
        made.append(storage)
        storage.open()
        return storage

    yield make_storage
    for storage in made:
        storage.close()


@pytest.fixture
def put():
    """Puts pairs into a table in one batch."""

    def put_pairs(storage, table, pairs):
        batch = Batch()
        for key, value in pairs.items():
            batch.put(table, key, value)
        storage.apply(batch)

    return put_pairs


@pytest.fixture
def behind(directory):
    """Opens the file behind the storage's back; what is done there is committed."""

    @contextmanager
    def open_file():
        with closing(sqlite3.connect(directory / "cache.db")) as connection, connection:
            yield connection

    return open_file


class _Canary:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.fixture
def canary(tmp_path):
    """A pickle that makes `canary.path` if anybody loads it."""
    canary = _Canary(tmp_path / "canary-sang")
    canary.pickled = pickle.dumps(canary)
    return canary


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 6 MiB of its own."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(path)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"mounting a small disk is not permitted here: {mounted.stderr.decode()}")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture
def take_room():
    """Fills what is left of a disk with one file, but for some bytes; returns the file."""

    def take(disk, left=0):
        ballast = disk / "ballast"
        with ballast.open("wb", buffering=0) as file:
            for size in (65536, 4096, 1):
                try:
                    while file.write(b"x" * size) == size:
                        pass
                except OSError:
                    continue
            file.truncate(file.tell() - left)
        return ballast

    return take
