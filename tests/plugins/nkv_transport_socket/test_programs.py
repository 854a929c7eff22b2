"""What people have at hand speaks these dialects: socat and nc, and the examples of the docs."""

import json
import re
import shutil
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

DOCUMENT = (Path(__file__).parents[3] / "docs" / "socket.md").read_text()
DEADLINE = 60  # seconds
REQUEST = re.compile(r"(PUT|GET|DEL|SUB|UNSUB) \d+ ")

pytestmark = pytest.mark.anyio


class Program:
    """One that is connected to the node: what it is given goes there, what comes it prints."""

    def __init__(self, process):
        self.process = process
        self.seen = b""

    async def send(self, data):
        await self.process.stdin.send(data)

    async def line(self):
        while b"\n" not in self.seen:
            self.seen += await self.process.stdout.receive()
        line, _, self.seen = self.seen.partition(b"\n")
        return line.decode()

    async def rest(self):
        """What it prints until it ends, once it is given no more."""
        await self.process.stdin.aclose()
        while True:
            try:
                self.seen += await self.process.stdout.receive()
            except anyio.EndOfStream:
                break
        assert await self.process.wait() == 0
        return self.seen.decode()


@pytest.fixture(params=["socat unix", "socat tcp", "nc unix", "nc tcp"])
def command(request):
    """Makes the command that connects to a node. The connection is ended when the node ends it."""
    program, family = request.param.split()
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")

    def made(served, listening=False):
        host, port = "127.0.0.1", str(served.port)
        if program == "nc":
            # -N: the end of what it is given is the end of the connection's one direction.
            ends = [] if listening else ["-N"]
            return ["nc", *ends, *(["-U", str(served.path)] if family == "unix" else [host, port])]
        place = f"UNIX-CONNECT:{served.path}" if family == "unix" else f"TCP:{host}:{port}"
        ends = ["STDIO,ignoreeof"] if listening else [f"-t{DEADLINE}", "STDIO"]
        return ["socat", *ends, place]

    return made


@asynccontextmanager
async def running(command):
    """The program, for as long as the block runs."""
    async with await anyio.open_process(command) as process:
        try:
            with anyio.fail_after(DEADLINE):
                yield Program(process)
        finally:
            if process.returncode is None:
                process.kill()


async def test_lines_are_answered(serving, command):
    async with serving() as served, running(command(served)) as program:
        await program.send(
            b"GET 1 me a.b\nPUT 2 me a.b dmFsdWU=\nPUT 3 me a.c dw==\nGET 4 me a.*\n"
        )
        await program.send(b"DEL 5 me a.c\nGET 6 me a.c\nrubbish\nGET 7 me a.b\n")
        assert await program.rest() == (
            "1 FAILED\n2 OK\n3 OK\n4 OK dmFsdWU= dw==\n5 OK\n6 FAILED\n- FAILED\n7 OK dmFsdWU=\n"
        )
        assert (await served.keyspace.get("a.b")).value == b"value"


async def test_json_is_answered(serving, command, dialects):
    dialect = dialects["json"]
    async with serving() as served, running(command(served)) as program:
        await program.send(dialect.request("PUT", "1", "me", "a.b", "dmFsdWU="))
        await program.send(dialect.request("GET", "2", "me", "a.b"))
        await program.send(dialect.request("DEL", "3", "me", "a.b"))
        await program.send(dialect.request("GET", "4", "me", "a.b"))
        answers = [json.loads(line) for line in (await program.rest()).splitlines()]
        found = {"id": "2", "status": 200, "message": "No Error", "data": [list(b"value")]}
        missing = {"id": "4", "status": 404, "message": "Not Found", "data": []}
        assert answers == [dialect.ok("1"), {"Get": found}, dialect.ok("3"), {"Get": missing}]
        assert await served.keyspace.get("a.b") is None


@pytest.mark.parametrize("name", ["line", "json"])
async def test_a_subscriber_is_told_what_another_program_writes(serving, command, dialects, name):
    dialect = dialects[name]

    def read(line):
        return json.loads(line) if name == "json" else line

    async with serving() as served, running(command(served, listening=True)) as watching:
        await served.put("service.a", b"before")
        await watching.send(dialect.request("SUB", "1", "me", "service"))
        assert read(await watching.line()) == dialect.hello
        assert read(await watching.line()) == dialect.update("service.a", b"before")
        for number in range(3):
            value = dialects["line"].update("", b"%d" % number).split()[-1]
            async with running(command(served)) as writing:
                await writing.send(dialect.request("PUT", "2", "you", f"service.{number}", value))
                assert read(await writing.rest()) == (
                    dialect.ok("2") if name == "json" else dialect.ok("2") + "\n"
                )
            told = read(await watching.line())
            assert told == dialect.update(f"service.{number}", b"%d" % number)
        await served.keyspace.delete("service.a")
        assert read(await watching.line()) == dialect.close("service.a")


async def test_the_session_of_the_document_goes_as_it_stands_there(serving):
    if shutil.which("socat") is None:
        pytest.skip("socat is not installed")
    (command, lines) = re.search(
        r"^\$ (socat .*)\n((?:[^`].*\n)+)```", DOCUMENT, re.MULTILINE
    ).groups()
    lines = lines.splitlines()
    assert sum(REQUEST.match(line) is not None for line in lines) == 3
    async with serving() as served:
        command = command.replace("/tmp/nkv/nkv.sock", str(served.path))
        async with running(["sh", "-c", f"exec {command}"]) as program:
            for line in lines:
                if REQUEST.match(line):
                    await program.send(line.encode() + b"\n")
                else:
                    assert await program.line() == line
