"""`nkv bench` against real nodes, over each protocol, and beside redis-server."""

import json
import re
import shutil
import socket
import subprocess
import time

import pytest

from nkv_core.bench.report import COLUMNS
from nkv_core.bench.workload import Chooser, Times, Workload

from ..ports import free_port

QUICK = ("--seconds", "0.3", "--warm-up", "0.1", "--connections", "4", "--keys", "50")


def measured(nkv, *arguments):
    done = nkv("bench", *arguments, *QUICK, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def address(node, scheme):
    return re.search(rf"{scheme}://[^,\s]+:\d+", node.said).group()


@pytest.mark.parametrize("pipeline", ["1", "8"])
def test_every_protocol_is_measured(serve, nkv, tmp_path, pipeline):
    path = f"transport.socket.path={tmp_path / 'nkv.sock'}"
    plugins = [f"--plugin=nkv_transport_{name}" for name in ("socket", "resp")]
    sets = ("--set", "transport.socket.port=0", "--set", path, "--set", "transport.resp.port=0")
    node = serve(*plugins, *sets, "--storage", "memory")
    urls = [node.url, address(node, "redis"), address(node, "nkv")]
    found = measured(nkv, *urls, "--pipeline", pipeline)
    assert [load["target"] for load in found["loads"]] == urls
    for load in found["loads"]:
        assert set(load["operations"]) == {"get", "set"}
        assert load["rate"] > 0
        for times in load["operations"].values():
            assert 0 < times["p50"] <= times["p99"] <= times["max"]
    with node.client() as client:
        assert len(client.get("/v1/kv/bench.00000001").content) == 100


def test_notifications_are_measured_and_a_page_is_written(serve, nkv, tmp_path):
    node = serve("--plugin", "nkv_transport_resp", "--set", "transport.resp.port=0")
    page = tmp_path / "report.html"
    urls = (node.url, address(node, "redis"))
    found = measured(nkv, *urls, "--watch", "5", "--html", str(page), "--reads", "1")
    assert {url: times["count"] for url, times in found["watching"].items()} == dict.fromkeys(
        urls, 5
    )
    assert set(found["loads"][0]["operations"]) == {"get"}
    assert "<svg" in page.read_text()
    assert node.url in page.read_text()


def test_without_a_terminal_it_is_a_line_for_each_operation(serve, nkv):
    node = serve("--storage", "memory")
    done = nkv("bench", node.url, *QUICK, "--distribution", "zipfian", "--reads", "0")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"{node.url}\tset\t")
    assert len(line.split("\t")) == len(COLUMNS)


def test_what_cannot_be_measured_is_said(serve, nkv):
    done = nkv("bench", f"http://127.0.0.1:{free_port()}", *QUICK)
    assert (done.returncode, "(unreachable)" in done.stderr) == (3, True)
    done = nkv("bench", "ftp://127.0.0.1", *QUICK)
    assert (done.returncode, "(bad_request)" in done.stderr) == (1, True)
    node = serve("--storage", "memory", "--set", "keyspace.max_value_bytes=10")
    done = nkv("bench", node.url, *QUICK, "--reads", "0")
    assert (done.returncode, "413" in done.stderr) == (1, True)
    assert done.stderr.splitlines()[-1].endswith("(bench_refused)")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not shutil.which("redis-server"), reason="needs redis-server")
def test_redis_server_is_measured_beside(nkv):
    port = free_port()
    command = ["redis-server", "--port", str(port), "--save", "", "--bind", "127.0.0.1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + 30
            while time.monotonic() < end:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    time.sleep(0.01)
            found = measured(nkv, f"redis://127.0.0.1:{port}")
            assert found["loads"][0]["rate"] > 0
        finally:
            process.terminate()


def test_a_node_behind_a_nats_server_is_measured_beside_that_servers_own_buckets(
    serve, nkv, nats_server
):
    server = nats_server("--jetstream", "--store_dir", str(nats_server.folder / "jetstream"))
    node = serve(
        *("--plugin", "nkv_transport_nats", "--storage", "memory"),
        *("--set", f"transport.nats.servers={server.url}"),
    )
    urls = [server.url, server.url.replace("nats://", "nats-kv://")]
    found = measured(nkv, *urls, "--pipeline", "4")
    assert [load["target"] for load in found["loads"]] == urls
    for load in found["loads"]:
        assert set(load["operations"]) == {"get", "set"}
    with node.client() as client:
        assert client.get("/v1/kv/bench.00000001").content == b"x" * 100
    found = measured(nkv, urls[1], "--watch", "5")
    assert found["watching"][urls[1]]["count"] == 5
    done = nkv("bench", urls[0], "--watch", "5", *QUICK)
    assert (done.returncode, "not measured over nats://" in done.stderr) == (1, True)


def test_a_nats_server_without_buckets_is_refused(nkv, nats_server):
    url = nats_server().url.replace("nats://", "nats-kv://")
    done = nkv("bench", url, *QUICK)
    assert (done.returncode, "503" in done.stderr) == (1, True)
    assert done.stderr.splitlines()[-1].endswith("(bench_refused)")


def test_first_keys_are_asked_for_most_where_it_is_zipfian():
    workload = Workload(keys=100, distribution="zipfian", reads=1.0)
    chooser = Chooser(workload, 0)
    keys = [chooser.next()[1] for _ in range(5000)]
    assert keys.count("bench.00000000") > 500 > keys.count("bench.00000050") * 5
    assert [Chooser(workload, 0).next() for _ in range(3)] == [("get", keys[0])] * 3


def test_percentiles_are_of_what_was_noted():
    times = Times()
    for number in range(1, 1001):
        times.note(number / 1000)
    assert times.percentile(50) == pytest.approx(0.5, rel=0.06)
    assert times.percentile(99) == pytest.approx(0.99, rel=0.06)
    assert times.percentile(100) == times.longest == 1.0
