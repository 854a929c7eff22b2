"""Clients of the Flask project's own time: python-socketio 5.3, in an environment of its own."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import anyio
import pytest

PROGRAM = Path(__file__).with_name("old_client.py")
WANTED = ("python-socketio==5.3.0", "python-engineio==4.2.0", "requests", "websocket-client")
DEADLINE = 120

pytestmark = pytest.mark.anyio


def environment(cache):
    """The interpreter of an environment with the old client, made on the first use."""
    version = ".".join(map(str, sys.version_info[:3]))
    folder = cache.mkdir(f"socketio-5.3-python-{version}") / "venv"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        done = subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *WANTED],
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"python-socketio 5.3 cannot be installed: {done.stderr.strip()[-300:]}")
        (folder / "complete").touch()
    return python


async def test_a_client_of_the_5_3_line_is_told_over_each_transport(serving, web, pytestconfig):
    python = await anyio.to_thread.run_sync(environment, pytestconfig.cache)
    clean = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
    async with serving() as node:
        for transport in ("polling", "websocket"):
            command = [str(python), str(PROGRAM), node.addresses[0], transport, "3"]
            async with await anyio.open_process(command, env=clean) as process:
                try:
                    lines = Lines(process.stdout)
                    ready = await lines.next()
                    assert ready["ready"] == {"data": "Connected", "count": 0}
                    assert ready["version"].startswith("5.3.")
                    async with web(node) as client:
                        await client.put("/kv", json={"key": "a", "value": "1"})
                    await node.keyspace.put("b", "é".encode())
                    await node.keyspace.delete("b")
                    await node.keyspace.put("a", b"2")
                    told = [(await lines.next())["data"] for _ in range(3)]
                    assert told == [
                        "Key: a set with value: 1",
                        "Key: b set with value: é",
                        "Key: a set with value: 2",
                    ]
                    with anyio.fail_after(DEADLINE):
                        assert await process.wait() == 0
                finally:
                    if process.returncode is None:
                        process.kill()


class Lines:
    """Lines of JSON that a program prints."""

    def __init__(self, stream):
        self.stream, self.read = stream, b""

    async def next(self):
        with anyio.fail_after(DEADLINE):
            while b"\n" not in self.read:
                self.read += await self.stream.receive()
        line, _, self.read = self.read.partition(b"\n")
        return json.loads(line)
