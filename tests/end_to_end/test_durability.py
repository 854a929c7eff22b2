"""What was acknowledged is there: after a kill, after a full disk, after a restart."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import httpx2
import pytest

SOAK = os.environ.get("NKV_SOAK") == "1"
NKV = (sys.executable, "-m", "nkv_core")
DPKG_STATUS = Path("/var/lib/dpkg/status")


def packages():
    """All records of the machine's package database: package -> its whole paragraph."""
    for paragraph in DPKG_STATUS.read_text().split("\n\n"):
        if paragraph.strip():
            fields = dict(
                line.split(": ", 1) for line in paragraph.splitlines() if ": " in line[:40]
            )
            # The same package may be there for several architectures.
            yield f"dpkg.{fields['Package']}:{fields.get('Architecture', 'none')}", paragraph


def generated(count):
    for number in range(count):
        yield f"generated.{number % 97:02}.{number:07}", f"value {number} " + "x" * 80


def write_lines(path, records):
    lines = [
        json.dumps({"key": key, "value": value}, ensure_ascii=False, separators=(",", ":"))
        for key, value in sorted(records.items(), key=lambda item: item[0].encode())
    ]
    path.write_text("".join(line + "\n" for line in lines))


@pytest.mark.one_python
@pytest.mark.skipif(not DPKG_STATUS.exists(), reason="this machine has no dpkg database")
def test_an_import_of_real_data_survives_a_kill_half_way(serve, tmp_path):
    records = {
        **dict(packages()),
        **dict(generated(1_000_000 if SOAK else 30_000)),
    }
    source = tmp_path / "records.jsonl"
    write_lines(source, records)

    node = serve()
    importing = subprocess.Popen(
        [*NKV, "import", str(source)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "NKV_URL": node.url},
    )
    with node.client() as client:
        while client.get("/status").json()["availableRecords"] < len(records) // 2:
            assert importing.poll() is None, importing.stderr.read().decode()
    node.kill()
    _, complaint = importing.communicate(timeout=120)
    assert importing.returncode == 3, complaint.decode()
    acknowledged = acknowledged_lines(complaint.decode())
    assert acknowledged >= len(records) // 4

    node = serve(data_dir=node.data_dir)
    lines = source.read_text().splitlines(keepends=True)
    exported = node.nkv("export").stdout.decode().splitlines(keepends=True)
    assert exported[:acknowledged] == lines[:acknowledged]

    node.nkv("import", str(source), timeout=1000)
    assert node.nkv("export", timeout=1000).stdout == source.read_bytes()


def acknowledged_lines(complaint):
    """What a broken import says of how far it came."""
    found = re.search(r"--from-line (\d+)", complaint)
    assert found, complaint
    return int(found.group(1)) - 1


@pytest.mark.one_python
def test_every_acknowledged_write_and_the_change_log_survive_kills_under_load(serve):
    node = serve()
    acknowledged = {}
    for round_number in range(5 if SOAK else 2):
        stop = threading.Event()
        threads = [
            threading.Thread(
                target=write_until, args=(node.url, stop, acknowledged, f"{round_number}.{writer}")
            )
            for writer in range(8)
        ]
        for thread in threads:
            thread.start()
        target = len(acknowledged) + 1_000
        while len(acknowledged) < target:
            assert any(thread.is_alive() for thread in threads)
        node.kill()
        stop.set()
        for thread in threads:
            thread.join(30)
        node = serve(data_dir=node.data_dir)
        with node.client() as client:
            stored = {
                record["key"]: (record["value"], record["version"])
                for record in all_records(client)
            }
        for key, value_and_version in acknowledged.items():
            assert stored[key] == value_and_version


def write_until(url, stop, acknowledged, name):
    with httpx2.Client(base_url=url, timeout=30) as client:
        for number in range(100_000):
            key, value = f"load.{name}.{number}", str(number)
            try:
                answer = client.put(f"/v1/kv/{key}", content=value)
            except httpx2.HTTPError:
                return
            if answer.status_code == 201:
                acknowledged[key] = (value, answer.headers["ETag"].strip('"'))
            if stop.is_set():
                return


def all_records(client):
    after = None
    while True:
        params = {"limit": 1000} if after is None else {"limit": 1000, "after": after}
        page = client.get("/v1/kv", params=params).json()
        yield from page["records"]
        after = page.get("after")
        if after is None:
            return


def test_a_full_disk_is_an_answer_and_the_node_goes_on(serve, nkv, small_disk):
    node = serve(data_dir=small_disk / "data")
    with node.client() as client:
        assert client.put("/v1/kv/early", content="here").status_code == 201
        refused = fill(client)
        assert refused.status_code == 507
        assert refused.json()["code"] == "storage_full"
        assert client.get("/v1/kv/early").text == "here"
        assert client.get("/readyz").status_code == 200
    node.kill()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    node = serve(data_dir=small_disk / "data")
    with node.client() as client:
        assert client.get("/v1/kv/early").text == "here"
        assert client.put("/v1/kv/late", content="there is room again").status_code == 201
    assert node.stop() == 0

    ballast = small_disk / "ballast"
    fill_file(ballast)
    failed = nkv("serve", "--data-dir", str(small_disk / "data"), "--port", "0")
    assert failed.returncode == 1
    assert "full" in failed.stderr
    assert "Traceback" not in failed.stderr
    ballast.unlink()
    node = serve(data_dir=small_disk / "data")
    with node.client() as client:
        assert client.get("/v1/kv/late").text == "there is room again"


def fill(client):
    for number in range(1000):
        answer = client.put(f"/v1/kv/fill.{number}", content=os.urandom(200_000))
        if answer.status_code != 201:
            return answer
    raise AssertionError("the disk never filled")


def fill_file(path):
    with path.open("wb") as file:
        try:
            while True:
                file.write(b"x" * 65536)
                file.flush()
        except OSError:
            pass


@pytest.mark.one_python
def test_a_backup_is_consistent_while_clients_write_and_can_be_restored(serve, tmp_path):
    node = serve()
    stop = threading.Event()
    with node.client() as client:
        for number in range(2_000):
            client.put(f"/v1/kv/pair.{number}", content="0")

        def keep_pairs_equal():
            with node.client() as writer:
                turn = 0
                while not stop.is_set():
                    turn += 1
                    operations = [
                        {"op": "put", "key": f"pair.{number}", "value": str(turn)}
                        for number in (0, 999, 1999)
                    ]
                    answer = writer.post("/v1/batch", json={"operations": operations})
                    assert answer.status_code == 200, answer.text

        thread = threading.Thread(target=keep_pairs_equal)
        thread.start()
        try:
            node.nkv("backup", str(tmp_path / "node.backup"))
        finally:
            stop.set()
            thread.join(30)
    node.stop()

    fresh = tmp_path / "restored"
    node.nkv("restore", str(tmp_path / "node.backup"), "--data-dir", str(fresh))
    node = serve(data_dir=fresh)
    with node.client() as client:
        assert client.get("/status").json()["availableRecords"] == 2_000
        pairs = {client.get(f"/v1/kv/pair.{number}").text for number in (0, 999, 1999)}
    assert len(pairs) == 1


def test_a_copy_of_a_stopped_node_serves_the_same(serve, tmp_path):
    node = serve()
    with node.client() as client:
        etag = client.put("/v1/kv/a", content="1").headers["ETag"]
    assert node.stop() == 0
    shutil.copytree(node.data_dir, tmp_path / "copy", ignore=shutil.ignore_patterns("*.sock"))
    with serve(data_dir=tmp_path / "copy").client() as client:
        assert client.get("/v1/kv/a").headers["ETag"] == etag
