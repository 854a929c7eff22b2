"""Whole nodes: started by the command line as their users start them, ended by their process id."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import pytest

START_DEADLINE = 30
NKV = (sys.executable, "-m", "nkv_core")


class Served:
    """A node that runs as a process of its own."""

    def __init__(self, data_dir, arguments, cwd, env):
        self.data_dir = data_dir
        self.stderr_path = Path(cwd) / f"stderr-{os.urandom(4).hex()}"
        self._env = env
        with self.stderr_path.open("wb") as stderr:
            self.process = subprocess.Popen(
                [*NKV, "serve", "--data-dir", str(data_dir), "--port", "0", *arguments],
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=cwd,
                env=env,
            )
        self.url = self._wait_until_it_serves()
        host, _, port = self.url.partition("://")[2].rpartition(":")
        self.host, self.port = host, int(port)

    def _wait_until_it_serves(self):
        timer = threading.Timer(START_DEADLINE, self.process.kill)
        timer.start()
        try:
            line = self.process.stdout.readline().decode()
        finally:
            timer.cancel()
        found = re.search(r"https?://\S+:\d+", line)
        if not found:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            raise AssertionError(f"the node said {line!r} and then: {self.stderr()}")
        self.said = line
        return found.group()

    def stderr(self):
        return self.stderr_path.read_text()

    def nkv(self, *arguments, check=True, timeout=120):
        """Run the command line against this node."""
        done = subprocess.run(
            [*NKV, *arguments],
            capture_output=True,
            timeout=timeout,
            env={**self._env, "NKV_URL": self.url, "NKV_DATA_DIR": str(self.data_dir)},
            check=False,
        )
        if check:
            assert done.returncode == 0, done.stderr.decode() + self.stderr()
        return done

    def client(self):
        return httpx2.Client(base_url=self.url, timeout=30)

    def reported(self, key, enough):
        """What a page has put under this key as JSON, once it is enough."""
        until = time.monotonic() + 60
        with self.client() as client:
            while True:
                answer = client.get(f"/v1/kv/{key}")
                if answer.is_success and enough(seen := answer.json()):
                    return seen
                assert time.monotonic() < until, answer.text
                time.sleep(0.02)

    def stop(self, deadline=30):
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait(deadline)

    def kill(self):
        """SIGKILL: the node has no say in it."""
        self.process.kill()
        self.wait(30)

    def wait(self, deadline):
        try:
            return self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
            raise
        finally:
            self.process.stdout.close()


@pytest.fixture
def clean_env():
    """The environment without what would set the node's own settings."""
    unwanted = ("NKV_", "PORT", "HOSTNAME", "MESH_NETWORK_URL")
    return {key: value for key, value in os.environ.items() if not key.startswith(unwanted)}


@pytest.fixture
def serve(tmp_path, clean_env):
    """Start nodes; whatever still runs at the end is killed."""
    nodes = []

    def start(*arguments, data_dir=None, env=None):
        node = Served(
            data_dir or tmp_path / "data", arguments, tmp_path, {**clean_env, **(env or {})}
        )
        nodes.append(node)
        return node

    yield start
    for node in nodes:
        if node.process.poll() is None:
            node.process.kill()
            node.process.wait()
        node.process.stdout.close()


@pytest.fixture
def nkv(tmp_path, clean_env):
    """Run the command line without a node."""

    def run(*arguments, env=None, timeout=60, **options):
        return subprocess.run(
            [*NKV, *arguments],
            capture_output=True,
            text=True,
            cwd=options.pop("cwd", tmp_path),
            env={**clean_env, **(env or {})},
            timeout=timeout,
            check=False,
            **options,
        )

    return run


@pytest.fixture
def browse(tmp_path):
    """Open pages in browsers without a window, that are closed at the end."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    browsers = []

    def open_page(url):
        folder = tmp_path / f"browser-{len(browsers)}"
        folder.mkdir()
        command = [chromium, "--headless=new", "--disable-gpu", "--disable-dev-shm-usage"]
        command += ["--no-first-run", "--no-default-browser-check", "--disable-extensions"]
        command += ["--disable-background-networking", "--disable-component-update"]
        command += [f"--user-data-dir={folder}", "--remote-debugging-port=0"]
        if os.geteuid() == 0:  # whose browsers have no sandbox
            command.append("--no-sandbox")
        with (folder / "log").open("wb") as log:
            # In a group of its own: it has children, which are to end with it.
            browser = subprocess.Popen(
                [*command, url], stdout=log, stderr=log, cwd=folder, start_new_session=True
            )
        browsers.append(browser)
        return browser

    yield open_page
    for browser in browsers:
        os.killpg(browser.pid, signal.SIGKILL)
        browser.wait()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 12 MB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)], check=False
    )
    if mounted.returncode != 0:
        pytest.skip("this machine does not let root mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
