"""What all tests share: both async backends, how hypothesis goes about its work, a NATS server."""

import os
import shutil
import socket
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, settings

from .ports import free_port

# The same examples every time, so that a red run is red again; `make soak` looks for new ones.
settings.register_profile(
    "test", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("soak", settings.get_profile("test"), derandomize=False)
settings.load_profile("soak" if os.environ.get("NKV_SOAK") == "1" else "test")

THIS_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
NATS_SERVER = shutil.which("nats-server")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


def pytest_collection_modifyitems(config, items):
    """Leave the long randomised runs to `make soak`, and there run everything on every Python."""
    if os.environ.get("NKV_SOAK") == "1":
        return
    unwanted = ["soak"]
    # Named by the test matrix alone: who runs pytest by hand runs it on one Python anyway.
    if os.environ.get("NKV_ONE_PYTHON", THIS_PYTHON) != THIS_PYTHON:
        unwanted.append("one_python")
    wanted, left = [], []
    for item in items:
        (left if any(map(item.get_closest_marker, unwanted)) else wanted).append(item)
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = wanted


class NatsProcess:
    """A NATS server on a port of its own, that can be killed and started again."""

    def __init__(self, folder, arguments):
        self.port = free_port()
        self._folder, self._arguments = folder, arguments
        self._process = None

    @property
    def url(self):
        return f"nats://127.0.0.1:{self.port}"

    def start(self):
        """Start it, and wait until it greets."""
        command = [NATS_SERVER, "-a", "127.0.0.1", "-p", str(self.port), *self._arguments]
        with (self._folder / "nats.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        until = time.monotonic() + 30
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=5) as greeted:
                    if greeted.recv(4) == b"INFO":
                        return
            except OSError:
                assert time.monotonic() < until, "the NATS server does not start"
            time.sleep(0.01)

    def kill(self):
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def signal(self, number):
        self._process.send_signal(number)


@pytest.fixture
def nats_server(tmp_path):
    """Starts servers with these arguments; all of them end with the test."""
    if NATS_SERVER is None:
        pytest.skip("nats-server is not installed")
    started = []

    def start(*arguments):
        server = NatsProcess(tmp_path, arguments)
        started.append(server)
        server.start()
        return server

    start.folder = tmp_path
    yield start
    for server in started:
        server.kill()
