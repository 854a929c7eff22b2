"""A node is killed at each phase of a migration: what was acknowledged is there at the next start,
in the storage that the journal names.
"""

import json
import threading
from pathlib import Path

import httpx2
import pytest

pytestmark = pytest.mark.one_python

KILL_AT = Path(__file__).with_name("kill_at.py")
EXAMPLE = Path(__file__).parents[2] / "docs/examples/nkv-example/src/nkv_example"

BEFORE, BEHIND = "diskcache", "sqlite"
#: Where a node is killed, and which storage is in charge from then on. Of the journal's writings
#: the first begins the migration, the second is the switch, the third its end.
MOMENTS = {
    "before-journal-1": BEFORE,
    "behind-journal-1": BEFORE,
    "write-1": BEFORE,  # opening: the fence
    "write-3": BEFORE,  # copying: the log
    "write-6": BEFORE,
    "write-20": BEFORE,
    "before-journal-2": BEFORE,
    "behind-journal-2": BEHIND,
    "behind-take-over": BEHIND,
    "before-journal-3": BEHIND,
    "behind-journal-3": BEHIND,
}


class Writers:
    """Clients that write, overwrite and delete until their node is gone, and know what it said."""

    def __init__(self, url, count=4):
        self._url = url
        self.acknowledged = {}  # key -> version and value, or None where it was deleted
        self.doubtful = set()  # keys whose last write was not answered
        self._threads = [threading.Thread(target=self._write, args=(n,)) for n in range(count)]
        self.going = threading.Event()
        for thread in self._threads:
            thread.start()

    def _write(self, number):
        with httpx2.Client(base_url=self._url, timeout=30) as client:
            for step in range(100_000):
                key = f"w{number}.{step % 50}"
                try:
                    if step % 7 == 6:
                        answer = client.delete(f"/v1/kv/{key}")
                        state = None
                    else:
                        answer = client.put(f"/v1/kv/{key}", content=str(step))
                        state = (answer.headers.get("ETag"), str(step))
                except httpx2.HTTPError:
                    self.doubtful.add(key)
                    return
                assert answer.status_code in (200, 201, 204, 404), answer.text
                self.acknowledged[key] = state
                if step > 60:
                    self.going.set()

    def wait(self):
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()


def fill(node):
    """So much that copying it alone takes more than twenty writes, however fast it goes."""
    with node.client() as client:
        for begin in range(0, 12_000, 1_000):
            puts = [
                {"op": "put", "key": f"there.{n:05}", "value": "1"}
                for n in range(begin, begin + 1_000)
            ]
            answer = client.post("/v1/batch", json={"operations": puts})
            assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("moment", MOMENTS)
def test_kill9_each_phase(serve, moment):
    node = serve("--plugin", str(EXAMPLE), "--plugin", str(KILL_AT), env={"KILL_AT": moment})
    fill(node)
    writers = Writers(node.url)
    assert writers.going.wait(60)
    node.nkv("storage", "migrate", "sqlite", "--bake", "0.2", check=False)
    node.wait(60)
    writers.wait()

    # Where the example is in charge, the journal says where it comes from.
    plugins = () if MOMENTS[moment] == BEHIND else ("--plugin", str(EXAMPLE))
    again = serve(*plugins, data_dir=node.data_dir)
    status = json.loads(again.nkv("storage", "status", "--json").stdout)
    assert status["in_charge"] == MOMENTS[moment]
    with again.client() as client:
        for key, state in writers.acknowledged.items():
            if key in writers.doubtful:
                continue
            answer = client.get(f"/v1/kv/{key}")
            if state is None:
                assert answer.status_code == 404, key
            else:
                assert (answer.headers["ETag"], answer.text) == state, key
        # What was cut short can be done again, whatever it has left.
        other = BEHIND if status["in_charge"] == BEFORE else BEFORE
        again.nkv("storage", "migrate", other)
        again.nkv("storage", "commit")
        assert client.get("/v1/status").json()["storage"] == other
